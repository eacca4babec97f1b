"""Bi-temporal pairs on disk: the one scanner of the folder layout."""

import os
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from datasets.classes import PRESETS, STANDARD, ClassList, Preset
from datasets.splits import (
    IMAGE_SUFFIXES,
    RASTER_SUFFIXES,
    Split,
    SplitOptions,
    choose_named,
    divide,
    divided_copies,
    read_lines,
)
from utils.errors import DataError

SPLIT_FOLDERS = ("train", "val", "test")
IMAGE_FOLDERS = ("im1", "im2")
LABEL_FOLDERS = ("label1", "label2")
CHANGE_FOLDER = "label"  # change masks, as public sets name it
UNFINISHED = "unfinished.json"  # in a data set until the tool that writes it has come to its end
_READ = ", ".join(sorted(suffix[1:] for suffix in RASTER_SUFFIXES))
# Images in these formats are meant as such, but not read; other suffixes may be anything.
_UNREAD = (".webp", ".jp2", ".j2k", ".gif", ".avif", ".heic", ".ecw")


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
    """What is wrong with names in a folder: ``same-stem``, ``no-partner``, ``partner-case`` (it is
    there in other letters), ``partner-form`` (in another form of Unicode) or ``unread-pair``, which
    forbid training, ``name-case`` or ``ignored-files``.
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


def scan_folder(folder: Path, preset: Preset = STANDARD) -> FolderScan:
    """Index the images and `label_folders` of a split by name; missing folders are empty.

    A DataError where a published list names a pair that is not there.
    """
    _require_finished(folder, folder.absolute().parent)
    place, form, names = locate_split(folder, preset)
    scan = FolderScan(label_folders(folder, preset))
    folders = {date: form[date] for date in IMAGE_FOLDERS} | scan.labels
    files: dict[str, dict[str, Path]] = {}
    for role, name in folders.items():
        if name not in files:  # several labels may be in one file
            suffixes = RASTER_SUFFIXES if role in IMAGE_FOLDERS else IMAGE_SUFFIXES
            files[name] = _list_files(_folders(place, name), scan.problems, suffixes, preset)
    stems = sorted({stem for of_folder in files.values() for stem in of_folder})
    if names:
        known = {stem: stem for stem in stems}
        stems = sorted(choose_named(names, read_lines(names), known, f"is no pair in {place}"))
    alike: dict[str, set[str]] = {}
    for stem in stems:
        alike.setdefault(_plain(stem).lower(), set()).add(stem)
    for stem in stems:
        there = {role: files[name][stem] for role, name in folders.items() if stem in files[name]}
        missing = tuple(dict.fromkeys(name for role, name in folders.items() if role not in there))
        if missing:
            others = alike[_plain(stem).lower()] - {stem}
            renamed = [o for o in others if any(o in files[name] for name in missing)]
            same = any(_plain(other) == _plain(stem) for other in renamed)
            kind = "partner-form" if same else "partner-case" if renamed else "no-partner"
            scan.problems.append(Problem(kind, tuple(there.values()), missing))
        if there.keys() >= set(IMAGE_FOLDERS):
            labels = {key: there[key] for key in scan.labels} if not missing else {}
            scan.pairs.append(Pair(f"{folder.name}/{stem}", there["im1"], there["im2"], **labels))
    ignored = [problem.files[0] for problem in scan.problems if problem.kind == "ignored-files"]
    lost = [p for p in ignored if p.suffix.lower() in _UNREAD and p.stem not in stems]
    for stem in sorted({path.stem for path in lost}):
        pair = tuple(path for path in lost if path.stem == stem)
        if len({path.parent for path in pair}) > 1:
            scan.problems.append(Problem("unread-pair", pair))
    return scan


def index_pairs(folder: Path, preset: Preset = STANDARD) -> list[Pair]:
    """List pairs and labels of ``folder``; a DataError if it has none or a file has no partner."""
    folder = Path(folder)
    scan = scan_folder(folder, preset)
    place, form, _ = locate_split(folder, preset)
    for name in ("", form["im1"], form["im2"]):
        if not _folders(place, name):
            expected = "; a data set has im1, im2, label1 and label2"
            if not name:
                expected = "; it needs im1 and im2, and --data-root names its parent"
            expected = layout_hint(place if name else place.parent) or expected
            raise DataError(f"{place / name}: no such folder{expected}")
    _refuse(scan.problems)
    if not scan.pairs:
        raise DataError(f"{place / form['im1']}: no images in it; expected {_READ} files")
    return scan.pairs


def index_voted_pairs(root: Path, classes: ClassList, preset: Preset = STANDARD) -> list[Pair]:
    """List the pairs of ``root/train``; a DataError where their labels leave nothing to vote on."""
    if classes.is_binary:
        raise DataError(
            f"{root}: change masks: there is nothing to vote; pseudo labels need classes"
        )
    pairs = index_pairs(root / "train", preset)
    missing = [f"label{date}" for date in (1, 2) if date not in pairs[0].labelled_dates]
    if missing:
        raise DataError(
            f"{root / 'train'}: no {' and '.join(missing)}; a vote fills in what labels leave out"
        )
    return pairs


def split_pairs(
    root: Path, options: SplitOptions | None = None, preset: Preset = STANDARD
) -> tuple[Split, list[Pair], list[Pair]]:
    """Return the split of a data set, its training pairs and its validation pairs.

    A DataError where labels are missing, of different kinds, or do not fit the split, and where the
    copies of one tile are on both sides.
    """
    root, options = Path(root), options or SplitOptions()
    pairs = {pair.id: pair for pair in index_pairs(root / "train", preset)}
    if not all(pair.labels for pair in pairs.values()):
        raise DataError(f"{root / 'train'}: no label1 and label2, nor label; training needs labels")
    protocol = options.choose(bool(label_folders(root / "val", preset)))
    if protocol == "folders":
        differing = differing_labels(root, "val", preset)
        if differing:
            raise DataError(
                f"{differing}; use the same folders in both, or leave val out with "
                "--split every-10th, random or k-fold"
            )
        val_pairs = index_pairs(root / "val", preset)
        split = Split("folders", tuple(pairs), tuple(pair.id for pair in val_pairs))
        pairs |= {pair.id: pair for pair in val_pairs}
    else:
        split = divide(list(pairs), options, protocol)
    divided = divided_copies(split)
    if divided:
        raise DataError(
            f"{root}: {' and '.join(divided[0])} are copies of one tile, on both sides of the split"
            f"{and_more(divided)}; keep a tile and its copies on one side"
        )
    return split, [pairs[name] for name in split.train], [pairs[name] for name in split.val]


def test_split(root: Path, preset: Preset = STANDARD) -> str:
    """Return the folder to test on: ``test`` where it holds anything, else ``val``, as of old."""
    folder = Path(root) / "test"
    there = folder.is_dir() and any(folder.glob("[!.]*"))
    return "test" if there or scan_folder(folder, preset).pairs else "val"


test_split.__test__ = False  # pytest takes the name for one of its own


def pseudo_mask(root: Path, folder: str, pair: Pair) -> Path:
    """Return where label.py writes the mask of a pair; ``folder`` is ``im1`` or ``im2``."""
    return root / folder / f"{pair.name}.png"


def layout_hint(folder: Path) -> str:
    """Return the remedy for images in folders of a public layout; nothing for others."""
    if any((folder / name).is_dir() for name in IMAGE_FOLDERS):
        return ""
    alike = [(name, form) for name in PRESETS for form in _forms(folder, PRESETS[name])]
    whole = [each for each in alike if all(_folders(folder, name) for name in each[1].values())]
    if not alike:
        return ""
    remedy = f"name the data set with --preset {' or '.join(name for name, _ in whole or alike)}"
    form = (whole or alike)[-1][1]
    if "label1" not in form:
        image1, image2 = (folder / form[date] for date in IMAGE_FOLDERS)
        stays = ", label stays" if form["change_mask"] == CHANGE_FOLDER else ""
        remedy = f"rename {image1} to im1 and {image2} to im2{stays}; or {remedy}"
    return f"; {remedy}"


def locate_split(
    folder: Path, preset: Preset = STANDARD
) -> tuple[Path, Mapping[str, str], Path | None]:
    """Return where the folders of a split are, their names by role, and the list of its pairs.

    Public sets without split folders have ``ROOT/list/<split>.txt``, or else are all of ``train``.
    """
    place, names = folder, None
    if preset is not STANDARD and not folder.is_dir() and _forms(folder.parent, preset):
        names = folder.parent / "list" / f"{folder.name}.txt"
        names = names if names.is_file() else None
        place = folder.parent if names or folder.name == "train" else folder
    return place, next(iter(_forms(place, preset)), preset.forms[0]), names


def label_folders(folder: Path, preset: Preset = STANDARD) -> dict[str, str]:
    """Return label folders by key in a sample: of one or both dates, else of change masks."""
    place, form, _ = locate_split(folder, preset)
    found = {k: n for k, n in form.items() if k not in IMAGE_FOLDERS and _folders(place, n)}
    dates = {key: name for key, name in found.items() if key in LABEL_FOLDERS}
    return found if preset.coded else dates or found


def differing_labels(root: Path, split: str = "val", preset: Preset = STANDARD) -> str:
    """Say that ``train`` or ``split`` has change masks, the other labels of dates; else nothing."""
    train, other = (label_folders(root / name, preset) for name in ("train", split))
    if not train or not other or ("change_mask" in train) == ("change_mask" in other):
        return ""
    said = [" and ".join(folders.values()) for folders in (other, train)]
    return f"{root / split}: labels in {said[0]}, but {root / 'train'} has them in {said[1]}"


def files_by_stem(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Return a folder's files of some suffixes by stem, sorted; a DataError if a stem repeats."""
    _require_finished(*folder.absolute().parents[:2])
    problems: list[Problem] = []
    files = _list_files([folder] if folder.is_dir() else [], problems, suffixes)
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


