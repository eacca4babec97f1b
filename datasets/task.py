"""What the labels of a data set are: classes of both dates, of one, or change masks."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from datasets.classes import (
    CHANGE_CLASSES,
    CLASSES_FILE,
    SECOND_CLASSES,
    STANDARD,
    ClassList,
    Preset,
    read_classes,
)
from datasets.images import open_image
from datasets.labels import WHITE, grey_levels
from datasets.pairs import SPLIT_FOLDERS, Pair, label_folders
from utils.errors import DataError
from utils.pictures import CHANGE_MASKS, Palette

LOOKED_AT, OPENED = 8, 64  # labels of one folder: that show change, and at the most


@dataclass(frozen=True)
class Task:
    """What the labels of a data set are; a class list of a single class stands for change masks.

    ``labelled_dates`` are those that ``training`` and ``validation`` pairs label; {} if unknown.
    """

    classes: ClassList
    labelled_dates: dict[str, list[int]] = field(default_factory=dict)

    @property
    def is_binary(self) -> bool:
        """Whether labels say what changed and nothing else."""
        return self.classes.is_binary

    @property
    def num_classes(self) -> int:
        """C, *unchanged* not counted."""
        return self.classes.num_classes

    @property
    def semantic_classes(self) -> int:
        """Classes that a model has to tell apart; 0 for change masks."""
        return 0 if self.is_binary else self.num_classes

    @property
    def label_keys(self) -> tuple[str, ...]:
        """Keys in a sample of what the maps of a model are compared with, in their order."""
        return ("change_mask",) if self.is_binary else ("label1", "label2")

    @property
    def mask_folders(self) -> tuple[str, ...]:
        """Folders that predicted masks go to: one per date, or one of change masks."""
        return (CHANGE_MASKS,) if self.is_binary else ("im1", "im2")

    @property
    def palette(self) -> Palette | None:
        """Colours of written masks; None for change masks, which are grey, 0 and 255."""
        return None if self.is_binary else self.classes.colors


def load_task(root: Path, preset: Preset = STANDARD) -> Task:
    """Return what the labels of a data set are, as far as the folder tells; see `load_classes`."""
    return Task(load_classes(root, preset))


def load_classes(root: Path, preset: Preset = STANDARD) -> ClassList:
    """Return the class list of ``root/classes.json``, of a preset, of change masks, or SECOND's.

    A DataError where the file contradicts the preset.
    """
    path = Path(root) / CLASSES_FILE
    classes = read_classes(path) if path.exists() else preset.classes
    if preset.classes and classes.names != preset.classes.names:
        raise DataError(f"{path}: lists other classes than --preset; leave out one of them")
    if classes:
        return classes
    return CHANGE_CLASSES if find_change_masks(Path(root)) else SECOND_CLASSES


def says_classes(root: Path, preset: Preset = STANDARD) -> bool:
    """Tell whether a data set shows in any way what its labels are."""
    labelled = any(label_folders(Path(root) / name, preset) for name in SPLIT_FOLDERS)
    return labelled or preset.classes is not None or (Path(root) / CLASSES_FILE).exists()


def find_change_masks(root: Path) -> str:
    """Say by what a data set, or one split of it, shows that its labels name no classes; else "".

    The first split with labels decides: ``label`` alone, or labels of dates in grey of 0 and 255
    only. 255 is no index of any class list.
    """
    for folder in (*(root / name for name in SPLIT_FOLDERS), root):
        labels = label_folders(folder)
        if "change_mask" not in labels and labels:
            masks = _holds_masks(folder / next(iter(labels.values())))
            return "the labels looked at hold 0 and 255 only" if masks else ""
        # A folder of that name beside the splits may be anything.
        if labels and (folder / "im1").is_dir():
            return f"from {folder.name}/{labels['change_mask']}"
    return ""


def is_mask_folder(folder: Path) -> bool:
    """Tell whether a folder holds change masks: as a split, in ``change``, or grey files by itself.

    As everywhere, labels of dates count before ``label``, and labels before ``change``.
    """
    labels = label_folders(folder)
    if labels:
        return "change_mask" in labels or bool(find_change_masks(folder))
    if (folder / CHANGE_MASKS).is_dir() or find_change_masks(folder):
        return True
    return folder.is_dir() and not (folder / "im1").is_dir() and _holds_masks(folder)


def _holds_masks(folder: Path) -> bool:
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.startswith(".")]
    count = min(OPENED, len(files))
    spread = [files[i * len(files) // count] for i in range(count)]
    certain = 0
    # Every 8th first: labels may be blank for long stretches of names.
    for path in (path for first in range(LOOKED_AT) for path in spread[first::LOOKED_AT]):
        try:
            image = open_image(path)
        except DataError:
            continue
        # Colours do not tell: white may be unchanged, as in SECOND, or changed.
        values = grey_levels(image)
        if values is None or not values <= {0, WHITE}:
            return False
        certain += values == {0, WHITE} or (values == {WHITE} and image.mode != "P")
        if certain == LOOKED_AT:
            break
    return certain > 0


def with_dates(task: Task, train_pairs: Sequence[Pair], val_pairs: Sequence[Pair]) -> Task:
    """Return the task with the dates that labelled pairs, one at least of each kind, tell."""
    kinds = {"training": train_pairs, "validation": val_pairs}
    dates = {n: [] if task.is_binary else list(p[0].labelled_dates) for n, p in kinds.items()}
    return replace(task, labelled_dates=dates)


def missing_labels(task: Task, train_pairs: Sequence[Pair], val_pairs: Sequence[Pair]) -> list[str]:
    """Say in a line each what a data set's labels leave out: classes, or a date."""
    if task.is_binary:
        root = train_pairs[0].image1.parents[2]
        reason = find_change_masks(root) or "the class list names one class"
        return [f"binary change labels ({reason}): the change branch is trained alone"]
    differ = train_pairs[0].labelled_dates != val_pairs[0].labelled_dates
    # One split alone is likelier to be a folder that was forgotten than a choice.
    prefix = "warning: training and validation differ, is a folder missing? " if differ else ""
    return [
        f"{prefix}{name}: labels of date {pairs[0].labelled_dates[0]} only; {consequence}"
        for name, pairs, consequence in (
            ("training", train_pairs, "the other date's semantics are learnt from the shared head"),
            ("validation", val_pairs, "scores that need classes are of that date and say so"),
        )
        if len(pairs[0].labelled_dates) == 1
    ]
