"""What a run leaves to read: one CSV row per epoch, TensorBoard scalars, tables of text."""

import contextlib
import csv
import filecmp
import io
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from datasets.bands import RGB_IMAGERY, Bands, Imagery
from datasets.classes import semantic_classes
from engine.metrics import AnyMetrics
from utils.dist import World
from utils.errors import CheckpointError, OptionError, UserError
from utils.files import atomic_path, remove_leftovers, write_text
from utils.tensor_files import read_checkpoint, save_checkpoint


class RunLog:
    """Scores over epochs, as ``metrics.csv`` and, where installed, TensorBoard scalars.

    The CSV is written anew each epoch under a temporary name, so that it is never half a row.

    Args:
        folder: where the files go.
        tensorboard: False turns TensorBoard off.
    """

    def __init__(self, folder: Path, tensorboard: bool = True) -> None:
        self.folder = Path(folder)
        self._writer = _tensorboard_writer(self.folder) if tensorboard else None

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rows of all epochs so far; ``epoch`` is a number, the rest are scalars.

        Raises:
            UserError: the folder cannot be written, or the disk is full; so with the others.
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[-1]), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.folder / "metrics.csv", text.getvalue())
        if self._writer is not None:
            with _named_errors(self.folder):
                for name, value in rows[-1].items():
                    if name != "epoch":
                        self._writer.add_scalar(name, value, rows[-1]["epoch"])
                self._writer.flush()

    @property
    def shows_images(self) -> bool:
        """Whether `add_image` leads anywhere."""
        return self._writer is not None

    def add_image(self, name: str, image: np.ndarray, epoch: int) -> None:
        """Show a picture, (H, W, 3) uint8, beside an epoch's scalars."""
        if self._writer is not None:
            with _named_errors(self.folder):
                self._writer.add_image(name, image, epoch, dataformats="HWC")

    def close(self) -> None:
        """Flush and close what is open."""
        if self._writer is not None:
            with _named_errors(self.folder):
                self._writer.close()


def _tensorboard_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    _silence_writer_thread()
    with _named_errors(folder):
        return SummaryWriter(log_dir=str(folder))


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


def epoch_row(
    epoch: int,
    losses: Mapping[str, float],
    metrics: AnyMetrics,
    class_names: Sequence[str],
    lr: float,
    train_s: float,
    val_s: float,
) -> dict[str, Any]:
    """Return one row of ``metrics.csv``: losses, scores as fractions, rate and seconds."""
    return {
        "epoch": epoch,
        **{f"loss_{name}": value for name, value in losses.items()},
        **metrics.to_row(class_names),
        "lr": lr,
        "train_s": round(train_s, 3),
        "val_s": round(val_s, 3),
    }


# What must be the same when a run is resumed; other options may change between its parts.
FIXED_OPTIONS = (
    *("model", "backbone", "lightweight", "epochs", "batch_size", "lr", "weight_decay"),
    *("class_weights", "crop_size", "use_pseudo_label", "seed", "amp", "accumulate", "bands"),
    *("tta", "pseudo_label_root"),
)


def run_name(prefix: str) -> str:
    """Return a name that no other run has, not even one started in the same second."""
    return f"{prefix}_{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def fixed_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a resumed run must share, as plain values."""
    fixed = {name: options[name] for name in FIXED_OPTIONS}
    return {name: _plain(value) for name, value in fixed.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.resolve())
    return list(value) if isinstance(value, tuple) else value