def _require_finished(*roots: Path) -> None:
    """Raise a DataError where a folder is a data set that a killed program has left."""
    for root in roots:
        if (root / UNFINISHED).exists():
            raise DataError(
                f"{root}: not finished; wait for the program that writes it, or give its command "
                f"again, whose options are in {UNFINISHED}"
            )


def _list_files(
    folders: Sequence[Path],
    problems: list[Problem],
    suffixes: Collection[str],
    preset: Preset = STANDARD,
) -> dict[str, Path]:
    """Return the files of folders by stem, sorted."""
    files: dict[str, Path] = {}
    lower: dict[str, Path] = {}
    found = {Path(entry): entry.is_dir() for folder in folders for entry in os.scandir(folder)}
    for path, is_folder in sorted(found.items()):
        if path.name.startswith("."):
            continue
        if is_folder or path.suffix.lower() not in suffixes:
            problems.append(Problem("ignored-files", (path,)))
            continue
        stem = preset.stem(path)
        other = files.get(stem) or lower.get(stem.lower())
        if other is not None:
            kind = "same-stem" if stem in files else "name-case"
            problems.append(Problem(kind, (other, path)))
        files.setdefault(stem, path)
        lower.setdefault(stem.lower(), path)
    return files


def _forms(place: Path, preset: Preset) -> list[Mapping[str, str]]:
    """Return the forms of a preset whose folders of images are there."""
    dates = [[form for form in preset.forms if _folders(place, form[d])] for d in IMAGE_FOLDERS]
    return [form for form in dates[0] if form in dates[1]]


