"""The name and the fixed options of a training run, and whether a run may go on from another."""

import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.bands import RGB_IMAGERY, Bands, Imagery
from utils.binary import semantic_classes
from utils.checkpoint import read_checkpoint
from utils.distributed import World
from utils.errors import CheckpointError, OptionError
from utils.run_files import RunFiles

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
