"""Which division of a data set is asked for, and the name under which it is recorded."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from utils.errors import DataError, OptionError
from utils.files import read_text

# Every protocol, and the options that are its own.
PROTOCOLS = {
    **dict.fromkeys(("every-10th", "folders"), ()),
    "lists": ("val_list", "train_list"),
    "random": ("val_fraction", "split_seed"),
    "k-fold": ("folds", "fold", "split_seed"),
}
VAL_FRACTION, FOLDS, SPLIT_SEED = 0.1, 5, 0  # where random and k-fold are asked for without them
PUBLISHED_STEP = 10
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})  # masks as well
RASTER_SUFFIXES = IMAGE_SUFFIXES | {".npy"}
# How Landsat-SCD calls the copies of a tile that it was augmented with.
_COPY = re.compile(r"(?<=\d)(CropResize|Zhe[dD]ang|rotate)\d+$")
_K_FOLD = re.compile(r"k-fold\(k=(\d+), fold=(\d+), seed=(\d+)\)")


@dataclass(frozen=True)
class SplitOptions:
    """A protocol of `PROTOCOLS` and its parameters; impossible ones are an OptionError.

    Without a protocol, lists decide, else a labelled ROOT/val, else every 10th name is taken.
    """

    protocol: str | None = None
    val_list: Path | None = None
    train_list: Path | None = None
    val_fraction: float | None = None
    folds: int | None = None
    fold: int | None = None
    split_seed: int | None = None

    def __post_init__(self) -> None:
        if self.protocol not in (None, *PROTOCOLS):
            raise OptionError(f"--split {self.protocol}: choose from {', '.join(PROTOCOLS)}")
        require_options_of(self.protocol or "lists", vars(self))
        if self.val_list is None and (self.train_list is not None or self.protocol == "lists"):
            given = "--train-list" if self.train_list else "--split lists"
            raise OptionError(f"{given} needs --val-list beside it")
        if self.protocol != "k-fold":
            return
        folds = FOLDS if self.folds is None else self.folds
        if folds < 2:
            raise OptionError(f"--folds {folds}: a k-fold split has at least 2")
        if self.fold is None or not 0 <= self.fold < folds:
            given = "" if self.fold is None else f" {self.fold}"
            raise OptionError(
                f"--fold{given}: name the fold to validate on, 0 to {folds - 1} of {folds}"
            )

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "SplitOptions":
        """Return what a script's options, or those that a run has left, ask for."""
        own = {name: options.get(name) for names in PROTOCOLS.values() for name in names}
        own |= {name: Path(own[name]) if own[name] else None for name in PROTOCOLS["lists"]}
        return cls(options.get("split"), **own)

    def choose(self, val_labelled: bool) -> str:
        """Return the protocol that holds where ROOT/val has labels, or has none."""
        if self.protocol == "folders" and not val_labelled:
            raise OptionError(
                "--split folders: ROOT/val has no label1 and label2, nor label; use another split"
            )
        if self.protocol or self.val_list:
            return self.protocol or "lists"
        return "folders" if val_labelled else "every-10th"


@dataclass(frozen=True)
class Split:
    """Sorted ids ``train/<stem>`` or ``val/<stem>``, and what tells their scores apart, such as
    ``every-10th`` or ``k-fold(k=5, fold=0, seed=0)``.
    """

    protocol: str
    train: tuple[str, ...]
    val: tuple[str, ...]

    def to_dict(self) -> dict:
        """Return plain values, as checkpoints store them."""
        return {"protocol": self.protocol, "train": list(self.train), "val": list(self.val)}


def require_options_of(protocol: str, options: Mapping[str, Any]) -> None:
    """Raise an OptionError for options given, not None, that another protocol has alone."""
    foreign = {name for names in PROTOCOLS.values() for name in names}
    for name in sorted(foreign - set(PROTOCOLS.get(protocol, ()))):
        if options.get(name) is not None:
            users = " or ".join(key for key, names in PROTOCOLS.items() if name in names)
            raise OptionError(f"--{name.replace('_', '-')} is for --split {users}")


AS_THE_DATA_SUGGESTS = SplitOptions()


def parse_k_fold(protocol: str) -> tuple[str, int, int] | None:
    """Return whole k-fold, number of folds and which one it is, of a recorded name; else None."""
    match = _K_FOLD.fullmatch(protocol)
    if match is None:
        return None
    folds, fold, seed = map(int, match.groups())
    return f"k-fold(k={folds}, seed={seed})", folds, fold


def divide(ids: Sequence[str], options: SplitOptions, protocol: str) -> Split:
    """Divide ids ``train/<stem>``, but not by ``folders``; a DataError if they do not fit.

    A tile and its augmented copies stay on one side, which lists have to see to themselves.
    """
    given = {name: value for name, value in asdict(options).items() if value is not None}
    seed = given.get("split_seed", SPLIT_SEED)
    if protocol == "lists":
        return from_lists(ids, options.train_list, options.val_list)
    tiles = _tiles(ids)
    if protocol == "random":
        split = random_fraction(list(tiles), given.get("val_fraction", VAL_FRACTION), seed)
    elif protocol == "k-fold":
        split = k_fold(list(tiles), given.get("folds", FOLDS), options.fold, seed)
    else:
        split = every_10th(list(tiles))
    sides = (sorted(i for t in tiles_of for i in tiles[t]) for tiles_of in (split.train, split.val))
    return Split(split.protocol, *map(tuple, sides))


