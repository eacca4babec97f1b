"""Bi-temporal pairs on disk: the one scanner of the folder layout."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from datasets.classes import ClassList
from datasets.splits import IMAGE_SUFFIXES, RASTER_SUFFIXES, Split, SplitOptions, divide
from utils.errors import DataError

SPLIT_FOLDERS = ("train", "val", "test")
IMAGE_FOLDERS = ("im1", "im2")
LABEL_FOLDERS = ("label1", "label2")
CHANGE_FOLDER = "label"  # change masks, as public sets name it
UNFINISHED = "unfinished.json"  # in a data set until the tool that writes it has come to its end


@dataclass(frozen=True)
class Pair:
    """One place at two dates, called ``<folder>/<stem>``; labels that are not there are None."""

    id: str
    image1: Path
    image2: Path
    label1: Path | None = None
    label2: Path | None = None
    change_mask: Path | None = None  # says what changed, and no classes

    @property
    def labels(self) -> dict[str, Path]:
        """The label files there are, by their key in a sample."""
        files = {"label1": self.label1, "label2": self.label2, "change_mask": self.change_mask}
        return {key: path for key, path in files.items() if path is not None}

    @property
    def labelled_dates(self) -> tuple[int, ...]:
        """The dates whose classes are labelled, of 1 and 2."""
        return tuple(date for date in (1, 2) if f"label{date}" in self.labels)

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the pair, images first."""
        return self.image1, self.image2, *self.labels.values()

    def without_labels(self) -> "Pair":
        """Return the pair's images alone."""
        return replace(self, label1=None, label2=None, change_mask=None)

    @property
    def name(self) -> str:
        """The file stem, which names the masks written for this pair."""
        return self.image1.stem


@dataclass(frozen=True)
class Problem:
    """What is wrong with names in a folder: ``same-stem``, ``no-partner`` or ``partner-case`` (it
    is there in other letters), which forbid training, ``name-case`` or ``ignored-files``.
    """

    kind: str
    files: tuple[Path, ...]
    missing_in: tuple[str, ...] = ()


@dataclass
class FolderScan:
    """The `label_folders` of a split, its pairs (labelled where all have labels), and problems."""

    labels: dict[str, str]
    pairs: list[Pair] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def scan_folder(folder: Path) -> FolderScan:
    """Index ``folder/{im1,im2}`` and its `label_folders` by name; missing folders are empty."""
    scan = FolderScan(label_folders(folder))
    names = (*IMAGE_FOLDERS, *scan.labels.values())
    files = {name: _list_files(folder / name, scan.problems) for name in names}
    stems = sorted({stem for of_folder in files.values() for stem in of_folder})
    alike: dict[str, set[str]] = {}
    for stem in stems:
        alike.setdefault(stem.lower(), set()).add(stem)
    for stem in stems:
        there = {name: files[name][stem] for name in names if stem in files[name]}
        missing = tuple(name for name in names if name not in there)
        if missing:
            others = alike[stem.lower()] - {stem}
            renamed = any(other in files[name] for other in others for name in missing)
            kind = "partner-case" if renamed else "no-partner"
            scan.problems.append(Problem(kind, tuple(there.values()), missing))
        if there.keys() >= set(IMAGE_FOLDERS):
            complete = all(name in there for name in scan.labels.values())
            labels = {key: there[name] for key, name in scan.labels.items()} if complete else {}
            pair_id = f"{folder.name}/{stem}"
            scan.pairs.append(Pair(pair_id, there["im1"], there["im2"], **labels))
    return scan


def index_pairs(folder: Path) -> list[Pair]:
    """List pairs and labels of ``folder``; a DataError if it has none or a file has no partner."""
    folder = Path(folder)
    scan = scan_folder(folder)
    for place in (folder, *(folder / name for name in IMAGE_FOLDERS)):
        if not place.is_dir():
            expected = layout_hint(folder) or "; a data set has im1, im2, label1 and label2"
            if place == folder:
                expected = "; it needs im1 and im2, and --data-root names its parent"
            raise DataError(f"{place}: no such folder{expected}")
    _refuse(scan.problems)
    if not scan.pairs:
        kinds = ", ".join(sorted(suffix[1:] for suffix in RASTER_SUFFIXES))
        raise DataError(f"{folder}/im1: no images in it; expected {kinds} files")
    return scan.pairs


def index_voted_pairs(root: Path, classes: ClassList) -> list[Pair]:
    """List the pairs of ``root/train``; a DataError where their labels leave nothing to vote on."""
    if classes.is_binary:
        raise DataError(
            f"{root}: change masks: there is nothing to vote; pseudo labels need classes"
        )
    pairs = index_pairs(root / "train")
    missing = [f"label{date}" for date in (1, 2) if date not in pairs[0].labelled_dates]
    if missing:
        raise DataError(
            f"{root / 'train'}: no {' and '.join(missing)}; a vote fills in what labels leave out"
        )
    return pairs


