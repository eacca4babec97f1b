"""Processes that work together on torch.distributed.

Every function but `launch` and `run_script` is the identity in a process that works alone.
"""

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from utils.cli import STARTED, WHY_THREADS
from utils.errors import (
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    EXIT_USER_ERROR,
    InterruptionError,
    OptionError,
    UserError,
)
from utils.locks import exclusive
from utils.machine import choose_threads, processes_here
from utils.signals import heeded_signals, when_gone

LAUNCHED = "SCD_LAUNCHED"  # set for processes that end with another: that one's process number
T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)
SILENT_S, AGAIN_S = 10, 60  # of waiting for partners until a word, and the next
GRACE_S = 30  # what a process has between a signal and its end by force
PEER_GRACE_S = 3  # by then the process that failed has ended, and the launcher knows the cause


class PeerError(UserError):
    """Another process of this run failed, was killed, or cannot be reached any more."""

    status = 1


def rank() -> int:
    """Return the number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Return the number of processes on all nodes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Tell whether this is process 0, which prints and writes checkpoints and logs."""
    return rank() == 0


def leads_node() -> bool:
    """Tell whether this process is the first of its machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def print0(text: str) -> None:
    """Print on process 0 alone."""
    if is_main():
        print(text, flush=True)


def all_sum(value: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over all processes; every process must call it."""
    if size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def all_mean(value: torch.Tensor) -> torch.Tensor:
    """Return the mean of a tensor over all processes; every process must call it."""
    return all_sum(value) / size() if size() > 1 else value


def any_rank(flag: bool) -> bool:
    """Tell whether any process says yes, without waiting for devices; all must call it."""
    return bool(all_sum(torch.tensor(int(flag))))


def gather(value: Any) -> list[Any]:
    """Return every process's value, in rank order; every process must call it."""
    values = [value] * size()
    if size() > 1:
        dist.all_gather_object(values, value)
    return values


def broadcast(value: Any) -> Any:
    """Return process 0's value on all; every process must call it."""
    if size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def barrier() -> None:
    """Wait until every process is here."""
    any_rank(False)


@contextmanager
def sole_writer(lock: Path, what: str) -> Iterator[None]:
    """Be the one run that writes ``what``, by `exclusive`; every process must call it."""
    with exclusive(lock, what) if is_main() else contextlib.nullcontext():
        yield
        barrier()  # what the others write is written


def start_time() -> float:
    """Return the `time.time` at which the user started the script."""
    return float(os.environ.get(STARTED, time.time()))


