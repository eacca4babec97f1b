"""The checkpoints of one training run: its best, its latest, and what it takes over to go on."""

import contextlib
import filecmp
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.errors import CheckpointError
from utils.files import atomic_path, remove_leftovers


class RunFiles:
    """Keeps ``<prefix>_<score>.pth``, the best of this run, and ``<prefix>_latest.pth``.

    Args:
        folder: where checkpoints go.
        prefix: ``<model>_<backbone>``.

    Attributes:
        best: the best checkpoint so far.
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        self.folder = Path(folder)
        self.prefix = prefix
        self.best: Path | None = None

    @property
    def latest(self) -> Path:
        """The checkpoint to resume from."""
        return self.folder / f"{self.prefix}_latest.pth"

    def remove_leftovers(self) -> None:
        """Remove half-written checkpoints that a killed run of this name has left."""
        # Not "_*": hrnet_w18 would take the file that a run of hrnet_w18_small is writing just now.
        for name in ("latest", "[-0-9]*"):
            remove_leftovers(self.folder, 0, f"{self.prefix}_{name}.pth")

    def settle_interrupted_save(self, saved: Mapping[str, Any], resume: str) -> None:
        """Leave one best file where a run ended between writing its best and its latest.

        The latest then knows nothing of the newer best, whose epoch the run is about to make again.
        That file is removed where the older best is still there; else the next best replaces it.
        A run that goes on from an older copy is another story: what came after it stays.

        Args:
            saved: the checkpoint from which the run goes on.
            resume: its path, or ``auto`` for the latest.
        """
        if resume != "auto" and Path(resume).resolve() != self.latest.resolve():
            return
        training = saved["training"]
        epoch = training["epoch"] + int(training["validated"])
        for path in sorted(self.folder.glob(f"{self.prefix}_[-0-9]*.pth")):
            if path == self.best or not _is_of(path, saved["run"], epoch):
                continue
            if self.best is not None and self.best.exists():
                path.unlink(missing_ok=True)
            else:
                self.best = path

    def copy_best(self, saved: Mapping[str, Any], resume: str, say: Callable[[str], None]) -> None:
        """Bring along the best of a run that goes on from another folder, where it lies there.

        Args:
            saved: the checkpoint from which the run goes on.
            resume: its path.
            say: told about the copy.

        Raises:
            UserError: the copy cannot be written.
        """
        name = saved["best_file"]
        if self.best is not None or name is None:
            return
        source = Path(resume).parent / name
        if not _is_of(source, saved["run"]):
            return
        path = self.folder / name
        if not path.is_file() or not filecmp.cmp(source, path, shallow=False):
            path = self._free_path(path.stem)
            with atomic_path(path, durable=True) as temporary:
                shutil.copyfile(source, temporary)
            say(f"the best checkpoint so far is brought along: {path}")
        self.best = path

    def forget_lost_best(self) -> bool:
        """Tell whether there is no best file, or none any more."""
        if self.best is not None and not self.best.exists():
            self.best = None
        return self.best is None

    def save_latest(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint to resume from; it remembers which file is the best."""
        best = self.best.name if self.best else None
        save_checkpoint(self.latest, {**state, "best_file": best})

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


def _is_of(path: Path, run: str, epoch: int | None = None) -> bool:
    try:
        state = read_checkpoint(path)
    except CheckpointError:  # not what a save of this project leaves
        return False
    return state.get("run") == run and epoch in (None, state.get("epoch"))
