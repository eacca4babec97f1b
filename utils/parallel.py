"""Work on many files in several processes."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor

from utils.errors import UserError
from utils.signals import when_gone


class ParallelMap:
    """``work(item)`` for each item in order, from a pool of processes where it pays.

    Iterating raises what ``work`` raises, and `UserError` where a process was killed.
    """

    def __init__(self, work: Callable, items: Sequence, workers: int) -> None:
        self._work, self._items = work, items
        self._workers = min(workers, len(items) // 8)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator:
        if self._workers < 2:
            yield from map(self._work, self._items)
            return
        # Forked workers share the imported libraries; they decode, and touch no thread of torch.
        method = "fork" if sys.platform == "linux" else "spawn"
        context = multiprocessing.get_context(method)
        pool = ProcessPoolExecutor(self._workers, context, _start_worker)
        chunk = max(1, min(16, len(self) // (4 * self._workers)))
        try:
            yield from pool.map(self._work, self._items, chunksize=chunk)
        except BrokenExecutor as error:
            raise UserError(
                f"one of {self._workers} worker processes was killed, as happens where memory runs "
                "out; free some, or start fewer with --workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to report
    when_gone(os.getppid(), lambda: os._exit(1))
    keep_freed_memory()  # of every mask: faulting it in again took a fourth of the time


# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER_TRIM = -1  # 2^31 - 1 would give back what lies free above 2 GB
# Where glibc's thresholds end up by themselves in a program that frees large blocks.
_USUAL = ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 64 << 20), (_MMAP_MAX, 65536))


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory, so that each step finds the pages of the last one.

    By default a large tensor's memory goes back to the system when it is freed, and comes back
    page by page, zeroed: on a CPU that took a seventh of a training step (`docs/performance.md`).
    The process holds its peak memory until it ends. False, and nothing changed, without glibc.
    """
    return _set((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER_TRIM))


def give_back_freed_memory() -> bool:
    """Undo `keep_freed_memory`, and give back what is free, as a program without it would have."""
    done = _set(*_USUAL)
    if done:
        ctypes.CDLL(None).malloc_trim(0)
    return done


def _set(*values: tuple[int, int]) -> bool:
    library = None if sys.platform == "win32" else ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    for parameter, value in values:
        library.mallopt(parameter, value)
    return True
