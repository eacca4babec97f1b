"""Which checkpoints form an ensemble, and whether they may."""

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import fmean

from datasets.bands import RGB, Bands, union
from datasets.classes import SECOND_CLASSES, ClassList
from datasets.images import DTYPES, read_header, require_bands
from datasets.task import Task
from engine.config import DECODE
from engine.metrics import RANKS
from models.checkpoint import Checkpoint, open_checkpoint
from models.decoding import INDEPENDENT, Decoding
from utils.dist import print0
from utils.errors import CheckpointError, DataError

LATEST = "_latest"


def choose_ensemble(
    paths: Sequence[Path] | None, folder: Path, task: Task, students: bool | None = None
) -> list[Checkpoint]:
    """Open the named checkpoints, or else the best of every run in a folder.

    Of those, ``students`` takes the ones trained with pseudo labels alone, or those without alone,
    where there are any; checkpoints that do not tell, older or foreign, count as without.

    Raises:
        CheckpointError: there is none, one cannot be read, or is of other classes than the data.
    """
    checkpoints = [open_checkpoint(p) for p in paths] if paths else find_best_checkpoints(folder)
    told = [checkpoint.info.get("pseudo_labels", False) for checkpoint in checkpoints]
    if not paths and students is not None and len(set(told)) == 2:
        both = list(zip(checkpoints, told, strict=True))
        left = ", ".join(checkpoint.path.name for checkpoint, kind in both if kind != students)
        kind = "without" if students else "with"
        print0(f"left out, trained {kind} pseudo labels: {left}; --checkpoints takes any")
        checkpoints = [checkpoint for checkpoint, kind in both if kind == students]
    for checkpoint in checkpoints:
        check_classes(checkpoint, task)
    return checkpoints


def task_of_ensemble(paths: Sequence[Path] | None, folder: Path, default: Task) -> Task:
    """Return the task that checkpoints, chosen as for `choose_ensemble`, were trained for.

    It is for images that say nothing of classes. Foreign checkpoints do not tell: the ``default``.
    """
    checkpoints = [open_checkpoint(p) for p in paths] if paths else find_best_checkpoints(folder)
    for checkpoint in (checkpoint for checkpoint in checkpoints if "classes" in checkpoint.info):
        try:
            classes = checkpoint.info["classes"]
            return Task(ClassList(tuple(classes["names"]), tuple(map(tuple, classes["colors"]))))
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{checkpoint.path}: impossible classes ({error})") from error
    return default


def find_best_checkpoints(folder: Path) -> list[Checkpoint]:
    """Open the best checkpoint of every run in ``outdir/models``, sorted by name.

    A run removes its older best by itself; where a killed run left two, the higher score counts.
    Raises a `CheckpointError` where there is none, or one cannot be read.
    """
    best: dict[str, Checkpoint] = {}
    for path in sorted(Path(folder).glob("*.pth")) + sorted(Path(folder).glob("*.safetensors")):
        if path.stem.endswith(LATEST) or path.name.startswith("."):
            continue
        checkpoint = open_checkpoint(path)
        run = checkpoint.info.get("run", str(path))
        if run not in best or _rank(checkpoint)[1] > _rank(best[run])[1]:
            best[run] = checkpoint
    if not best:
        raise CheckpointError(
            f"{folder}: no checkpoints in it; train a model first, or name files with --checkpoints"
        )
    return sorted(best.values(), key=lambda checkpoint: checkpoint.path)


def check_classes(checkpoint: Checkpoint, task: Task) -> None:
    """Raise a `CheckpointError` unless a checkpoint has these classes, in this order.

    Foreign ones must have as many, and SECOND's in SECOND's order. Of change masks the names mean
    nothing.
    """
    found, wanted = checkpoint.config.num_classes, task.semantic_classes
    if bool(found) != bool(wanted):
        there, here = ("change alone", "classes") if wanted else ("classes", "change masks alone")
        raise CheckpointError(
            f"{checkpoint.path}: predicts {there}, the data set has {here}; leave this "
            "checkpoint out, check --data-root, or train from it with --pretrain-from"
        )
    names = list(task.classes.names)
    of_second = list(SECOND_CLASSES.names)
    foreign = of_second if sorted(names) == sorted(of_second) else names
    trained_on = list(checkpoint.info.get("classes", {}).get("names", foreign))
    if wanted and trained_on != names:
        remedy = "check --data-root or leave this checkpoint out"
        if sorted(trained_on) == sorted(names):
            remedy = "they are in another order: convert the data, as docs/public_sets.md shows"
        raise CheckpointError(
            f"{checkpoint.path}: trained on the classes {', '.join(trained_on)}; the data set has "
            f"{', '.join(names)}; {remedy}"
        )
    if found != wanted:
        raise CheckpointError(
            f"{checkpoint.path}: predicts {found} classes, the data set has {wanted}; check "
            "--data-root"
        )


def warn_of_leakage(checkpoints: Sequence[Checkpoint], ids: Collection[str]) -> None:
    """Say which checkpoints were trained on pairs that are scored; foreign ones do not tell."""
    for checkpoint in checkpoints:
        seen = len(set(checkpoint.info.get("split", {}).get("train", ())) & set(ids))
        if seen:
            print0(
                f"warning: leakage: {checkpoint.path} was trained on {seen} of the {len(ids)} "
                "pairs; scores on them will be too high"
            )


