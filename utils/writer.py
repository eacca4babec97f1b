"""Writing masks behind the device: encoding runs in threads while the next batch is predicted."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from utils.masks import Palette, save_mask

MAX_PENDING = 64  # masks that wait in memory before the caller has to wait


class MaskWriter:
    """A context that writes palette PNGs in threads; leaving it waits for all of them.

    Args:
        palette: one RGB colour per index.
        threads: encoding threads; zlib leaves the interpreter lock free.
    """

    def __init__(self, palette: Palette, threads: int = 2) -> None:
        self._palette = palette
        self._pool = ThreadPoolExecutor(threads)
        self._pending: deque[Future] = deque()

    def write(self, path: Path, mask: np.ndarray) -> None:
        """Queue an (H, W) uint8 map of indices.

        Raises:
            UserError: an earlier mask could not be written.
        """
        self._pending.append(self._pool.submit(save_mask, path, mask, self._palette))
        while len(self._pending) > MAX_PENDING or (self._pending and self._pending[0].done()):
            self._pending.popleft().result()

    def __enter__(self) -> "MaskWriter":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            for future in self._pending:
                future.result()


def write_both_dates(
    writer: MaskWriter, folder: Path
) -> Callable[[list[str], torch.Tensor, torch.Tensor], None]:
    """Return a callback that queues a batch's maps as ``folder/{im1,im2}/<name>.png``."""

    def on_batch(names: list[str], pred1: torch.Tensor, pred2: torch.Tensor) -> None:
        for name, mask1, mask2 in zip(names, pred1.numpy(), pred2.numpy(), strict=True):
            writer.write(folder / "im1" / f"{name}.png", mask1)
            writer.write(folder / "im2" / f"{name}.png", mask2)

    return on_batch
