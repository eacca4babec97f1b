"""A run that crashes at any step and is resumed ends like one that did not: in every bit."""

import shutil
import signal
import time

import pytest
import torch
from torch import nn

import train
from engine import training
from models.checkpoint import open_checkpoint
from tests.helpers.interruptions import EPOCHS, STEPS, CrashError, after_step, crash, resume, start
from tests.helpers.processes import ended, eventually
from tests.helpers.runs import assert_same_run, latest_file
from utils.tensor_files import read_checkpoint

# --- crashes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "every", "step"),
    [
        ("plain", 1, 2),
        ("plain", 1, 3),
        ("plain", 2, 5),
        ("plain", None, 5),
        ("worker", 1, 4),
        ("accumulate", 1, 5),
        *(pytest.param("plain", 1, step, marks=pytest.mark.slow) for step in (1, 4, 5, 6)),
        pytest.param("plain", None, 2, marks=pytest.mark.slow),  # nothing saved: starts anew
        pytest.param("plain", 2, 3, marks=pytest.mark.slow),
        pytest.param("worker", 1, 2, marks=pytest.mark.slow),
        pytest.param("accumulate", 1, 2, marks=pytest.mark.slow),
        pytest.param("cache", 1, 4, marks=pytest.mark.slow),
    ],
)
def test_a_crash_at_any_step(variant, every, step, whole_run, tmp_path):
    run = whole_run(variant)
    every = () if every is None else ("--checkpoint-every", every)
    with pytest.MonkeyPatch.context() as patch:
        after_step(patch, step, crash)
        with pytest.raises(CrashError):
            train.main(run.argv(tmp_path, *every))
    resume(run, tmp_path, *every)
    assert_same_run(tmp_path, run.outdir)


def test_several_crashes_of_one_run(whole_run, tmp_path):
    run = whole_run("plain")
    for step in (1, 3, 5):
        with pytest.MonkeyPatch.context() as patch:
            after_step(patch, step, crash)
            with pytest.raises(CrashError):
                resume(run, tmp_path, "--checkpoint-every", 1)
    resume(run, tmp_path)
    assert_same_run(tmp_path, run.outdir)


@pytest.mark.parametrize("epoch", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_crash_in_validation(epoch, whole_run, tmp_path):
    run = whole_run("plain")
    evaluate, calls = training.evaluate, []

    def crashing(*args):
        calls.append(args)
        if len(calls) == epoch:
            raise CrashError
        return evaluate(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "evaluate", crashing)
        with pytest.raises(CrashError):
            train.main(run.argv(tmp_path, "--checkpoint-every", 1))
    assert not read_checkpoint(latest_file(tmp_path))["training"]["validated"]
    resume(run, tmp_path)
    assert_same_run(tmp_path, run.outdir)


@pytest.mark.parametrize("epoch", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_crash_between_the_best_and_the_latest_file(epoch, whole_run, tmp_path):
    # The best is written, the latest does not know it yet.
    run = whole_run("plain")
    save, calls = training.Record.save_latest, []

    def crashing(self, trainer):
        calls.append(trainer)
        if len(calls) == epoch:
            raise CrashError
        save(self, trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Record, "save_latest", crashing)
        with pytest.raises(CrashError):
            train.main(run.argv(tmp_path))
    resume(run, tmp_path)
    state, expected = (read_checkpoint(latest_file(d)) for d in (tmp_path, run.outdir))
    assert all(
        torch.equal(value, expected["model"][name]) for name, value in state["model"].items()
    )
    assert state["metrics"] == expected["metrics"]
    best = tmp_path / "models" / state["best_file"]
    assert read_checkpoint(best)["metrics"] == expected["metrics"]
    if epoch > 1:  # without a latest file, a new run leaves those of others alone
        assert_same_run(tmp_path, run.outdir)


def test_an_outdir_that_was_moved_can_be_resumed(whole_run, tmp_path):
    run = whole_run("plain")
    with pytest.MonkeyPatch.context() as patch:
        after_step(patch, STEPS + 1, crash)
        with pytest.raises(CrashError):
            train.main(run.argv(tmp_path / "first"))
    shutil.move(tmp_path / "first", tmp_path / "second")
    resume(run, tmp_path / "second")
    assert_same_run(tmp_path / "second", run.outdir)


def test_dropout_is_active_in_these_runs(whole_run):
    run = whole_run("plain")
    saved = read_checkpoint(latest_file(run.outdir))
    torch.manual_seed(0)
    assert not torch.equal(saved["training"]["rng"][0]["cpu"], torch.get_rng_state())
    model = open_checkpoint(latest_file(run.outdir)).build()
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout2d)] == [0.1, 0.1]


# --- kill -9 --------------------------------------------------------------------------------


def test_a_killed_process(whole_run, tmp_path):
    run = whole_run("plain")
    outdir = tmp_path / "out"
    argv = run.argv(outdir, "--checkpoint-every", 1)
    with ended(start(argv, tmp_path / "printed", slow_steps)) as child:
        eventually(lambda: latest_file(outdir).exists(), 120, 0.01)
        child.send(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    state = read_checkpoint(latest_file(outdir))["training"]
    assert (state["epoch"], state["step"]) < (EPOCHS, STEPS)
    resume(run, outdir)
    assert_same_run(outdir, run.outdir)


def slow_steps() -> None:
    """Leave time to kill a process between two steps."""
    step = torch.optim.Adam.step

    def slow(self, *args, **kwargs):
        time.sleep(0.3)
        return step(self, *args, **kwargs)

    torch.optim.Adam.step = slow
