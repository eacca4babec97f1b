"""Which checkpoints form an ensemble, and whether they may."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from datasets.bands import RGB, Bands, union
from datasets.classes import semantic_classes
from datasets.images import read_header, require_bands
from engine.metrics import RANKS
from models.checkpoint import Checkpoint, open_checkpoint
from utils.errors import CheckpointError, DataError

LATEST = "_latest"


def find_best_checkpoints(folder: Path) -> list[Checkpoint]:
    """Open the best checkpoint of every run in ``outdir/models``, sorted by name.

    A run removes its older best by itself; where a killed run left two, the higher score counts.

    Raises:
        CheckpointError: there is none, or one cannot be read.
    """
    best: dict[str, Checkpoint] = {}
    for path in sorted(Path(folder).glob("*.pth")) + sorted(Path(folder).glob("*.safetensors")):
        if path.stem.endswith(LATEST) or path.name.startswith("."):
            continue
        checkpoint = open_checkpoint(path)
        run = checkpoint.info.get("run", str(path))
        if run not in best or _score(checkpoint) > _score(best[run]):
            best[run] = checkpoint
    if not best:
        raise CheckpointError(
            f"{folder}: no checkpoints in it; train a model first, or name files with --checkpoints"
        )
    return sorted(best.values(), key=lambda checkpoint: checkpoint.path)


def choose_ensemble(paths: Sequence[Path] | None, folder: Path, classes: dict) -> list[Checkpoint]:
    """Open the named checkpoints, or else the best of every run in a folder.

    Raises:
        CheckpointError: as `find_best_checkpoints` and `open_ensemble`.
    """
    if paths:
        return open_ensemble(paths, classes)
    return _of_one_kind(find_best_checkpoints(folder), classes)


def seen_in_training(checkpoint: Checkpoint, ids: Collection[str]) -> int:
    """Return how many of these pairs (``train/<stem>``) a checkpoint was trained on.

    Foreign checkpoints do not say what they were trained on; for them it is 0.
    """
    return len(set(checkpoint.info.get("split", {}).get("train", ())) & set(ids))


def warn_of_leakage(
    checkpoints: Sequence[Checkpoint], ids: Collection[str], say: Callable[[str], None]
) -> None:
    """Say which checkpoints were trained on pairs that scores are taken on."""
    for checkpoint in checkpoints:
        seen = seen_in_training(checkpoint, ids)
        if seen:
            say(
                f"warning: leakage: {checkpoint.path} was trained on {seen} of the {len(ids)} "
                "validation pairs; scores on them will be too high"
            )


def open_ensemble(paths: Sequence[Path], classes: dict) -> list[Checkpoint]:
    """Open checkpoints and check that they speak of the same classes as the data set.

    Args:
        paths: checkpoint files.
        classes: the data set's class list, as `datasets.ClassList.to_dict` gives it.

    Raises:
        CheckpointError: a file cannot be used, or its class list is another.
    """
    return _of_one_kind([open_checkpoint(path) for path in paths], classes)


def _of_one_kind(checkpoints: list[Checkpoint], classes: dict) -> list[Checkpoint]:
    for checkpoint in checkpoints:
        check_classes(checkpoint, classes)
    return checkpoints


def check_classes(checkpoint: Checkpoint, classes: dict) -> None:
    """Raise unless a checkpoint was trained on this class list.

    Foreign checkpoints carry no list; of them only the number of classes can be checked. Of change
    masks the names mean nothing.

    Raises:
        CheckpointError: the lists differ, or one of both knows change alone.
    """
    expected = list(classes["names"])
    wanted = semantic_classes(len(expected) - 1)
    if bool(checkpoint.config.num_classes) != bool(wanted):
        there, here = ("change alone", "classes") if wanted else ("classes", "change masks alone")
        note = " (a set without labels needs a classes.json of two entries)" if wanted else ""
        raise CheckpointError(
            f"{checkpoint.path}: predicts {there}, the data set has {here}{note}; leave this "
            "checkpoint out, check --data-root, or train from it with --pretrain-from"
        )
    trained_on = checkpoint.info.get("classes", {}).get("names")
    if trained_on is None:
        if checkpoint.config.num_classes != wanted:
            raise CheckpointError(
                f"{checkpoint.path}: predicts {checkpoint.config.num_classes} classes, the data "
                f"set has {len(expected) - 1}; check --data-root"
            )
    elif wanted and list(trained_on) != expected:
        raise CheckpointError(
            f"{checkpoint.path}: trained on the classes {', '.join(trained_on)}; the data set has "
            f"{', '.join(expected)}; check --data-root or leave this checkpoint out"
        )


def bands_to_read(checkpoints: Sequence[Checkpoint], image: Path) -> Bands:
    """Return the bands that an ensemble needs of every image, each model some of them.

    Args:
        checkpoints: the ensemble.
        image: a file of the data set, whose header must offer them.

    Raises:
        CheckpointError: a foreign checkpoint of other than three bands, of which nothing is known;
            or some models were trained on 8 bits and some on 16.
        DataError: the image has another depth or fewer bands, or is grey and alpha where some
            models read it as RGB and others its bands.
    """
    header = read_header(image)
    for checkpoint in checkpoints:
        bands = checkpoint.config.imagery.bands
        if len(bands.numbers) != checkpoint.config.in_channels:
            raise CheckpointError(
                f"{checkpoint.path}: takes {checkpoint.config.in_channels} bands, but does not say "
                "which and how they are normalised; train it with this project"
            )
        if bands.bits != checkpoints[0].config.imagery.bands.bits:
            raise CheckpointError(
                f"{checkpoint.path}: trained on {bands.bits}-bit images, {checkpoints[0].path} on "
                f"{checkpoints[0].config.imagery.bands.bits}-bit ones; leave one out"
            )
        try:
            require_bands(image, header, bands)
        except DataError as error:
            reason = str(error).split("; ", maxsplit=1)[0]
            raise DataError(
                f"{checkpoint.path} does not fit the data: {reason}; name other --checkpoints, or "
                "check --data-root"
            ) from error
    chosen = [checkpoint.config.imagery.bands for checkpoint in checkpoints]
    together = union(chosen)
    if len(set(chosen)) > 1 and max(together.numbers) > header.bands > 1:
        apart = next(bands for bands in chosen if bands != chosen[0])
        raise DataError(
            f"{image}: has {header.bands} bands, which cannot be read as {chosen[0]} and as "
            f"{apart} at once; name --checkpoints of one kind"
        )
    return together


def describe(checkpoint: Checkpoint) -> str:
    """Return one line about a checkpoint, for the list a script prints before it works."""
    config = checkpoint.config
    parts = [config.model, config.backbone] + (["lightweight"] if config.lightweight else [])
    if config.imagery.bands != RGB:
        parts.append(str(config.imagery.bands))
    title, score = _rank_text(checkpoint.info)
    best = "best " if "training" in checkpoint.info else ""  # a latest file is of a later epoch
    note = f", epoch {checkpoint.info['epoch']}, {best}{title} {100 * score:.2f}" if title else ""
    protocol = checkpoint.info.get("split", {}).get("protocol")
    if note and protocol:
        note += f" on split {protocol}"
    return f"{checkpoint.path}  ({' '.join(parts)}{note})"


def describe_all(checkpoints: Sequence[Checkpoint]) -> str:
    """Return a line about each checkpoint, and one more where their scores do not compare."""
    lines = [f"  {describe(checkpoint)}" for checkpoint in checkpoints]
    scored = [c.info for c in checkpoints if _rank_text(c.info)[0]]
    if len({frozenset(info.get("split", {}).get("val", ())) for info in scored}) > 1:
        lines.append("  note: these scores are on different validation pairs and do not compare")
    return "\n".join(lines)


def _score(checkpoint: Checkpoint) -> float:
    return _rank_text(checkpoint.info)[1] or 0.0


def _rank_text(info: dict[str, Any]) -> tuple[str, float | None]:
    """Return title and value of the score that ranks a checkpoint; nothing of a foreign one."""
    metrics = info.get("metrics", {})
    for name, title in RANKS.items():
        if name in metrics:
            return title, metrics[name]
    return "", None
