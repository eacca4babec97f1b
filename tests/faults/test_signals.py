"""A run that is signalled saves within one step; one and several processes."""

import os
import signal
import time
from collections.abc import Iterator

import pytest
import torch

import train
from tests.helpers.faults import before_prediction, before_step
from tests.helpers.processes import (
    ended,
    eventually,
    heed_signals,
    processes_with,
    start_script,
    workers_of,
)
from tests.helpers.runs import (
    STEPS,
    Run,
    assert_same_run,
    best_files,
    csv_rows,
    latest_file,
    resume,
    train_options,
)
from utils.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, InterruptionError
from utils.signals import STOP_SIGNALS, StopRequest, heeded_signals
from utils.tensor_files import read_checkpoint

slow = pytest.mark.slow
STATUS = {getattr(signal, name): EXIT_PREEMPTED for name in STOP_SIGNALS}
STATUS[signal.SIGINT] = EXIT_INTERRUPTED


@pytest.fixture(autouse=True)
def _heed_signals() -> Iterator[None]:
    before = heed_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


# --- one process ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (signal.SIGTERM, 2),
        (signal.SIGUSR1, 4),
        pytest.param(signal.SIGHUP, 1, marks=slow),
        pytest.param(signal.SIGQUIT, 3, marks=slow),
        (signal.SIGINT, 5),
    ],
)
def test_a_signal_saves_within_one_step(number, step, fcn_run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(InterruptionError) as stop:
        before_step(patch, step, lambda: os.kill(os.getpid(), number))
        train.main(fcn_run.argv(tmp_path))
    assert stop.value.status == STATUS[number]
    assert str(latest_file(tmp_path)) in str(stop.value)
    state = read_checkpoint(latest_file(tmp_path))["training"]
    assert (state["epoch"] - 1) * STEPS + state["step"] == step
    resume(fcn_run, tmp_path)
    assert_same_run(tmp_path, fcn_run.outdir)


@pytest.mark.parametrize(
    ("variant", "epoch", "steps"),
    [
        pytest.param("plain", 1, STEPS, marks=slow),
        ("plain", 2, STEPS),
        ("leftovers", 1, 1),
    ],
)
def test_a_signal_in_validation_does_not_wait_for_its_end(
    variant, epoch, steps, whole_run, tmp_path
):
    run, first = whole_run(variant), 4 * (epoch - 1) + 1  # of four batches an epoch
    send = before_prediction(first, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with send as predicted, pytest.raises(InterruptionError):
        train.main(run.argv(tmp_path, "--val-batch-size", 1))
    assert len(predicted) == first
    state = read_checkpoint(latest_file(tmp_path))["training"]
    assert (state["epoch"], state["step"], state["validated"]) == (epoch, steps, False)
    assert len(state["rows"]) == epoch - 1
    resume(run, tmp_path)
    assert_same_run(tmp_path, run.outdir)


def signal_in_second_step(number: int, to_group: bool = False) -> None:
    """Let a script send a signal to itself, or to the reader processes as well."""

    def act() -> None:
        os.kill(0 if to_group else os.getpid(), number)
        time.sleep(0.5 * to_group)

    before_step(pytest.MonkeyPatch(), 2, act)


def send_sigint() -> None:
    signal_in_second_step(signal.SIGINT)


def signal_group() -> None:
    signal_in_second_step(signal.SIGTERM, to_group=True)


@pytest.mark.parametrize(
    ("prepare", "variant", "status"),
    [
        (send_sigint, "plain", EXIT_INTERRUPTED),
        (signal_group, "worker", EXIT_PREEMPTED),  # what launchers, `timeout` and schedulers send
    ],
)
def test_a_signalled_script_says_how_to_go_on(prepare, variant, status, whole_run, tmp_path):
    outdir, run = tmp_path / "out", whole_run(variant)
    with ended(start_script("train.py", run.argv(outdir), tmp_path / "printed", prepare)) as child:
        assert child.wait() == status, child.err
    (line,) = child.error_lines
    assert line.startswith("error: asked to end in epoch 1, after step 2; the state is in ")
    assert line.endswith("--resume goes on")
    assert read_checkpoint(latest_file(outdir))["training"]["step"] == 2
    resume(run, outdir)
    assert_same_run(outdir, run.outdir)


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
    torch.optim.Adam.__init__ = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_before_the_first_step_ends_a_script_as_any_program(sample_root, tmp_path):
    argv = train_options(sample_root, tmp_path / "out")
    printed = tmp_path / "printed"
    with ended(start_script("train.py", argv, printed, send_sigterm_before_training)) as child:
        assert child.wait() == -signal.SIGTERM  # which a shell shows as 143
    assert not latest_file(tmp_path / "out").exists()


# --- several processes ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_of_two(sample_root, tmp_path_factory) -> Run:
    """An uninterrupted run of two processes. Read only."""
    outdir = tmp_path_factory.mktemp("two")

    def argv(outdir, *more: object) -> list[str]:
        return train_options(sample_root, outdir, "--epochs", 5, "--nproc", 2, *more)

    finish(argv(outdir), outdir / "printed")
    return Run(outdir, argv)


def finish(argv: list[str], printed) -> None:
    with ended(start_script("train.py", argv, printed)) as child:
        assert child.wait() == 0, child.err


def test_a_signal_to_two_processes_before_the_first_step(sample_root, tmp_path):
    argv = train_options(sample_root, tmp_path / "out", "--nproc", 2)
    with ended(start_script("train.py", argv, tmp_path / "printed")) as child:
        eventually(lambda: workers_of(child), 120, 0.01)
        child.send(signal.SIGTERM)
        assert child.wait() == EXIT_PREEMPTED, child.err
    assert child.error_lines == ["error: ended by SIGTERM"]
    assert not latest_file(tmp_path / "out").exists()


@slow
@pytest.mark.parametrize("number", [*STATUS, signal.SIGKILL])
def test_a_signal_to_the_parent_of_two_processes(number, whole_of_two, tmp_path):
    run, outdir = whole_of_two, tmp_path / "out"
    argv = run.argv(outdir, "--checkpoint-every", 1)
    with ended(start_script("train.py", argv, tmp_path / "printed")) as child:
        eventually(lambda: latest_file(outdir).exists(), 120, 0.01)
        child.send(number)
        assert child.wait() == STATUS.get(number, -number), child.err
        eventually(lambda: processes_with(str(outdir)) == [], 60)
    if number != signal.SIGKILL:
        (line,) = child.error_lines
        assert line.startswith("error: asked to end in epoch")
    state = read_checkpoint(latest_file(outdir))["training"]
    assert (state["epoch"], state["step"]) < (5, STEPS)
    finish(run.argv(outdir, "--resume"), tmp_path / "resumed")
    assert_same_run(outdir, run.outdir)


def ignore_hangup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does


@slow
def test_two_processes_under_nohup_outlive_the_terminal(whole_of_two, tmp_path):
    run, outdir = whole_of_two, tmp_path / "out"
    argv = run.argv(outdir, "--checkpoint-every", 1)
    with ended(start_script("train.py", argv, tmp_path / "printed", ignore_hangup)) as child:
        eventually(lambda: latest_file(outdir).exists(), 120, 0.01)
        for process in (child.pid, *workers_of(child)):
            os.kill(process, signal.SIGHUP)
        assert child.wait() == 0, child.err
    assert_same_run(outdir, run.outdir)


@slow
def test_a_run_of_two_processes_goes_on_in_one(whole_of_two, tmp_path, sample_root):
    # Not in every bit: sums are taken in another order, and dropout is drawn by other processes.
    outdir = tmp_path / "out"
    argv = whole_of_two.argv(outdir, "--checkpoint-every", 1)
    with ended(start_script("train.py", argv, tmp_path / "printed")) as child:
        eventually(lambda: latest_file(outdir).exists(), 120, 0.01)
        child.send(signal.SIGTERM)
        assert child.wait() == EXIT_PREEMPTED
    train.main(train_options(sample_root, outdir, "--epochs", 5, "--resume"))
    assert [row["epoch"] for row in csv_rows(outdir)] == ["1", "2", "3", "4", "5"]
    assert len(best_files(outdir)) == 1
