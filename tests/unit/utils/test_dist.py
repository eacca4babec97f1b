"""Which device a process takes, and messages between processes."""

import json
from pathlib import Path

import pytest
import torch

from tests.helpers.processes import run_ranks
from utils import dist
from utils.errors import OptionError

# --- devices --------------------------------------------------------------------------------


@pytest.fixture
def gpus(monkeypatch) -> list[tuple[str, torch.device]]:
    """A machine that seems to have two GPUs. Returns what was done with which device."""
    done = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: done.append(("set", device)))
    monkeypatch.setattr(torch, "empty", lambda size, device: done.append(("use", device)))
    return done


@pytest.fixture
def be_rank(monkeypatch):
    """Make this process one of those that a launcher has started; None for none of them."""

    def be(rank: int | None) -> None:
        for name in ("RANK", "LOCAL_RANK"):
            monkeypatch.delenv(name, raising=False)
            if rank is not None:
                monkeypatch.setenv(name, str(rank))

    return be


@pytest.mark.parametrize("name", ["cuda", "auto", "cuda:0"])
@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_touches_its_own_gpu_alone(name, rank, be_rank, gpus):
    be_rank(rank)
    own = torch.device("cuda", rank)
    assert dist.choose_device(name) == own
    assert gpus == [("set", own), ("use", own)]


def test_a_process_alone_takes_the_gpu_it_was_told(be_rank, gpus):
    be_rank(None)
    assert dist.choose_device("cuda:1") == torch.device("cuda:1")
    assert gpus == [("use", torch.device("cuda:1"))]


def test_more_processes_than_gpus(be_rank, gpus):
    be_rank(2)
    with pytest.raises(OptionError, match="process 2 of this machine has no GPU, 2 are visible"):
        dist.choose_device("cuda")
    assert gpus == []


@pytest.mark.parametrize("rank", [None, 1])
def test_without_a_gpu(rank, be_rank, monkeypatch):
    be_rank(rank)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)  # untried: not by itself
    assert dist.choose_device("auto") == dist.choose_device("cpu") == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
@pytest.mark.parametrize("rank", [None, 1])
def test_a_gpu_that_is_not_there_names_the_remedy(rank, be_rank):
    be_rank(rank)
    with pytest.raises(OptionError, match=r"--device cuda: not usable here \(.*try --device cpu"):
        dist.choose_device("cuda")


# --- messages -------------------------------------------------------------------------------


def write_messages(rank: int, folder: Path) -> None:
    with dist.joined("cpu") as device:
        assert device == torch.device("cpu")
        found = {
            "size": dist.size(),
            "sum": dist.all_sum(torch.tensor([rank + 1.0])).item(),
            "mean": dist.all_mean(torch.tensor(float(rank))).item(),
            "any": [dist.any_rank(False), dist.any_rank(rank == 1), dist.any_rank(True)],
            "gather": dist.gather({"rank": rank}),
            "broadcast": dist.broadcast(f"from {rank}"),
            "main": dist.is_main(),
        }
        dist.print0(f"said by {rank}")
        dist.barrier()
        (folder / f"{dist.rank()}.json").write_text(json.dumps(found))


def test_messages_between_processes(tmp_path):
    run_ranks(3, tmp_path, write_messages, tmp_path)
    for rank in range(3):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {
            "size": 3,
            "sum": 6,
            "mean": 1,
            "any": [False, True, True],
            "gather": [{"rank": 0}, {"rank": 1}, {"rank": 2}],
            "broadcast": "from 0",
            "main": rank == 0,
        }
        said = "said by 0\n" if rank == 0 else ""
        assert (tmp_path / f"rank{rank}" / "stdout").read_text() == said


def test_a_process_alone_sends_nothing(capsys):
    value = torch.tensor([1.0, 2.0])
    assert (dist.rank(), dist.size(), dist.is_main()) == (0, 1, True)
    assert dist.all_sum(value) is value
    assert dist.all_mean(value) is value
    assert dist.any_rank(True) and not dist.any_rank(False)
    assert dist.gather(3) == [3]
    assert dist.broadcast("x") == "x"
    dist.barrier()
    dist.print0("hello")
    assert capsys.readouterr().out == "hello\n"
