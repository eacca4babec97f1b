"""Processes that start anew in the store of their forerunners agree on a name of their own."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from utils.dist import name_meeting

SIZE = 3


@pytest.fixture
def connect():
    """Connect to one store, as each process does."""
    limit = timedelta(seconds=30)
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=limit)
    return lambda: dist.TCPStore("127.0.0.1", server.port, is_master=False, timeout=limit)


def meet(connect, delays=(0.0,) * SIZE) -> set[str]:
    """The names that the processes of one start get; each comes after a delay in seconds."""

    def join(rank: int) -> str:
        time.sleep(delays[rank])
        return name_meeting(connect(), rank, SIZE)

    with ThreadPoolExecutor(SIZE) as pool:
        return set(pool.map(join, range(SIZE)))


def test_every_start_has_one_name_of_its_own(connect):
    starts = [meet(connect, delays) for delays in ((0, 0, 0), (0, 0.2, 0.1), (0.2, 0, 0.1))]
    assert all(len(names) == 1 for names in starts)
    assert len(set.union(*starts)) == len(starts)


def test_a_start_that_ended_half_way_confuses_nobody(connect):
    store = connect()
    store.set("meeting/question/1", "killed before the answer")
    store.set("meeting/question/2", "killed behind it")
    store.set("meeting/answer/killed behind it", "old")
    store.set("meeting/heard/old/2", "1")
    (name,) = meet(connect, (0, 0.2, 0.1))  # the first reads the old questions before new ones
    assert name != "old"


def test_a_process_that_does_not_come_is_no_endless_wait(connect):
    store = connect()
    store.set_timeout(timedelta(seconds=0.1))
    with pytest.raises(dist.DistError):
        name_meeting(store, 1, SIZE)


def test_one_process_waits_for_nobody(connect):
    assert name_meeting(connect(), 0, 1) != name_meeting(connect(), 0, 1)
