"""The files of one training run: its best checkpoint and the one to resume from."""

import contextlib
from pathlib import Path
from typing import Any

from utils.checkpoint import save_checkpoint


class RunFiles:
    """Keeps ``<prefix>_<score>.pth``, the best of this run, and ``<prefix>_latest.pth``.

    Args:
        folder: where checkpoints go.
        prefix: ``<model>_<backbone>``.
        best: the best so far, when a run is resumed.
    """

    def __init__(self, folder: Path, prefix: str, best: Path | None = None) -> None:
        self.folder = Path(folder)
        self.prefix = prefix
        self.best = best

    @property
    def latest(self) -> Path:
        """The checkpoint to resume from."""
        return self.folder / f"{self.prefix}_latest.pth"

    def save_latest(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint to resume from."""
        save_checkpoint(self.latest, state)

    def save_best(self, state: dict[str, Any], score: float) -> Path:
        """Save a new best; this run's older one goes after the newer is safely on disk.

        A file of another run is never replaced: an equal score gets a number behind it.

        Args:
            state: as `utils.checkpoint.save_checkpoint` takes it.
            score: fraction; the file name shows it in percent.
        """
        path = self._free_path(f"{self.prefix}_{100 * score:.2f}")
        save_checkpoint(path, state)
        if self.best is not None and self.best != path:
            with contextlib.suppress(FileNotFoundError):
                self.best.unlink()
        self.best = path
        return path

    def _free_path(self, stem: str) -> Path:
        path = self.folder / f"{stem}.pth"
        number = 2
        while path.exists() and path != self.best:
            path = self.folder / f"{stem}-{number}.pth"
            number += 1
        return path
