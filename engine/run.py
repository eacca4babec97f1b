"""A training run on disk: its name, best and latest checkpoint, options, log, and how to resume it.

OUTDIR/models holds ``<model>_<backbone>_<score>.pth``, or ``<name>_<score>.pth``, and
``…_latest.pth``; OUTDIR/logs/<run> holds ``options.json``, ``metrics.csv`` and TensorBoard's files.
"""

import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from datasets.task import Task
from engine.config import FIXED_OPTIONS, TrainConfig
from engine.predict import mask_set
from models.checkpoint import Checkpoint, open_checkpoint
from utils.dist import broadcast, gather, is_main, print0
from utils.errors import CheckpointError, OptionError, UserError
from utils.files import file_state, remove_leftovers, write_csv, write_json
from utils.tensor_files import save_checkpoint


class Run:
    """The files of one training run, which process 0 alone writes.

    ``name`` is of no other run, ``saved`` the checkpoint to go on from until it is taken (None for
    a new run), ``best`` the path of the best so far or None, ``tensorboard`` None where not wanted.

    Raises:
        CheckpointError, OptionError: the file to resume from cannot be used, or is of another run.
    """

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        split: dict[str, Any],
        masks: tuple[Path | None, str] = (None, ""),
    ) -> None:
        self.folder = config.outdir / "models"
        self.prefix = run_prefix(config)
        self.masks = masks
        self.latest = self.folder / f"{self.prefix}_latest.pth"
        self.options = config.fixed_options()
        self.identity = {
            "classes": task.classes.to_dict(),
            "split": split,
            "labelled_dates": task.labelled_dates,
            "mask_set": masks[1],
            "pseudo_labels": config.use_pseudo_label,
            "name": config.name,
        }
        if is_main() and not config.dry_run:
            # Not "_.*": hrnet_w18 would take what a run of hrnet_w18_small is writing just now.
            names = rf"{re.escape(self.prefix)}_(latest|-?[0-9]+\.[0-9]{{2}}(-[0-9]+)?)\.pth"
            remove_leftovers(self.folder, names=names)
        self.saved = self._find_saved(config.resume)
        own_name = f"{self.prefix}_{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        self.name = self.saved.info["run"] if self.saved else broadcast(own_name)
        self.best = self._find_best()
        self._best_state = file_state(self.best) if self.best and is_main() else None
        self._log_folder = config.outdir / "logs" / self.name
        self.tensorboard: SummaryWriter | None = None

    def _find_saved(self, resume: str | None) -> Checkpoint | None:
        path = self.latest if resume == "auto" else resume and Path(resume)
        if not path or not broadcast(resume != "auto" or path.exists()):
            if is_main() and self.latest.exists():
                print0(
                    f"starting anew; {self.latest} of an earlier run is replaced (--resume goes on)"
                )
            return None
        saved = open_checkpoint(path)
        check_resumable(saved, self.identity, self.options)
        place = (saved.info["run"], *(saved.info["training"][name] for name in ("epoch", "step")))
        if len(set(gather(place))) > 1:
            raise CheckpointError(
                f"{path}: not the same file on all nodes; share it, or start anew"
            )
        return saved

    def _find_best(self) -> Path | None:
        """Return the best file of the run to resume, where it lies in this folder."""
        name = self.saved and self.saved.info["best_file"]
        path = self.folder / name if name else None
        found = broadcast(is_main() and path is not None and _is_of(path, self.name))
        if name and not found:
            print0(
                f"warning: the best checkpoint so far, {name}, is not in {self.folder}; the next "
                "takes its place"
            )
        return path if found else None

    def start_log(self, config: TrainConfig) -> None:
        """Write down the options, and open TensorBoard's file where it is wanted."""
        if is_main():
            told = {"decode": self.identity["decoding"]["name"]}
            write_json(self._log_folder / "options.json", config.to_dict() | told)
            if config.tensorboard:
                _silence_writer_thread()
                with _named_errors(self._log_folder):
                    self.tensorboard = SummaryWriter(log_dir=str(self._log_folder))

    def log_image(self, image: np.ndarray, epoch: int) -> None:
        """Show a picture of validation pairs, (H, W, 3) uint8, beside an epoch's scalars."""
        with _named_errors(self._log_folder):
            self.tensorboard.add_image("validation", image, epoch, dataformats="HWC")

    def log_epochs(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rows of all epochs so far; ``epoch`` is a number, the rest are scalars."""
        if not is_main():
            return
        # An epoch that was not validated has no scores: its cells stay empty.
        write_csv(self._log_folder / "metrics.csv", rows)
        if self.tensorboard:
            with _named_errors(self._log_folder):
                for name, value in rows[-1].items():
                    if name != "epoch":
                        self.tensorboard.add_scalar(name, value, rows[-1]["epoch"])
                self.tensorboard.flush()

    def save_latest(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint to resume from; it remembers which file is the best."""
        if is_main():
            best = self.best.name if self.best else None
            own = {"run": self.name, "options": self.options, "best_file": best}
            self._save(self.latest, own | state)

    def save_best(self, state: dict[str, Any], rank: float) -> None:
        """Save a new best; this run's older one goes after the newer is safely on disk.

        The file name shows ``rank``, a fraction, in percent. A file of another run is never
        replaced: an equal score gets a number behind it.
        """
        if is_main():
            stem, number = f"{self.prefix}_{100 * rank:.2f}", 2
            path = self.folder / f"{stem}.pth"
            while path.exists() and path != self.best and not _is_of(path, self.name):
                path, number = self.folder / f"{stem}-{number}.pth", number + 1
            self._save(path, {"run": self.name, **state})
            if self.best not in (None, path):
                self.best.unlink(missing_ok=True)
            self.best, self._best_state = path, file_state(path)
        self.best = broadcast(self.best)

    def lost_best(self) -> bool:
        """Tell whether the best checkpoint is gone or replaced, and forget it; all must call it."""
        state = None
        with suppress(OSError):
            state = file_state(self.best) if self.best and is_main() else None
        lost = broadcast(state != self._best_state)
        if lost:
            print0(f"warning: {self.best}: removed or replaced; this epoch's takes its place")
            self.best = self._best_state = None
        return lost

    def _save(self, path: Path, state: dict[str, Any]) -> None:
        folder, found = self.masks
        if folder and mask_set(folder) != found:
            raise OptionError(
                f"{folder}: other masks than those that this run began with; what was learnt since "
                "the last save is left out. Restore them and go on with --resume, or start anew"
            )
        save_checkpoint(path, self.identity | state)

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self.tensorboard:
            with _named_errors(self._log_folder):
                self.tensorboard.close()


def run_prefix(config: TrainConfig) -> str:
    """Return what the names of a run's files begin with; runs that share it replace each other."""
    return config.name or f"{config.model}_{config.backbone}"


def check_resumable(
    saved: Checkpoint, identity: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    """Raise unless the run that a checkpoint is of had this ``identity`` and these options.

    Raises:
        CheckpointError: there is no training state in it.
        OptionError: it is of another run.
    """
    path, info = saved.path, saved.info
    if "training" not in info:
        raise CheckpointError(f"{path}: holds no training state; resume from a …_latest.pth")
    if info["classes"]["names"] != identity["classes"]["names"]:
        raise OptionError(f"{path}: is of a data set with other classes; check --data-root")
    if info["split"] != identity["split"]:
        raise OptionError(
            f"{path}: was trained on another split ({info['split']['protocol']}) or on other "
            "files; check --data-root and the options of the split"
        )
    # Scores of one date and of both do not compare; older checkpoints do not tell.
    dates = identity["labelled_dates"]
    if info.get("labelled_dates", dates) != dates:
        raise OptionError(
            f"{path}: the dates with labels were {info['labelled_dates']}, now {dates}; restore "
            "the label folders, use another --outdir, or no --resume"
        )
    if info.get("mask_set", identity["mask_set"]) != identity["mask_set"]:
        raise OptionError(
            f"{path}: was trained on other pseudo masks than lie there now; restore them, or "
            "start anew, without --resume"
        )
    saved_options = FIXED_OPTIONS | info["options"]  # which may be of before there were some
    differing = {name: old for name, old in saved_options.items() if options.get(name) != old}
    if differing:
        found = ", ".join(f"{name} {old}" for name, old in differing.items())
        raise OptionError(
            f"{path}: the run to resume had {found}; use the same options, another --outdir, or no "
            "--resume"
        )


def _is_of(path: Path, run: str) -> bool:
    with suppress(CheckpointError):  # not what a save of this project leaves
        return open_checkpoint(path).info.get("run") == run
    return False


@contextmanager
def _named_errors(folder: Path) -> Iterator[None]:
    # TensorBoard writes in a thread, whose error any later call raises.
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror or error}; free or change --outdir"
        ) from error


def _silence_writer_thread() -> None:
    """Leave errors of TensorBoard's thread to the calls that raise them: it prints them as well."""
    show = threading.excepthook
    if getattr(show, "silences_tensorboard", False):
        return

    def hook(error: threading.ExceptHookArgs) -> None:
        of_writer = type(error.thread).__module__.startswith("tensorboard.")
        if not (of_writer and issubclass(error.exc_type, OSError)):
            show(error)

    hook.silences_tensorboard = True
    threading.excepthook = hook
