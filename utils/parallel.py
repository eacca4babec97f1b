"""Work on many files in several processes."""

import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor

from utils.errors import UserError
from utils.memory import keep_freed_memory


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
    keep_freed_memory()  # of every mask: faulting it in again took a fourth of the time
