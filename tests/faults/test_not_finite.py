"""Losses, gradients and weights that are no numbers stop a run and are never saved."""

import pytest
import torch
from tests.helpers.interruptions import STEPS, resume, start

import train
from engine.training import LossReader
from tests.helpers.processes import ended, error_lines
from tests.helpers.runs import assert_same_run, best_files, latest_file, train_options
from utils.errors import NumericalError
from utils.tensor_files import read_checkpoint


def poison_loss(monkeypatch, number: int) -> None:
    """Make the loss of the n-th batch NaN."""
    add, count = LossReader.add, 0

    def poisoned(self, terms, names):
        nonlocal count
        count += 1
        if count == number:
            terms = {name: value * float("nan") for name, value in terms.items()}
        add(self, terms, names)

    monkeypatch.setattr(LossReader, "add", poisoned)


@pytest.mark.parametrize("every", [(), ("--checkpoint-every", 1)])
def test_a_loss_that_is_no_number_stops_the_run(every, whole_run, tmp_path, monkeypatch):
    run = whole_run("plain")
    with monkeypatch.context() as patch:
        poison_loss(patch, STEPS + 2)
        with pytest.raises(NumericalError) as stop:
            train.main(run.argv(tmp_path, *every))
    message = str(stop.value)
    assert "loss is no finite number in batch 2 of this epoch (change nan" in message
    names = message.split("files ")[1].split(";", maxsplit=1)[0].split(", ")
    assert len(names) == 4
    assert set(names) <= {f"{i:05d}" for i in range(12)}
    state = read_checkpoint(latest_file(tmp_path))
    assert all(value.isfinite().all() for value in state["model"].values())
    assert state["training"]["step"] == (1 if every else STEPS)
    resume(run, tmp_path)
    assert_same_run(tmp_path, run.outdir)


@pytest.mark.parametrize(("every", "step"), [(("--checkpoint-every", 1), 1), ((), STEPS)])
def test_weights_that_are_no_numbers_are_never_saved(every, step, whole_run, tmp_path, monkeypatch):
    # A finite loss may have a gradient that is none; the loss tells only a step later, and the last
    # step of an epoch has no later one.
    run = whole_run("plain")
    number = STEPS + step
    step_of, count = torch.optim.Adam.step, 0

    def poisoned(self, *args, **kwargs):
        nonlocal count
        count += 1
        if count == number:
            self.param_groups[1]["params"][0].grad.fill_(float("inf"))
        return step_of(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", poisoned)
        with pytest.raises(NumericalError, match="no finite number"):
            train.main(run.argv(tmp_path, *every))
    (best,) = best_files(tmp_path)
    for path in (best, latest_file(tmp_path)):
        state = read_checkpoint(path)["model"]
        assert all(value.isfinite().all() for value in state.values())
    resume(run, tmp_path)
    assert_same_run(tmp_path, run.outdir)


def test_a_learning_rate_far_too_high_is_one_line(sample_root, tmp_path):
    argv = train_options(sample_root, tmp_path, "--lr", "1e30", "--epochs", 3)
    with ended(start(argv, tmp_path / "printed")) as child:
        assert child.wait() == 2
    (line,) = error_lines(child)
    assert "no finite number" in line and "lower --lr" in line
    assert best_files(tmp_path) == []
