"""Losses, gradients and weights that are no numbers stop a run and are never saved."""

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

import train
from models.losses import ChangeCriterion
from tests.helpers.faults import only_estimated
from tests.helpers.processes import ended, start_script
from tests.helpers.runs import (
    STEPS,
    TRAIN_NAMES,
    assert_same_run,
    best_files,
    latest_file,
    resume,
    train_options,
)
from utils.errors import NumericalError
from utils.tensor_files import read_checkpoint


@pytest.mark.parametrize("every", [(), ("--checkpoint-every", 1)])
def test_a_loss_that_is_no_number_stops_the_run(every, fcn_run, tmp_path, request):
    batches = []

    def poison(module: torch.nn.Module, _inputs: object, terms: dict) -> dict | None:
        if isinstance(module, ChangeCriterion) and not only_estimated():
            batches.append(terms)
            if len(batches) == STEPS + 2:
                return {name: value * float("nan") for name, value in terms.items()}
        return None

    request.addfinalizer(register_module_forward_hook(poison).remove)
    with pytest.raises(NumericalError) as stop:
        train.main(fcn_run.argv(tmp_path, *every))
    message = str(stop.value)
    assert "loss is no finite number in batch 2 of this epoch (change nan" in message
    names = message.split("files ")[1].split(";", maxsplit=1)[0].split(", ")
    assert len(names) == 4 and set(names) <= set(TRAIN_NAMES)
    state = read_checkpoint(latest_file(tmp_path))
    assert all(value.isfinite().all() for value in state["model"].values())
    assert state["training"]["step"] == (1 if every else STEPS)
    resume(fcn_run, tmp_path)
    assert_same_run(tmp_path, fcn_run.outdir)


@pytest.mark.parametrize(("every", "step"), [(("--checkpoint-every", 1), 1), ((), STEPS)])
def test_weights_that_are_no_numbers_are_never_saved(every, step, fcn_run, tmp_path, monkeypatch):
    # A finite loss may have a gradient that is none; the loss tells only a step later, and the last
    # step of an epoch has no later one.
    step_of, steps = torch.optim.Adam.step, []

    def poisoned(self, *args, **kwargs):
        steps.append(self)
        if len(steps) == STEPS + step:
            self.param_groups[1]["params"][0].grad.fill_(float("inf"))
        return step_of(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(NumericalError, match="no finite number"):
        patch.setattr(torch.optim.Adam, "step", poisoned)
        train.main(fcn_run.argv(tmp_path, *every))
    (best,) = best_files(tmp_path)
    for path in (best, latest_file(tmp_path)):
        state = read_checkpoint(path)["model"]
        assert all(value.isfinite().all() for value in state.values())
    resume(fcn_run, tmp_path)
    assert_same_run(tmp_path, fcn_run.outdir)


def test_a_learning_rate_far_too_high_is_one_line(sample_root, tmp_path):
    argv = train_options(sample_root, tmp_path, "--lr", "1e30", "--epochs", 3)
    with ended(start_script("train.py", argv, tmp_path / "printed")) as child:
        assert child.wait() == 2
    (line,) = child.error_lines
    assert "no finite number" in line and "lower --lr" in line
    assert best_files(tmp_path) == []
