"""Several processes on torch.distributed: starting them, joining them, adding up over them."""

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from utils.errors import (
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    EXIT_USER_ERROR,
    InterruptionError,
    OptionError,
    UserError,
)
from utils.signals import heeded_signals

# Set for processes that `launch` started, to the launcher's number; they leave printing to it.
LAUNCHED = "SCD_LAUNCHED"

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)

GRACE_S = 30  # what a process has between a signal and its end by force

PEER_GRACE_S = 3  # by then the process that failed has ended, and the launcher knows the cause


class PeerError(UserError):
    """Another process of this run failed, was killed, or cannot be reached any more.

    Attributes:
        status: exit status of the process.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class World:
    """The processes that work together; a single one is a world of size 1.

    Attributes:
        rank: number of this process, 0 leads: it writes checkpoints and logs, and prints.
        size: number of processes on all nodes.
        device: this process's device.
        control: group for messages between hosts, beside the devices' own; None for size 1.
    """

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print on the leading process."""
        if self.leads:
            print(text, flush=True)

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all processes; every process must call it."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value, group=self.control if value.device.type == "cpu" else None)
        return value

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Return the mean of a tensor over all processes; every process must call it."""
        return self.sum(value) / self.size if self.size > 1 else value

    def any(self, flag: bool) -> bool:
        """Tell whether any process says yes, without waiting for devices; all must call it."""
        if self.size == 1:
            return flag
        value = torch.tensor(int(flag))
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self.control)
        return bool(value)

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value, in rank order; every process must call it."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def from_leader(self, value: Any) -> Any:
        """Return the leading process's value on all; every process must call it."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier(group=self.control)


def processes_to_start(nproc: int | None, device: str) -> int:
    """Return how many processes a script should start; 1 when it is to do the work itself.

    Under ``torchrun`` (or `launch`) it is 1; else ``--nproc``; else one per visible GPU.
    """
    if "RANK" in os.environ:
        return 1
    if nproc is not None:
        return nproc
    if device in ("auto", "cuda"):
        return max(1, torch.cuda.device_count())
    return 1


def run_script(
    script: str,
    argv: list[str] | None,
    nproc: int | None,
    device: str,
    work: Callable[[World], T],
    started: float | None = None,
) -> T | None:
    """Do a script's work in as many processes as there should be.

    Args:
        script: the script's file.
        argv: its options; None takes those of this process.
        nproc: processes asked for, or None.
        device: name of the device, or ``auto``.
        work: what each process does.
        started: what `utils.dist.start_time` says in these processes, too; None for now.

    Returns:
        What ``work`` returns; None when processes of their own did it.
    """
    processes = processes_to_start(nproc, device)
    if processes > 1:
        launch(script, argv, processes, started)
        return None
    with join_world(device) as world:
        return work(world)


def launch(
    script: str, argv: list[str] | None, processes: int, started: float | None = None
) -> None:
    """Run a script in several processes on this machine, through torch's elastic launcher.

    When one of them fails the others are ended.

    Raises:
        UserError: the first failure, if it was of that kind.
        InterruptionError: a signal ended the processes.
        PeerError: a process was killed, or failed otherwise.
    """
    os.environ[LAUNCHED] = str(os.getpid())
    os.environ[STARTED] = to_environment(time.perf_counter() if started is None else started)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    for name in ("torch.distributed.elastic", *logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):  # some of them have a level of their own
            logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="scd-launch-") as folder:
        try:
            _launch(script, sys.argv[1:] if argv is None else argv, processes, folder)
        finally:
            del os.environ[LAUNCHED], os.environ[STARTED]