def epochs_chosen(checkpoints: Sequence[Checkpoint], ids: Collection[str]) -> str:
    """Say on which pairs the epochs of checkpoints were chosen, seen from those of some ids."""
    found: Counter[str] = Counter()
    for checkpoint in checkpoints:
        val = set(checkpoint.info.get("split", {}).get("val", ()))
        same = len(val & set(ids))
        pairs = f"{same} of these pairs" if same < len(ids) else "these pairs"
        pairs = pairs if same else f"{len(val)} other pairs" if val else "unknown pairs"
        last = "training" in checkpoint.info
        found["last epoch, not chosen" if last else f"epoch chosen on {pairs}"] += 1
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{text} ({number} of {len(checkpoints)})" for text, number in found.items())


def bands_to_read(checkpoints: Sequence[Checkpoint], image: Path) -> Bands:
    """Return the bands that an ensemble needs of every image such as this, each model some.

    Raises:
        CheckpointError: a foreign checkpoint of other than three bands, or of several depths.
        DataError: the image has another depth or fewer bands, or is grey and alpha where some
            models read it as RGB and others its bands.
    """
    header = read_header(image)
    chosen = [checkpoint.config.imagery.bands for checkpoint in checkpoints]
    for checkpoint, bands in zip(checkpoints, chosen, strict=True):
        if len(bands.numbers) != checkpoint.config.in_channels:
            raise CheckpointError(
                f"{checkpoint.path}: takes {checkpoint.config.in_channels} bands, but does not say "
                "which and how they are normalised; train it with this project"
            )
        if bands.bits != chosen[0].bits:
            raise CheckpointError(
                f"{checkpoint.path}: trained on {bands.bits}-bit images, {checkpoints[0].path} on "
                f"{chosen[0].bits}-bit ones; leave one out"
            )
        try:
            require_bands(image, header, bands)
        except DataError as error:
            if header.dtype not in DTYPES:  # no other checkpoint would help
                raise
            reason = str(error).split("; ", maxsplit=1)[0]
            raise DataError(
                f"{checkpoint.path} does not fit the data: {reason}; name other --checkpoints, or "
                "check --data-root"
            ) from error
    together = union(chosen)
    if len(set(chosen)) > 1 and max(together.numbers) > header.bands > 1:
        apart = next(bands for bands in chosen if bands != chosen[0])
        raise DataError(
            f"{image}: has {header.bands} bands, which cannot be read as {chosen[0]} and as "
            f"{apart} at once; name --checkpoints of one kind"
        )
    return together


def choose_decoding(asked: str | None, checkpoints: Sequence[Checkpoint]) -> Decoding:
    """Return how an ensemble decodes: as ``--decode`` has it, else as all its runs validated.

    Its parameters are their means. Without two classes, or labels of two dates to learn them from,
    it is independent whatever is asked.
    """
    each = []
    for checkpoint in checkpoints:
        unknown = {"name": DECODE, "by_chance": 1 / max(1, checkpoint.config.num_classes)}
        each.append(Decoding.from_dict(checkpoint.info.get("decoding", unknown)))
        dates = checkpoint.info.get("labelled_dates", {}).get("training", (1, 2))
        if checkpoint.config.num_classes < 2 or len(dates) < 2:
            return INDEPENDENT
    names = {decoding.name for decoding in each}
    return Decoding(
        asked or (names.pop() if len(names) == 1 else DECODE),
        fmean(decoding.evidence for decoding in each),
        fmean(decoding.threshold for decoding in each),
        fmean(decoding.same_class for decoding in each),
        fmean(decoding.by_chance for decoding in each),
    )


def describe(checkpoint: Checkpoint) -> str:
    """Return one line about a checkpoint, for the list a script prints before it works."""
    config, info = checkpoint.config, checkpoint.info
    parts = [config.model, config.backbone] + (["lightweight"] if config.lightweight else [])
    parts += ["pseudo labels"] if info.get("pseudo_labels") else []
    if config.imagery.bands != RGB:
        parts.append(str(config.imagery.bands))
    title, score = _rank(checkpoint)
    if title:
        best = "best " if "training" in info else ""  # a latest file is of a later epoch
        on = f" on split {info['split']['protocol']}" if "split" in info else ""
        parts[-1] += f", epoch {info.get('epoch')}, {best}{title} {100 * score:.2f}{on}"
    return f"{checkpoint.path}  ({' '.join(parts)})"


def describe_all(checkpoints: Sequence[Checkpoint]) -> str:
    """Return a line about each checkpoint, and one more where their scores do not compare."""
    lines = [f"  {describe(checkpoint)}" for checkpoint in checkpoints]
    splits = [c.info.get("split", {}) for c in checkpoints if _rank(c)[0]]
    if len({frozenset(split.get("val", ())) for split in splits}) > 1:
        lines.append("  note: these scores are on different validation pairs and do not compare")
    return "\n".join(lines)


def _rank(checkpoint: Checkpoint) -> tuple[str, float]:
    """Return title and value of the score that ranks a checkpoint; "" and 0 of a foreign one."""
    metrics = checkpoint.info.get("metrics", {})
    found = [(title, metrics[name]) for name, title in RANKS.items() if name in metrics]
    return found[0] if found else ("", 0.0)