def split_pairs(
    root: Path, options: SplitOptions | None = None
) -> tuple[Split, list[Pair], list[Pair]]:
    """Return the split of a data set, its training pairs and its validation pairs.

    A DataError where labels are missing, of different kinds, or do not fit the split.
    """
    root, options = Path(root), options or SplitOptions()
    pairs = {pair.id: pair for pair in index_pairs(root / "train")}
    if not all(pair.labels for pair in pairs.values()):
        raise DataError(f"{root / 'train'}: no label1 and label2, nor label; training needs labels")
    protocol = options.choose(bool(label_folders(root / "val")))
    if protocol == "folders":
        if differing_labels(root):
            raise DataError(
                f"{differing_labels(root)}; use the same folders in both, or leave val out with "
                "--split every-10th, random or k-fold"
            )
        val_pairs = index_pairs(root / "val")
        split = Split("folders", tuple(pairs), tuple(pair.id for pair in val_pairs))
        pairs |= {pair.id: pair for pair in val_pairs}
    else:
        split = divide(list(pairs), options, protocol)
    return split, [pairs[name] for name in split.train], [pairs[name] for name in split.val]


def pseudo_mask(root: Path, folder: str, pair: Pair) -> Path:
    """Return where label.py writes the mask of a pair; ``folder`` is ``im1`` or ``im2``."""
    return root / folder / f"{pair.name}.png"


def layout_hint(folder: Path) -> str:
    """Return the remedy for images in A and B, as public change sets have them; else nothing."""
    found = [name for name in ("A", "B", "im1", "im2") if (folder / name).is_dir()]
    if found == ["A", "B"]:
        return f"; rename {folder / 'A'} to im1 and {folder / 'B'} to im2, label stays"
    return ""


def label_folders(folder: Path) -> dict[str, str]:
    """Return label folders by key in a sample: of one or both dates, else of change masks."""
    dates = {name: name for name in LABEL_FOLDERS if (folder / name).is_dir()}
    return dates or ({"change_mask": CHANGE_FOLDER} if (folder / CHANGE_FOLDER).is_dir() else {})


def differing_labels(root: Path) -> str:
    """Say that ``train`` or ``val`` has change masks, the other labels of dates; else nothing."""
    train, val = (label_folders(root / name) for name in ("train", "val"))
    if not train or not val or ("change_mask" in train) == ("change_mask" in val):
        return ""
    said = [" and ".join(folders.values()) for folders in (val, train)]
    return f"{root / 'val'}: labels in {said[0]}, but {root / 'train'} has them in {said[1]}"


def files_by_stem(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Return a folder's files of some suffixes by stem, sorted; a DataError if a stem repeats."""
    problems: list[Problem] = []
    files = _list_files(folder, problems, suffixes)
    _refuse(problems)
    return files


def require_partners(
    files1: dict[str, Path], files2: dict[str, Path], folder1: Path, folder2: Path
) -> None:
    """Raise a DataError for files by stem that are in one of two folders only."""
    there = files1 | files2
    alone = sorted(set(files1) ^ set(files2))
    missing = {stem: (folder2 if stem in files1 else folder1).name for stem in alone}
    _refuse([Problem("no-partner", (there[stem],), (name,)) for stem, name in missing.items()])


def and_more(names: Collection[str]) -> str:
    """Return ``(and 2 more)`` behind the first of three names, nothing behind a single one."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _list_files(
    folder: Path, problems: list[Problem], suffixes: Collection[str] | None = None
) -> dict[str, Path]:
    """Return the files of a folder by stem, sorted; an image may be an array, a label not."""
    if suffixes is None:
        suffixes = RASTER_SUFFIXES if folder.name in IMAGE_FOLDERS else IMAGE_SUFFIXES
    for root in folder.absolute().parents[:2]:
        if (root / UNFINISHED).exists():
            raise DataError(
                f"{root}: not finished; wait for the program that writes it, or give its command "
                f"again, whose options are in {UNFINISHED}"
            )
    files: dict[str, Path] = {}
    lower: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        if path.suffix.lower() not in suffixes:
            problems.append(Problem("ignored-files", (path,)))
            continue
        other = files.get(path.stem) or lower.get(path.stem.lower())
        if other is not None:
            kind = "same-stem" if path.stem in files else "name-case"
            problems.append(Problem(kind, (other, path)))
        files.setdefault(path.stem, path)
        lower.setdefault(path.stem.lower(), path)
    return files


def _refuse(problems: Sequence[Problem]) -> None:
    """Raise for files that are there twice, or without a partner."""
    for problem in problems:
        if problem.kind == "same-stem":
            first, second = problem.files
            raise DataError(f"{second} and {first.name}: same name twice; remove one")
    alone = [problem for problem in problems if problem.missing_in]
    if alone:
        path, missing = alone[0].files[0], ", ".join(alone[0].missing_in)
        raise DataError(
            f"{path}: no partner in {missing}{and_more(alone)}; add the file or remove this one (a "
            f"partner is called {path.stem}.*)"
        )
