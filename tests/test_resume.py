"""A run that is interrupted at any step and resumed ends like one that was not: in every bit."""

import dataclasses
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from processes import Child, ended, error_lines, eventually, processes_with, start_script
from runs import (
    assert_same_run,
    best_files,
    csv_rows,
    latest_file,
    train_options,
)
from torch import nn

import train
from models import open_checkpoint
from utils import fit
from utils.checkpoint import read_checkpoint
from utils.distributed import StopRequest
from utils.engine import LossReader
from utils.errors import (
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    InterruptionError,
    NumericalError,
)
from utils.trainer import Trainer

EPOCHS, STEPS = 2, 3  # 12 pairs in batches of 4
VARIANTS = {
    "plain": (),
    "worker": ("--workers", 1),
    "accumulate": ("--accumulate", 2),
    "cache": ("--cache", "disk"),
}


class CrashError(Exception):
    """Stands for a process that ends without a chance to save."""


@dataclasses.dataclass(frozen=True)
class Whole:
    """An uninterrupted run."""

    outdir: Path
    argv: Callable[..., list[str]]


@pytest.fixture(scope="module")
def whole(sample_root, tmp_path_factory) -> Callable[[str], Whole]:
    """Uninterrupted runs by variant, each trained once. Read only."""
    done: dict[str, Whole] = {}

    def run(variant: str) -> Whole:
        if variant not in done:
            outdir = tmp_path_factory.mktemp(variant)

            def argv(outdir: Path, *more: object) -> list[str]:
                return train_options(
                    sample_root, outdir, "--epochs", EPOCHS, *VARIANTS[variant], *more
                )

            train.main(argv(outdir))
            done[variant] = Whole(outdir, argv)
        return done[variant]

    return run


def after_step(monkeypatch, number: int, act: Callable[[], None]) -> None:
    """Do something after the run's n-th step, behind the program's own work there."""
    train_epoch = Trainer.train_epoch

    def patched(self, loader, after):
        def and_act() -> None:
            after()
            if (self.epoch - 1) * STEPS + self.step == number:
                act()

        return train_epoch(self, loader, and_act)

    monkeypatch.setattr(Trainer, "train_epoch", patched)


def before_step(monkeypatch, number: int, act: Callable[[], None]) -> None:
    """Do something in the run's n-th step, before its weights change."""
    step = torch.optim.Adam.step
    count = 0

    def patched(self, *args, **kwargs):
        nonlocal count
        count += 1
        if count == number:
            act()
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", patched)


def crash() -> None:
    raise CrashError


def resume(run: Whole, outdir: Path, *more: object) -> None:
    torch.manual_seed(4321)  # what a fresh process draws must not matter
    train.main(run.argv(outdir, "--resume", *more))


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
def test_a_crash_at_any_step(variant, every, step, whole, tmp_path):
    run = whole(variant)
    every = () if every is None else ("--checkpoint-every", every)
    with pytest.MonkeyPatch.context() as patch:
        after_step(patch, step, crash)
        with pytest.raises(CrashError):
            train.main(run.argv(tmp_path, *every))
    resume(run, tmp_path, *every)
    assert_same_run(tmp_path, run.outdir)


def test_several_crashes_of_one_run(whole, tmp_path):
    run = whole("plain")
    for step in (1, 3, 5):
        with pytest.MonkeyPatch.context() as patch:
            after_step(patch, step, crash)
            with pytest.raises(CrashError):
                resume(run, tmp_path, "--checkpoint-every", 1)
    resume(run, tmp_path)
    assert_same_run(tmp_path, run.outdir)


@pytest.mark.parametrize("epoch", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_crash_in_validation(epoch, whole, tmp_path):
    run = whole("plain")
    evaluate, calls = fit.evaluate, []

    def crashing(*args):
        calls.append(args)
        if len(calls) == epoch:
            raise CrashError
        return evaluate(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "evaluate", crashing)
        with pytest.raises(CrashError):
            train.main(run.argv(tmp_path, "--checkpoint-every", 1))
    assert not read_checkpoint(latest_file(tmp_path))["training"]["validated"]
    resume(run, tmp_path)
    assert_same_run(tmp_path, run.outdir)


@pytest.mark.parametrize("epoch", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_crash_between_the_best_and_the_latest_file(epoch, whole, tmp_path):
    # The best is written, the latest does not know it yet.
    run = whole("plain")
    save, calls = fit.Record.save_latest, []

    def crashing(self, trainer):
        calls.append(trainer)
        if len(calls) == epoch:
            raise CrashError
        save(self, trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit.Record, "save_latest", crashing)
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


def test_dropout_is_active_in_these_runs(whole):
    run = whole("plain")
    saved = read_checkpoint(latest_file(run.outdir))
    torch.manual_seed(0)
    assert not torch.equal(saved["training"]["rng"][0]["cpu"], torch.get_rng_state())
    model = open_checkpoint(latest_file(run.outdir)).build()
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout2d)] == [0.1, 0.1]