def _launch(script: str, arguments: list[str], processes: int, folder: str) -> None:
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
        signals_to_handle=",".join(number.name for number in heeded_signals()),
        logs_specs=DefaultLogsSpecs(log_dir=folder),
    )
    try:
        elastic_launch(config, sys.executable)("-u", str(Path(script).resolve()), *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise PeerError(
                f"process {rank} was killed by {failure.signal_name()}; where nobody did it, the "
                "machine ran out of memory: use a smaller --batch-size or fewer --workers",
                128 - failure.exitcode,
            ) from None
        message = failure.message
        if not isinstance(message, dict):  # no user's error: the process has shown its traceback
            raise PeerError(
                f"process {rank} failed; its traceback is above", failure.exitcode
            ) from None
        message = message["message"]
        if failure.exitcode == EXIT_USER_ERROR:
            raise UserError(message) from None
        if failure.exitcode in (EXIT_PREEMPTED, EXIT_INTERRUPTED):
            raise InterruptionError(message, failure.exitcode) from None
        raise PeerError(message, failure.exitcode) from None
    except SignalException as error:
        status = EXIT_INTERRUPTED if error.sigval == signal.SIGINT else EXIT_PREEMPTED
        message = _reported_failure(Path(folder)) or f"ended by {error.sigval.name}"
        raise InterruptionError(message, status) from None


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


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """Join the processes of this run for the length of the block.

    Under a launcher (RANK and WORLD_SIZE are set) the process takes the GPU of its local rank, and
    messages go over NCCL; on CPUs over gloo. Alone, it is a world of size 1 without any messages.

    Raises:
        OptionError: no such device, or more processes than GPUs.
        PeerError: another process is gone.
    """
    if "RANK" not in os.environ:
        yield World(0, 1, choose_device(device))
        return
    if LAUNCHED in os.environ:
        _end_with_launcher(int(os.environ[LAUNCHED]))
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
        # Addresses of processes that ended before a restart may still be in it.
        store = dist.PrefixStore(name_meeting(store, rank, size), store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        control = dist.new_group(backend="gloo", timeout=TIMEOUT)
        yield World(dist.get_rank(), dist.get_world_size(), chosen, control)
    except RuntimeError as error:
        if not _is_lost_contact(error):
            raise
        # The process that failed tells why. Until the launcher ends this one, leave that to it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(PEER_GRACE_S)
        raise PeerError(
            "lost contact with another process of this run, which failed or was killed"
        ) from error
    # After a failure peers may be gone; the launcher ends this process either way.
    dist.destroy_process_group()


def _is_lost_contact(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo/" in str(error)


def _end_with_launcher(launcher: int) -> None:
    """Ask this process to end once its launcher has been killed, as nobody else would then."""

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


PAUSE_S = 0.05  # between two looks for questions


def name_meeting(store: dist.Store, rank: int, size: int) -> str:
    """Return a name that all processes of this start get, and those of no earlier one got.

    The launchers' store outlives a restart, and with it what ended processes have written there.
    ``TORCHELASTIC_RESTART_COUNT`` does not tell the starts apart: each launcher counts the failures
    of its own processes alone. So every process asks under a name that it has just drawn, and the
    first answers to that name with its own; an answer to an earlier question is never read. The
    first goes on answering until all have heard it, as a question may have been an earlier one.

    Args:
        store: that of all processes; it decides how long to wait for one that does not come.
        rank: of this process.
        size: number of processes; each must call this.

    Raises:
        torch.distributed.DistError: a process did not come, or the store is gone.
    """
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"meeting/question/{rank}", own)
        name = store.get(f"meeting/answer/{own}").decode()
        store.set(f"meeting/heard/{name}/{rank}", "1")
        return name
    deaf = list(range(1, size))
    while deaf:
        for other in deaf:
            asked = store.get(f"meeting/question/{other}").decode()
            store.set(f"meeting/answer/{asked}", own)
        deaf = [other for other in deaf if not store.check([f"meeting/heard/{own}/{other}"])]
        time.sleep(PAUSE_S if deaf else 0)
    return own


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """Return the device of ``--device``; ``auto`` is CUDA where there is any, else the CPU.

    Args:
        name: of the option.
        local_rank: number of this process among those of its machine; it takes the GPU of this
            number and never touches another. None for a process that works alone.

    Raises:
        OptionError: no such device in this machine or in this build of torch, or more processes
            than GPUs.
    """
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        name = "cuda"
    try:
        device = torch.device(name)
        if device.type == "cuda" and local_rank is not None:
            device = _own_gpu(local_rank)
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


STARTED = "SCD_STARTED"  # set for processes that a script starts: seconds since the epoch


def start_time() -> float:
    """Return the reading of `time.perf_counter` when the user started the script.

    Call it first. In a process that `utils.dist.launch` started it is the launcher's start.
    """
    now = time.perf_counter()
    started = os.environ.get(STARTED)
    return now - max(0.0, time.time() - float(started)) if started else now


def to_environment(started: float) -> str:
    """Return the value of `STARTED` for a reading of this process's `time.perf_counter`."""
    # Nothing says that two processes read the same from it, so the time of day is handed on.
    return repr(time.time() - (time.perf_counter() - started))
