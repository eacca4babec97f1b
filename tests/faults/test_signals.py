"""A run that is signalled saves within one step; one and several processes."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.helpers.interruptions import STEPS, Whole, before_step, resume, start

import engine.run
import train
from engine import training
from tests.helpers.processes import (
    ended,
    error_lines,
    eventually,
    heed_signals,
    processes_with,
    workers_of,
)
from tests.helpers.runs import assert_same_run, best_files, csv_rows, latest_file, train_options
from utils.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, InterruptionError
from utils.signals import STOP_SIGNALS, StopRequest, heeded_signals
from utils.tensor_files import read_checkpoint

# --- signals --------------------------------------------------------------------------------

STATUS = {
    signal.SIGTERM: EXIT_PREEMPTED,
    signal.SIGUSR1: EXIT_PREEMPTED,
    signal.SIGHUP: EXIT_PREEMPTED,
    signal.SIGQUIT: EXIT_PREEMPTED,
    signal.SIGINT: EXIT_INTERRUPTED,
}


@pytest.fixture(autouse=True)
def _heed_signals() -> Iterator[None]:
    before = heed_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (signal.SIGTERM, 2),
        (signal.SIGUSR1, 4),
        (signal.SIGHUP, 1),
        pytest.param(signal.SIGQUIT, 3, marks=pytest.mark.slow),
        (signal.SIGINT, 5),
    ],
)
def test_a_signal_saves_within_one_step(number, step, whole_run, tmp_path, monkeypatch):
    run = whole_run("plain")
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


@pytest.mark.parametrize(
    ("variant", "epoch", "steps"),
    [
        pytest.param("plain", 1, STEPS, marks=pytest.mark.slow),
        ("plain", 2, STEPS),
        ("leftovers", 1, 1),
    ],
)
def test_a_signal_in_validation_does_not_wait_for_its_end(
    variant, epoch, steps, whole_run, tmp_path, monkeypatch
):
    run = whole_run(variant)
    calls, predicted = [], []
    evaluate = training.evaluate

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
        patch.setattr(training, "evaluate", signalled)
        with pytest.raises(InterruptionError):
            train.main(run.argv(tmp_path, "--val-batch-size", 1))
    assert len(predicted) == 4 * (epoch - 1) + 1  # of four batches an epoch
    state = read_checkpoint(latest_file(tmp_path))["training"]
    assert (state["epoch"], state["step"], state["validated"]) == (epoch, steps, False)
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
def test_status_of_a_signalled_script(prepare, status, whole_run, tmp_path):
    outdir = tmp_path / "out"
    with ended(start(whole_run("plain").argv(outdir), tmp_path / "printed", prepare)) as child:
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


@pytest.mark.parametrize("name", STOP_SIGNALS)
def test_an_ignored_signal_stays_ignored(name):
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), number)
            assert stop.signal is None and number not in heeded_signals()
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)
    assert number in heeded_signals()


def send_sigterm_before_training() -> None:
    engine.run.find_resume = lambda *_: os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_before_the_first_step_ends_a_script_as_any_program(sample_root, tmp_path):
    argv = train_options(sample_root, tmp_path / "out")
    with ended(start(argv, tmp_path / "printed", send_sigterm_before_training)) as child:
        assert child.wait() == -signal.SIGTERM  # which a shell shows as 143
    assert not latest_file(tmp_path / "out").exists()


def signal_group() -> None:
    def act() -> None:
        os.killpg(0, signal.SIGTERM)
        time.sleep(0.5)  # the reader processes get it, too

    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 2, act)
        patch.undo = lambda: None


def test_a_signal_to_the_whole_group_saves_too(whole_run, tmp_path):
    # What launchers, `timeout` and schedulers send reaches the reader processes as well.
    outdir = tmp_path / "out"
    run = whole_run("worker")
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


def test_a_signal_to_two_processes_before_the_first_step(sample_root, tmp_path):
    argv = train_options(sample_root, tmp_path / "out", "--nproc", 2)
    with ended(start(argv, tmp_path / "printed")) as child:
        eventually(lambda: workers_of(child), 120, 0.01)
        child.send(signal.SIGTERM)
        assert child.wait() == EXIT_PREEMPTED, child.err
    assert error_lines(child) == ["error: ended by SIGTERM"]
    assert not latest_file(tmp_path / "out").exists()


def ignore_hangup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does


@pytest.mark.slow
def test_two_processes_under_nohup_outlive_the_terminal(whole_of_two, tmp_path):
    run, outdir = whole_of_two, tmp_path / "out"
    argv = run.argv(outdir, "--checkpoint-every", 1)
    with ended(start(argv, tmp_path / "printed", ignore_hangup)) as child:
        eventually(lambda: latest_file(outdir).exists(), 120, 0.01)
        for process in (child.pid, *workers_of(child)):
            os.kill(process, signal.SIGHUP)
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