def _folders(place: Path, name: str) -> list[Path]:
    if "*" in name:
        return sorted(path for path in place.glob(name) if path.is_dir())
    return [place / name] if (place / name).is_dir() else []


def _plain(stem: str) -> str:
    """Return a name in one form of Unicode: file systems may compose letters and accents or not."""
    return unicodedata.normalize("NFC", stem)


def _refuse(problems: Sequence[Problem]) -> None:
    """Raise for files that are there twice, without a partner, or pairs that would be lost."""
    for problem in problems:
        if problem.kind == "same-stem":
            first, second = problem.files
            raise DataError(f"{second} and {first.name}: same name twice; remove one")
    alone = [problem for problem in problems if problem.missing_in]
    if alone:
        path, missing = alone[0].files[0], ", ".join(alone[0].missing_in)
        note = ""
        if alone[0].kind == "partner-form":
            composed = _plain(path.stem) == path.stem
            note = f", which spells the name in other bytes (here {path.stem!a}, "
            note += f"{'composed' if composed else 'decomposed'} Unicode)"
        raise DataError(
            f"{path}: no partner in {missing}{note}{and_more(alone)}; add the file or remove this "
            f"one (a partner is called {path.stem}.*)"
        )
    unread = [problem for problem in problems if problem.kind == "unread-pair"]
    if unread:
        raise DataError(
            f"{unread[0].files[0]}: a pair in a format that is not read{and_more(unread)}; save it "
            f"as one of {_READ}, or move it elsewhere"
        )
