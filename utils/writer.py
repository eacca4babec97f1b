"""Writing masks behind the device: encoding runs in threads while the next batch is predicted."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from utils.masks import CHANGE_MASKS, Palette, save_change_mask, save_mask

MAX_PENDING = 32  # pairs that wait in memory before the caller has to wait


class MaskWriter:
    """A context that writes PNGs in threads; leaving it waits for all of them.

    Args:
        folder: gets ``{im1,im2}/<name>.png``, or ``change/<name>.png``.
        palette: one RGB colour per index; None for change masks, which become grey, 0 and 255.
        when_written: told the name of each pair whose masks are in place, from a thread.
        threads: encoding threads; zlib leaves the interpreter lock free.
    """

    def __init__(
        self,
        folder: Path,
        palette: Palette | None,
        when_written: Callable[[str], None] = lambda name: None,
        threads: int = 2,
    ) -> None:
        self._folder = Path(folder)
        self._palette = palette
        self._when_written = when_written
        self._pool = ThreadPoolExecutor(threads)
        self._pending: deque[Future] = deque()

    def write(self, names: list[str], *maps: torch.Tensor) -> None:
        """Queue a batch's maps, of both dates or of change: (N, H, W) uint8, on the CPU.

        Raises:
            UserError: an earlier mask could not be written.
        """
        for name, *masks in zip(names, *(pred.numpy() for pred in maps), strict=True):
            self._pending.append(self._pool.submit(self._write_pair, name, *masks))
        while len(self._pending) > MAX_PENDING or (self._pending and self._pending[0].done()):
            self._pending.popleft().result()

    def _write_pair(self, name: str, *masks: np.ndarray) -> None:
        if self._palette is None:
            save_change_mask(self._folder / CHANGE_MASKS / f"{name}.png", *masks)
        else:
            for date, mask in zip(("im1", "im2"), masks, strict=True):
                save_mask(self._folder / date / f"{name}.png", mask, self._palette)
        self._when_written(name)

    def __enter__(self) -> "MaskWriter":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            for future in self._pending:
                future.result()
