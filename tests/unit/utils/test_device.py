"""Which device a process takes, told from what it asks torch for."""

import pytest
import torch

from utils.dist import choose_device
from utils.errors import OptionError


@pytest.fixture
def gpus(monkeypatch) -> list[tuple[str, torch.device]]:
    """A machine that seems to have two GPUs. Returns what was done with which device."""
    done = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: done.append(("set", device)))
    monkeypatch.setattr(torch, "empty", lambda size, device: done.append(("use", device)))
    return done


@pytest.mark.parametrize("name", ["cuda", "auto", "cuda:0"])
@pytest.mark.parametrize("local_rank", [0, 1])
def test_each_process_touches_its_own_gpu_alone(name, local_rank, gpus):
    own = torch.device("cuda", local_rank)
    assert choose_device(name, local_rank) == own
    assert gpus == [("set", own), ("use", own)]


def test_a_process_alone_takes_the_gpu_it_was_told(gpus):
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert gpus == [("use", torch.device("cuda:1"))]


def test_more_processes_than_gpus(gpus):
    with pytest.raises(OptionError, match="process 2 of this machine has no GPU, 2 are visible"):
        choose_device("cuda", 2)
    assert gpus == []


@pytest.mark.parametrize("local_rank", [None, 0, 1])
def test_no_gpu_at_all(local_rank, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)  # untried: not by itself
    assert choose_device("auto", local_rank) == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
@pytest.mark.parametrize("local_rank", [None, 0, 1])
def test_a_gpu_that_is_not_there_names_the_remedy(local_rank):
    with pytest.raises(OptionError, match=r"--device cuda: not usable here \(.*try --device cpu"):
        choose_device("cuda", local_rank)


@pytest.mark.parametrize("local_rank", [None, 0, 1])
def test_processes_share_the_cpu(local_rank):
    assert choose_device("cpu", local_rank) == torch.device("cpu")
