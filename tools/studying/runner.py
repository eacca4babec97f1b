"""Runs stages in processes of their own, several at a time, each after those that it takes from."""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from tools.studying.stages import Stage, code_version
from utils.dist import GRACE_S, LAUNCHED
from utils.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, InterruptionError
from utils.locks import LOCK, holder
from utils.machine import usable_cores
from utils.signals import StopRequest

PAUSE_S = 0.1  # between two looks at the processes
MOST_CORES = 1024


@dataclass(frozen=True)
class Slot:
    """A place for one process at a time."""

    threads: int
    gpu: str  # for CUDA_VISIBLE_DEVICES; "" without

    @property
    def environment(self) -> dict[str, str]:
        """What a process in it is told; it ends by itself once this one is gone."""
        own = {LAUNCHED: str(os.getpid()), "OMP_NUM_THREADS": str(self.threads)}
        return {**os.environ, **own, **({"CUDA_VISIBLE_DEVICES": self.gpu} if self.gpu else {})}


def find_slots(jobs: int | None) -> list[Slot]:
    """Return ``jobs`` places, or else one per visible GPU; the cores are divided among them."""
    gpus = [str(i) for i in range(torch.cuda.device_count())]
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    gpus = named[: len(gpus)] if named[0] else gpus
    count = jobs or max(1, len(gpus))
    threads = usable_cores(count, MOST_CORES)
    return [Slot(threads, gpus[i % len(gpus)] if gpus else "") for i in range(count)]


class _Process:
    """A stage at work."""

    def __init__(self, stage: Stage, slot: Slot) -> None:
        self.stage, self.slot = stage, slot
        self._code, self._started = code_version(), time.monotonic()
        self._command = stage.command(slot.threads)
        stage.folder.mkdir(parents=True, exist_ok=True)
        with stage.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {shlex.join(self._command)}\n")
            log.flush()
            # Of a group of its own: this program hears Ctrl-C, and passes it on.
            self.child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=slot.environment,
                start_new_session=True,
            )

    def ended(self) -> bool:
        """Tell whether it is over, and if all went well write that down."""
        if self.child.poll() is None:
            return False
        if self.child.returncode == 0:
            self.stage.finish(self._command, time.monotonic() - self._started, self._code)
        return True

    @property
    def failure(self) -> str:
        """Why it failed, in a line; "" where it did not."""
        if self.child.returncode == 0:
            return ""
        said = self.stage.log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = [line.split("\r")[-1].strip() for line in said if line.strip()][-1]
        if last.startswith("$") or self.child.returncode < 0:  # it said nothing of its end
            last = f"ended with status {self.child.returncode}"
        return f"{last.removeprefix('error: ')} ({self.stage.log})"


class Runner:
    """Iterates over the stages ``waiting`` as they end; a context that leaves no process.

    Of one that fails there is a line at once; it and those that take from it are in ``failed``, by
    digest, and the others go on. Iterating raises an `InterruptionError` once a signal came.
    """

    def __init__(self, stages: Sequence[Stage], slots: Sequence[Slot]) -> None:
        self.failed: dict[str, str] = {}
        self.waiting = [stage for stage in dict.fromkeys(stages) if not stage.record]
        self._slots = list(slots)
        self._running: list[_Process] = []
        self._stop = StopRequest()

    def __enter__(self) -> "Runner":
        self._stop.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        children = [process.child for process in self._running]
        for child in children:
            child.terminate()  # it saves its state
        for child in children:
            try:
                child.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._stop.__exit__()

    def __iter__(self) -> Iterator[Stage]:
        while self.waiting or self._running:
            yield from self._start_ready()
            for process in [process for process in self._running if process.ended()]:
                self._running.remove(process)
                self._slots.append(process.slot)
                if process.failure:
                    self.failed[process.stage.digest] = process.failure
                    tqdm.write(f"failed: {process.stage.title}: {process.failure}")
                yield process.stage
            if self._stop.signal is not None:
                by_user = self._stop.signal == signal.SIGINT
                raise InterruptionError(
                    f"asked to end, {len(self.waiting) + len(self._running)} stages are to do; "
                    "the same command goes on",
                    EXIT_INTERRUPTED if by_user else EXIT_PREEMPTED,
                )
            time.sleep(PAUSE_S)

    def _start_ready(self) -> Iterator[Stage]:
        """Start what can be; yield what cannot any more, as a stage that it takes from failed."""
        for stage in list(self.waiting):
            if any(each.digest in self.failed for each in stage.inputs):
                self.failed[stage.digest] = ""
                self.waiting.remove(stage)
                yield stage
            elif self._slots and all(each.record for each in stage.inputs) and _is_free(stage):
                self.waiting.remove(stage)
                self._running.append(_Process(stage, self._slots.pop(0)))


def _is_free(stage: Stage) -> bool:
    """Tell whether no process of a killed study is still at work there; it ends within seconds."""
    return not any(holder(lock) for lock in stage.folder.rglob(f"*{LOCK}"))
