"""Messages between processes, and which device a process takes."""

import json

import pytest
import torch

from tests.helpers.processes import run_ranks
from utils import dist
from utils.errors import OptionError


def write_messages(rank, folder):
    with dist.joined("cpu"):
        found = {
            "sum": dist.all_sum(torch.tensor([rank + 1.0])).item(),
            "mean": dist.all_mean(torch.tensor(float(rank))).item(),
            "any": [dist.any_rank(False), dist.any_rank(rank == 1), dist.any_rank(True)],
            "gather": dist.gather({"rank": rank}),
            "broadcast": dist.broadcast(f"from {rank}"),
            "main": dist.is_main(),
        }
        dist.barrier()
        (folder / f"{rank}.json").write_text(json.dumps(found))


def test_messages_between_processes(tmp_path):
    run_ranks(3, tmp_path, write_messages, tmp_path)
    for rank in range(3):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {
            "sum": 6,
            "mean": 1,
            "any": [False, True, True],
            "gather": [{"rank": 0}, {"rank": 1}, {"rank": 2}],
            "broadcast": "from 0",
            "main": rank == 0,
        }


def test_one_process_sends_nothing(capsys):
    value = torch.tensor([1.0, 2.0])
    assert dist.all_sum(value) is value
    assert dist.all_mean(value) is value
    assert dist.any_rank(True) and not dist.any_rank(False)
    assert dist.gather(3) == [3]
    assert dist.broadcast("x") == "x"
    dist.barrier()
    dist.print0("hello")
    assert capsys.readouterr().out == "hello\n"


@pytest.fixture
def gpus(monkeypatch):
    """A machine that seems to have two GPUs. Returns what was done with which device."""
    done = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: done.append(("set", device)))
    monkeypatch.setattr(torch, "empty", lambda size, device: done.append(("use", device)))
    return done


def launched(monkeypatch, local_rank):
    monkeypatch.setenv("RANK", str(local_rank))
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))


@pytest.mark.parametrize("name", ["cuda", "auto", "cuda:0"])
@pytest.mark.parametrize("local_rank", [0, 1])
def test_each_process_touches_its_own_gpu_alone(name, local_rank, gpus, monkeypatch):
    launched(monkeypatch, local_rank)
    own = torch.device("cuda", local_rank)
    assert dist.choose_device(name) == own
    assert gpus == [("set", own), ("use", own)]


def test_a_process_alone_takes_the_gpu_it_was_told(gpus):
    assert dist.choose_device("cuda:1") == torch.device("cuda:1")
    assert gpus == [("use", torch.device("cuda:1"))]


def test_more_processes_than_gpus(gpus, monkeypatch):
    launched(monkeypatch, 2)
    with pytest.raises(OptionError, match="process 2 of this machine has no GPU, 2 are visible"):
        dist.choose_device("cuda")
    assert gpus == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)  # untried: not by itself
    assert dist.choose_device("auto") == torch.device("cpu")
    with pytest.raises(OptionError, match=r"--device cuda: not usable here \(.*try --device cpu"):
        dist.choose_device("cuda")
