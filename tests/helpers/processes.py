"""Scripts in processes of their own, forked from a server that has torch loaded: a quick start.

A real process takes real signals and leaves a real exit status; the functions here wait for it with
a limit, and end its whole process group when a test fails.
"""

import contextlib
import importlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from utils import cli
from utils.signals import STOP_SIGNALS

REPO = Path(__file__).resolve().parents[2]
LIMIT_S = 240  # a busy machine may take this long; nothing should
SECONDS_TO_END = 20  # from the failure on; a hanging peer would take the 30 minutes of a time-out

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["torch", "timm", "albumentations", "tqdm", "torch.distributed.launcher.api"]
)


def heed_signals() -> dict[int, Any]:
    """Take the signals that the tests were started to ignore; return what was done before."""
    before = {}
    for number in (getattr(signal, name) for name in STOP_SIGNALS):
        if signal.getsignal(number) == signal.SIG_IGN:
            by_default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            before[number] = signal.signal(number, by_default)
    return before


def _child(work: Callable, arguments: tuple, folder: Path, env: dict[str, str]) -> None:
    os.setpgrp()
    heed_signals()
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ.update(env)
    torch.set_num_threads(1)
    work(*arguments)


def _script(name: str, argv: list[str], prepare: Callable | None) -> None:
    sys.argv = [name, *argv]
    script = importlib.import_module(name.removesuffix(".py").replace("/", "."))
    if prepare:
        prepare()
    cli.run(script.main)


class Child:
    """A forked process and what it printed."""

    def __init__(
        self, folder: Path, work: Callable, *arguments: Any, env: dict[str, str] | None = None
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        env = {"OMP_NUM_THREADS": "1", **(env or {})}
        self._process = _context.Process(target=_child, args=(work, arguments, folder, env))
        self._process.start()
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, limit_s: float = LIMIT_S) -> int:
        """Return the exit status; minus the signal's number for a killed process."""
        self._process.join(limit_s)
        if self._process.exitcode is None:
            self.end()
            raise AssertionError(f"no end within {limit_s} s\n{self.out}\n{self.err}")
        return self._process.exitcode

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self) -> None:
        """Kill what is left of its process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.join(10)

    @property
    def out(self) -> str:
        return self._text("stdout")

    @property
    def err(self) -> str:
        return self._text("stderr")

    @property
    def error_lines(self) -> list[str]:
        """What it said on stderr, progress bars left out."""
        lines = self.err.replace("\r", "\n").split("\n")
        return [line for line in lines if line.strip() and "%|" not in line and "ch/s" not in line]

    def _text(self, name: str) -> str:
        path = self.folder / name
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


@contextlib.contextmanager
def ended(child: Any) -> Iterator[Any]:
    """End a child when the block is left, whatever happened."""
    try:
        yield child
    finally:
        child.end()


def start_script(
    name: str,
    argv: list[str],
    folder: Path,
    prepare: Callable | None = None,
    env: dict[str, str] | None = None,
) -> Child:
    """Start ``python name argv``; ``prepare`` is a function of a module that runs before main."""
    return Child(folder, _script, name, argv, prepare, env=env)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def rank_envs(size: int) -> list[dict[str, str]]:
    """What torchrun sets for each of its processes."""
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **shared} for rank in range(size)]


@contextlib.contextmanager
def started_ranks(
    name: str, argvs: list[list[str]], folder: Path, prepare: Callable | None = None
) -> Iterator[list[Child]]:
    """Start a script in processes that find each other over gloo, each with its own options."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(ended(start_script(name, argv, folder / f"rank{i}", prepare, env)))
            for i, (argv, env) in enumerate(zip(argvs, rank_envs(len(argvs)), strict=True))
        ]


def run_ranks(size: int, folder: Path, work: Callable, *arguments: Any) -> None:
    """Call ``work(rank, *arguments)`` in ``size`` processes that find each other over gloo."""
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(ended(Child(folder / f"rank{i}", work, i, *arguments, env=env)))
            for i, env in enumerate(rank_envs(size))
        ]
        for child in children:
            assert child.wait() == 0, child.err


def processes_with(text: str) -> list[int]:
    """Processes whose command line holds a text, such as the path of an outdir."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
            if text.encode() in words and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


def workers_of(child: Child | subprocess.Popen) -> list[int]:
    """Processes that the launcher started, by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
            environment = (folder / "environ").read_bytes().split(b"\0")
            ranks = [int(word[5:]) for word in environment if word.startswith(b"RANK=")]
            if int(parent) == child.pid and ranks:
                found[ranks[0]] = int(folder.name)
    return [found[rank] for rank in sorted(found)]


def eventually(condition: Callable[[], Any], limit_s: float = 60, pause_s: float = 0.05) -> Any:
    """Return the first true value of a condition; fail after a limit."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(pause_s)
    raise AssertionError(f"not within {limit_s} s: {condition}")