# --- kill -9 --------------------------------------------------------------------------------


def start(argv: list[str], folder: Path, prepare: Callable | None = None) -> Child:
    return start_script("train.py", argv, folder, prepare)


def test_a_killed_process(whole, tmp_path):
    run = whole("plain")
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


# --- signals --------------------------------------------------------------------------------

STATUS = {
    signal.SIGTERM: EXIT_PREEMPTED,
    signal.SIGUSR1: EXIT_PREEMPTED,
    signal.SIGINT: EXIT_INTERRUPTED,
}


@pytest.mark.parametrize(
    ("number", "step"), [(signal.SIGTERM, 2), (signal.SIGUSR1, 4), (signal.SIGINT, 5)]
)
def test_a_signal_saves_within_one_step(number, step, whole, tmp_path, monkeypatch):
    run = whole("plain")
    with monkeypatch.context() as patch:
        before_step(patch, step, lambda: os.kill(os.getpid(), number))
        with pytest.raises(InterruptionError) as stop:
            train.main(run.argv(tmp_path))
    assert stop.value.status == STATUS[number]
    assert str(latest_file(tmp_path)) in str(stop.value)
    state = read_checkpoint(latest_file(tmp_path))["training"]
    assert (state["epoch"] - 1) * STEPS + state["step"] == step
    resume(run, tmp_path)
    assert_same_run(tmp_path, run.outdir)


@pytest.mark.parametrize("epoch", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_signal_in_validation_does_not_wait_for_its_end(epoch, whole, tmp_path, monkeypatch):
    run = whole("plain")
    calls, predicted = [], []
    evaluate = fit.evaluate

    def signalled(predictor, loader, *args):
        def counted():
            for number, batch in enumerate(loader):
                predicted.append(number)
                if number == 0 and len(calls) == epoch:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

        calls.append(loader)
        return evaluate(predictor, counted(), *args)

    with monkeypatch.context() as patch:
        patch.setattr(fit, "evaluate", signalled)
        with pytest.raises(InterruptionError):
            train.main(run.argv(tmp_path, "--val-batch-size", 1))
    assert len(predicted) == 4 * (epoch - 1) + 1  # of four batches an epoch
    state = read_checkpoint(latest_file(tmp_path))["training"]
    assert (state["epoch"], state["step"], state["validated"]) == (epoch, STEPS, False)
    assert len(state["rows"]) == epoch - 1
    resume(run, tmp_path)
    assert_same_run(tmp_path, run.outdir)


def send_sigterm() -> None:
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        patch.undo = lambda: None  # for the rest of the process


def send_sigint() -> None:
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
        patch.undo = lambda: None


@pytest.mark.parametrize(
    ("prepare", "status"), [(send_sigterm, EXIT_PREEMPTED), (send_sigint, EXIT_INTERRUPTED)]
)
def test_status_of_a_signalled_script(prepare, status, whole, tmp_path):
    outdir = tmp_path / "out"
    with ended(start(whole("plain").argv(outdir), tmp_path / "printed", prepare)) as child:
        assert child.wait() == status
    (line,) = error_lines(child)
    assert line.startswith("error: asked to end in epoch 1, after step 2; the state is in ")
    assert line.endswith("--resume goes on")
    assert read_checkpoint(latest_file(outdir))["training"]["step"] == 2


def test_signals_do_again_what_they_did_before():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert signal.getsignal(signal.SIGTERM) is not before
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.signal == signal.SIGUSR1
        with pytest.raises(KeyboardInterrupt):  # asked a second time, and by the user
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def signal_group() -> None:
    def act() -> None:
        os.killpg(0, signal.SIGTERM)
        time.sleep(0.5)  # the reader processes get it, too

    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 2, act)
        patch.undo = lambda: None


def test_a_signal_to_the_whole_group_saves_too(whole, tmp_path):
    # What launchers, `timeout` and schedulers send reaches the reader processes as well.
    outdir = tmp_path / "out"
    run = whole("worker")
    with ended(start(run.argv(outdir), tmp_path / "printed", signal_group)) as child:
        assert child.wait() == EXIT_PREEMPTED, child.err
    resume(run, outdir)
    assert_same_run(outdir, run.outdir)