def check_resumable(
    saved: Mapping[str, Any], options: Mapping[str, Any], description: Mapping[str, Any], path: Path
) -> None:
    """Raise unless the options and the data describe the run that a checkpoint is of.

    Args:
        saved: the checkpoint.
        options: all options of this run.
        description: ``classes``, ``split`` and ``labelled_dates`` of this run, as the checkpoint
            stores them.
        path: of the checkpoint, for messages.

    Raises:
        CheckpointError: there is no training state in it.
        OptionError: it is of another run.
    """
    if "training" not in saved:
        raise CheckpointError(f"{path}: holds no training state; resume from a …_latest.pth")
    missing = {"model", "run", "classes", "split", "options", "best_file"} - saved.keys()
    if missing:
        raise CheckpointError(f"{path}: {min(missing)} is missing; resume from another file")
    for name in (saved["run"], saved["best_file"]):
        # Both become paths; a file from elsewhere must not lead out of the folders of this run.
        if name is not None and (not isinstance(name, str) or Path(name).name != name):
            raise CheckpointError(f"{path}: {name!r} is no file name; resume from another file")
    if saved["classes"]["names"] != description["classes"]["names"]:
        raise OptionError(f"{path}: is of a data set with other classes; check --data-root")
    wanted = semantic_classes(len(description["classes"]["names"]) - 1)
    config = saved.get("config")
    # A class list of two entries was a model of one class before it was one of change alone.
    if isinstance(config, dict) and config.get("num_classes", wanted) != wanted:
        raise OptionError(
            f"{path}: its number of semantic classes is {config['num_classes']}, that of these "
            f"data {wanted}; start anew, with --pretrain-from for its weights"
        )
    if saved["split"] != description["split"]:
        raise OptionError(
            f"{path}: was trained on another split ({saved['split']['protocol']}) or on other "
            "files; check --data-root and the options of the split"
        )
    dates = description["labelled_dates"]
    # Scores of one date and of both do not compare; older checkpoints do not tell.
    if saved.get("labelled_dates", dates) != dates:
        raise OptionError(
            f"{path}: the dates with labels were {saved['labelled_dates']}, now {dates}; restore "
            "the label folders, use another --outdir, or no --resume"
        )
    asked = fixed_options(options)
    differing = [name for name, value in saved["options"].items() if asked.get(name) != value]
    if differing:
        found = ", ".join(f"{name} {saved['options'][name]}" for name in differing)
        raise OptionError(
            f"{path}: the run to resume had {found}; use the same options, another --outdir, or "
            "no --resume"
        )


def saved_imagery(saved: Mapping[str, Any], bands: Bands) -> Imagery:
    """Return the bands and statistics of the run that a checkpoint is of.

    Raises:
        CheckpointError: they cannot be read from it.
        OptionError: they are not the bands of this run.
    """
    try:
        config = dict(saved.get("config") or {})
        imagery = Imagery(**config["imagery"]) if "imagery" in config else RGB_IMAGERY
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the run to resume: {error}; resume from another file or start anew"
        ) from error
    if imagery.bands != bands:
        raise OptionError(
            f"the run to resume reads {imagery.bands}, this one {bands}; use the same --bands and "
            "data, another --outdir, or no --resume"
        )
    return imagery


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
            state: as `utils.tensor_files.save_checkpoint` takes it.
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


def find_resume(
    resume: str | None,
    files: RunFiles,
    options: Mapping[str, Any],
    description: Mapping[str, Any],
    world: World,
) -> dict[str, Any] | None:
    """Return the checkpoint that a run goes on from, and tell ``files`` its best; None to start.

    Args:
        resume: ``auto`` for the latest there is, if any; a path; or None.
        files: of this run.
        options: all options of this run.
        description: as `check_resumable` takes it.
        world: the processes of the run; every one must call this. The leading one decides whether
            there is a latest checkpoint, and says when it is going to be replaced.

    Raises:
        CheckpointError: the file is missing, damaged, holds no training state, or is not the same
            for all processes.
        OptionError: it is of another run.
    """
    path = files.latest if resume == "auto" else resume and Path(resume)
    if not path or not world.from_leader(resume != "auto" or path.exists()):
        if world.leads and files.latest.exists():
            world.say(
                f"starting anew; {files.latest} of an earlier run is replaced (--resume goes on)"
            )
        return None
    saved = read_checkpoint(path)
    check_resumable(saved, options, description, path)
    training = saved["training"]
    place = (saved["run"], training.get("epoch"), training.get("step"))
    if len(set(world.gather(place))) > 1:
        raise CheckpointError(f"{path}: not the same file on all nodes; share it, or start again")
    if saved["best_file"] and path.parent.resolve() == files.folder.resolve():
        files.best = files.folder / saved["best_file"]
    return saved


def batch_size_per_pass(batch_size: int, accumulate: int, world_size: int, pairs: int) -> int:
    """Return how many pairs each process takes per forward pass.

    Args:
        batch_size: pairs per optimiser step, over all processes.
        accumulate: forward passes per step.
        world_size: processes.
        pairs: training pairs; fewer than a batch make smaller batches.

    Raises:
        OptionError: the batch cannot be divided equally, or there are too few pairs.
    """
    parts = accumulate * world_size
    if batch_size % parts:
        raise OptionError(
            f"--batch-size {batch_size} cannot be divided among {world_size} processes × "
            f"--accumulate {accumulate}; use a multiple of {parts}"
        )
    size = min(batch_size, pairs) // parts
    if size == 0:
        raise OptionError(f"{pairs} training pairs are too few for {parts} parts of a batch")
    return size


def _is_of(path: Path, run: str, epoch: int | None = None) -> bool:
    try:
        state = read_checkpoint(path)
    except CheckpointError:  # not what a save of this project leaves
        return False
    return state.get("run") == run and epoch in (None, state.get("epoch"))