def choose_device(name: str) -> torch.device:
    """Return the device of ``--device``; ``auto`` is CUDA where there is any, else the CPU.

    Under a launcher a process takes the GPU of its local rank and never touches another. An
    `OptionError` where there is no such device, or are more processes than GPUs.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and "RANK" in os.environ:
            device = _own_gpu(int(os.environ.get("LOCAL_RANK", "0")))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OptionError(
            f"--device {name}: not usable here ({str(error).splitlines()[0]}); try --device cpu"
        ) from error
    return device


def _own_gpu(local_rank: int) -> torch.device:
    visible = torch.cuda.device_count()
    if visible and local_rank >= visible:
        raise OptionError(
            f"process {local_rank} of this machine has no GPU, {visible} are visible; start fewer "
            "processes"
        )
    device = torch.device("cuda", local_rank)
    # Before anything is put on a GPU: the first use of one takes memory there until the end.
    torch.cuda.set_device(device)
    return device


def run_script(
    script: str,
    argv: list[str],
    nproc: int | None,
    threads: int | None,
    device: str,
    work: Callable[[torch.device], T],
) -> T | None:
    """Do a script's work in as many processes as there should be.

    Under torchrun, or in a process that `launch` started, it is this one; else ``nproc``, and
    without that one per visible GPU. Each computes in ``threads``, or as `choose_threads` says.
    Returns what ``work`` returns; None when processes of their own did it.
    """
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    processes = processes_here() if "RANK" in os.environ else nproc or max(1, gpus)
    if not threads:
        threads, why = choose_threads(torch.get_num_threads(), processes)
        os.environ.setdefault(WHY_THREADS, why)
    if processes > 1 and "RANK" not in os.environ:
        launch(script, argv, processes, threads)
        return None
    torch.set_num_threads(threads)
    with joined(device) as own:
        return work(own)


@contextmanager
def joined(device: str) -> Iterator[torch.device]:
    """Join the processes of this run for the length of the block, and yield the own device.

    Under a launcher (RANK and WORLD_SIZE are set) GPUs exchange tensors over NCCL, CPUs over gloo;
    alone nothing is started. A `PeerError` where another process is gone.
    """
    if LAUNCHED in os.environ:
        when_gone(int(os.environ[LAUNCHED]), _end_gently)
    chosen = choose_device(device)
    if "RANK" not in os.environ:
        yield chosen
        return
    # Numbers and objects go from host to host over gloo, without waiting for the GPUs' work.
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    try:
        with _saying_who_is_missing():
            dist.init_process_group(backend, timeout=TIMEOUT)
        yield chosen
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo/" not in str(error):
            raise
        # The process that failed tells why. Until the launcher ends this one, leave that to it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(PEER_GRACE_S)
        raise PeerError(
            "lost contact with another process of this run, which failed or was killed"
        ) from error
    # After a failure peers may be gone; the launcher ends this process either way.
    dist.destroy_process_group()


@contextmanager
def _saying_who_is_missing() -> Iterator[None]:
    """Say from time to time, while the block lasts, what this process waits for."""
    done, own = threading.Event(), os.environ

    def say() -> None:
        pause_s = SILENT_S
        while not done.wait(pause_s):
            print(
                f"process {own['RANK']} of {own.get('WORLD_SIZE')}, counted from 0, waits for the "
                f"others at {own.get('MASTER_ADDR')}:{own.get('MASTER_PORT')}",
                file=sys.stderr,
                flush=True,
            )
            pause_s = AGAIN_S

    threading.Thread(target=say, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def launch(script: str, argv: list[str], processes: int, threads: int) -> None:
    """Run a script in several processes of some threads on this machine, as torchrun does.

    When one of them fails the others are ended.

    Raises:
        UserError: the first failure, if it was of that kind.
        InterruptionError: a signal ended the processes.
        PeerError: a process was killed, or failed otherwise.
    """
    before = dict(os.environ)
    os.environ |= {LAUNCHED: str(os.getpid()), STARTED: repr(start_time())}
    os.environ["OMP_NUM_THREADS"] = str(threads)
    for name in ("torch.distributed.elastic", *logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):  # some of them have a level of their own
            logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="scd-launch-") as folder:
        options = ["--standalone", f"--nproc-per-node={processes}", f"--log-dir={folder}"]
        options += ["--nnodes=1", "--max-restarts=0"]  # whatever PET_… variables say
        heeded = ",".join(number.name for number in heeded_signals())
        options += ["--monitor-interval=0.2", f"--signals-to-handle={heeded}"]
        try:
            torchrun.run(torchrun.parse_args([*options, "--", str(Path(script).resolve()), *argv]))
        except ChildFailedError as error:
            raise _first_failure(error) from None
        except SignalException as error:
            status = EXIT_INTERRUPTED if error.sigval == signal.SIGINT else EXIT_PREEMPTED
            message = _reported_failure(Path(folder)) or f"ended by {error.sigval.name}"
            raise InterruptionError(message, status) from None
        finally:
            os.environ.clear()
            os.environ.update(before)


def _first_failure(error: ChildFailedError) -> UserError:
    number, failure = error.get_first_failure()
    if failure.exitcode < 0:
        return PeerError(
            f"process {number} was killed by {failure.signal_name()}; where nobody did it, the "
            "machine ran out of memory: use a smaller --batch-size or fewer --workers",
            128 - failure.exitcode,
        )
    if not isinstance(failure.message, dict):  # no user's error: the process showed its traceback
        return PeerError(f"process {number} failed; its traceback is above", failure.exitcode)
    message = failure.message["message"]
    if failure.exitcode == EXIT_USER_ERROR:
        return UserError(message)
    if failure.exitcode in (EXIT_PREEMPTED, EXIT_INTERRUPTED):
        return InterruptionError(message, failure.exitcode)
    return PeerError(message, failure.exitcode)


def _reported_failure(folder: Path) -> str | None:
    """Return what a process of the lowest rank handed over with `report_failure`, if any did."""
    for path in sorted(folder.rglob("error.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return json.loads(path.read_text(encoding="utf-8"))["message"]["message"]
    return None


def report_failure(message: str) -> bool:
    """Hand a user's error to the launcher that started this process; False if none did."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if LAUNCHED not in os.environ or not path:
        return False
    details = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
    try:
        Path(path).write_text(json.dumps({"message": details}), encoding="utf-8")
    except OSError:  # the launcher is gone
        return False
    return True


def _end_gently() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(1)