# --- several processes ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_of_two(sample_root, tmp_path_factory) -> Whole:
    """An uninterrupted run of two processes. Read only."""
    outdir = tmp_path_factory.mktemp("two")

    def argv(outdir: Path, *more: object) -> list[str]:
        return train_options(sample_root, outdir, "--epochs", 5, "--nproc", 2, *more)

    with ended(start(argv(outdir), outdir / "printed")) as child:
        assert child.wait() == 0, child.err
    return Whole(outdir, argv)


@pytest.mark.slow
@pytest.mark.parametrize("number", STATUS)
def test_a_signal_to_the_parent_of_two_processes(number, whole_of_two, tmp_path):
    run, outdir = whole_of_two, tmp_path / "out"
    every = ("--checkpoint-every", 1)
    with ended(start(run.argv(outdir, *every), tmp_path / "printed")) as child:
        eventually(lambda: latest_file(outdir).exists(), 120, 0.01)
        child.send(number)
        assert child.wait() == STATUS[number], child.err
    (line,) = error_lines(child)
    assert line.startswith("error: asked to end in epoch")
    eventually(lambda: processes_with(str(outdir)) == [], 20)
    state = read_checkpoint(latest_file(outdir))["training"]
    assert (state["epoch"], state["step"]) < (5, STEPS)
    with ended(start(run.argv(outdir, "--resume"), tmp_path / "resumed")) as child:
        assert child.wait() == 0, child.err
    assert_same_run(outdir, run.outdir)


@pytest.mark.slow
def test_two_killed_processes(whole_of_two, tmp_path):
    run, outdir = whole_of_two, tmp_path / "out"
    with ended(start(run.argv(outdir, "--checkpoint-every", 1), tmp_path / "printed")) as child:
        eventually(lambda: latest_file(outdir).exists(), 120, 0.01)
        child.send(signal.SIGKILL)
        child.wait()
        eventually(lambda: processes_with(str(outdir)) == [], 60)
    with ended(start(run.argv(outdir, "--resume"), tmp_path / "resumed")) as child:
        assert child.wait() == 0, child.err
    assert_same_run(outdir, run.outdir)


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_in_one(whole_of_two, tmp_path, sample_root):
    # Not in every bit: sums are taken in another order, and dropout is drawn by other processes.
    outdir = tmp_path / "out"
    every = ("--checkpoint-every", 1)
    with ended(start(whole_of_two.argv(outdir, *every), tmp_path / "printed")) as child:
        eventually(lambda: latest_file(outdir).exists(), 120, 0.01)
        child.send(signal.SIGTERM)
        assert child.wait() == EXIT_PREEMPTED
    train.main(train_options(sample_root, outdir, "--epochs", 5, "--resume"))
    assert [row["epoch"] for row in csv_rows(outdir)] == ["1", "2", "3", "4", "5"]
    assert len(best_files(outdir)) == 1


# --- numbers that are none ------------------------------------------------------------------


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
def test_a_loss_that_is_no_number_stops_the_run(every, whole, tmp_path, monkeypatch):
    run = whole("plain")
    with monkeypatch.context() as patch:
        poison_loss(patch, STEPS + 2)
        with pytest.raises(NumericalError) as stop:
            train.main(run.argv(tmp_path, *every))
    message = str(stop.value)
    assert "loss is no finite number in step 2 of this epoch (change nan" in message
    names = message.split("files ")[1].split(";", maxsplit=1)[0].split(", ")
    assert len(names) == 4
    assert set(names) <= {f"{i:05d}" for i in range(12)}
    state = read_checkpoint(latest_file(tmp_path))
    assert all(value.isfinite().all() for value in state["model"].values())
    assert state["training"]["step"] == (1 if every else STEPS)
    resume(run, tmp_path)
    assert_same_run(tmp_path, run.outdir)


@pytest.mark.parametrize(("every", "step"), [(("--checkpoint-every", 1), 1), ((), STEPS)])
def test_weights_that_are_no_numbers_are_never_saved(every, step, whole, tmp_path, monkeypatch):
    # A finite loss may have a gradient that is none; the loss tells only a step later, and the last
    # step of an epoch has no later one.
    run = whole("plain")
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


def test_an_outdir_that_was_moved_can_be_resumed(whole, tmp_path):
    run = whole("plain")
    with pytest.MonkeyPatch.context() as patch:
        after_step(patch, STEPS + 1, crash)
        with pytest.raises(CrashError):
            train.main(run.argv(tmp_path / "first"))
    shutil.move(tmp_path / "first", tmp_path / "second")
    resume(run, tmp_path / "second")
    assert_same_run(tmp_path / "second", run.outdir)