def divided_copies(split: Split) -> list[tuple[str, str]]:
    """Return a training and a validation name of each tile with copies on both sides."""
    train, val = (
        _tiles(name.rpartition("/")[2] for name in ids) for ids in (split.train, split.val)
    )
    both = ((tile, train[tile] + val[tile]) for tile in train if tile in val)
    return [(names[0], names[-1]) for tile, names in both if set(names) != {tile}]


def _tiles(names: Iterable[str]) -> dict[str, list[str]]:
    """Group names by the tile that they are, or are copies of."""
    tiles: dict[str, list[str]] = {}
    for name in names:
        tiles.setdefault(_COPY.sub("", name), []).append(name)
    return tiles


def every_10th(ids: Sequence[str]) -> Split:
    """Validate on every 10th name in sorted order, the first included: the published protocol."""
    ids = sorted(ids)
    if len(ids) < 2:
        raise DataError(
            f"{len(ids)} labelled pair is too few to hold some out; add pairs or label ROOT/val"
        )
    return _hold_out("every-10th", ids, ids[::PUBLISHED_STEP])


def random_fraction(ids: Sequence[str], fraction: float, seed: int) -> Split:
    """Validate on a fraction of the pairs, drawn at random; half a pair is rounded up."""
    order = _shuffled(ids, seed)
    number = int(fraction * len(order) + 0.5)
    if not 0 < number < len(order):
        side = "train" if number else "validate"
        raise DataError(
            f"--val-fraction {fraction:g} of {len(order)} labelled pairs leaves none to {side} on; "
            "choose another fraction or add pairs"
        )
    return _hold_out(f"random(fraction={fraction}, seed={seed})", ids, order[:number])


def k_fold(ids: Sequence[str], folds: int, fold: int, seed: int) -> Split:
    """Validate on one of k random parts, whose sizes differ by one pair at most."""
    order = _shuffled(ids, seed)
    if len(order) < folds:
        raise DataError(
            f"{len(order)} labelled pairs are too few for {folds} folds; add pairs or lower --folds"
        )
    return _hold_out(f"k-fold(k={folds}, fold={fold}, seed={seed})", ids, order[fold::folds])


def from_lists(ids: Sequence[str], train_list: Path | None, val_list: Path) -> Split:
    """Read names from lists; without ``train_list`` all that ``val_list`` leaves are trained on."""
    val = _read_list(val_list, ids)
    train = _read_list(train_list, ids) if train_list else sorted(set(ids) - set(val))
    both = set(train) & set(val)
    if both:
        raise DataError(
            f"{train_list} and {val_list}: {len(both)} pairs are in both, {min(both)} first; "
            "remove them from one list"
        )
    if not train:
        raise DataError(f"{val_list}: names every pair, none is left to train on")
    return Split("lists", tuple(train), tuple(val))


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not blank; a DataError if there are none."""
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected one name a line") from error
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        raise DataError(f"{path}: no names in it; write one a line")
    return lines


def choose_named(path: Path, lines: Sequence[str], known: Mapping[str, str], no: str) -> list[str]:
    """Return the ``known`` that a list's lines name, in order; a DataError if none or twice."""
    chosen = []
    # An accent may be written in two ways.
    known = {unicodedata.normalize("NFC", name): value for name, value in known.items()} | known
    for line in lines:
        name, suffix = Path(line).name, Path(line).suffix
        if name not in known and suffix.lower() in RASTER_SUFFIXES:  # others are part of the name
            name = Path(line).stem
        if name not in known:
            name = unicodedata.normalize("NFC", name)
        if name not in known:
            raise DataError(f"{path}: {line!r} {no}; correct the list")
        chosen.append(known[name])
    if len(set(chosen)) < len(chosen):
        raise DataError(f"{path}: names repeat; list each pair once")
    return chosen


def _read_list(path: Path, ids: Sequence[str]) -> list[str]:
    lines = read_lines(path)
    for line in lines:
        if Path(line).parts[:1] == ("val",):
            raise DataError(f"{path}: {line!r} is in the test folder; lists divide ROOT/train")
    known = {name.rsplit("/", 1)[-1]: name for name in ids}
    return sorted(choose_named(path, lines, known, "is no pair of the training folder"))


def _hold_out(protocol: str, ids: Sequence[str], val: Sequence[str]) -> Split:
    return Split(protocol, tuple(sorted(set(ids) - set(val))), tuple(sorted(val)))


def _shuffled(ids: Sequence[str], seed: int) -> list[str]:
    # A hash of seed and name, as no generator promises the same draws in its next version. Pairs
    # that are added later leave the order of the others as it is.
    def key(name: str) -> bytes:
        return hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogateescape")).digest()

    return sorted(ids, key=key)
