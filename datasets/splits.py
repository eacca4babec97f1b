"""Which pairs are trained on and which are validated on: protocols by name."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.name_lists import choose_named, read_lines
from utils.errors import DataError
from utils.split_options import VAL_FRACTION, SplitOptions, k_fold_name

PUBLISHED_STEP = 10


@dataclass(frozen=True)
class Split:
    """A division of a data set, recorded in every checkpoint.

    Attributes:
        protocol: ``every-10th``, ``folders``, ``lists``, or with what tells their scores apart
            ``random(fraction=0.1, seed=0)`` or ``k-fold(k=5, fold=0, seed=0)``.
        train: ids ``train/<stem>`` of the training pairs, sorted.
        val: ids ``train/<stem>`` or ``val/<stem>`` of the validation pairs, sorted.
    """

    protocol: str
    train: tuple[str, ...]
    val: tuple[str, ...]

    def to_dict(self) -> dict:
        """Return plain values, as checkpoints store them."""
        return {"protocol": self.protocol, "train": list(self.train), "val": list(self.val)}


def divide(ids: Sequence[str], options: SplitOptions, protocol: str) -> Split:
    """Divide the pairs of ROOT/train.

    Args:
        ids: all ids there are, ``train/<stem>``.
        options: parameters of the protocol.
        protocol: any but ``folders``, as `SplitOptions.choose` returned it.

    Raises:
        DataError: there are too few pairs, or lists do not fit them.
    """
    if protocol == "lists":
        return from_lists(ids, options.train_list, options.val_list)
    if protocol == "random":
        fraction = VAL_FRACTION if options.val_fraction is None else options.val_fraction
        return random_fraction(ids, fraction, options.seed)
    if protocol == "k-fold":
        return k_fold(ids, options.number_of_folds, options.fold, options.seed)
    return every_10th(ids)


def every_10th(ids: Sequence[str]) -> Split:
    """Validate on every 10th name in sorted order, the first included: the published protocol.

    Raises:
        DataError: fewer than two pairs.
    """
    ids = sorted(ids)
    if len(ids) < 2:
        raise DataError(
            f"{len(ids)} labelled pair is too few to hold some out; add pairs, or a ROOT/val with "
            "labels"
        )
    return Split(
        "every-10th",
        train=tuple(name for i, name in enumerate(ids) if i % PUBLISHED_STEP),
        val=tuple(ids[::PUBLISHED_STEP]),
    )


def folders(train_ids: Sequence[str], val_ids: Sequence[str]) -> Split:
    """Train on ROOT/train and validate on ROOT/val."""
    return Split("folders", tuple(sorted(train_ids)), tuple(sorted(val_ids)))


def random_fraction(ids: Sequence[str], fraction: float, seed: int) -> Split:
    """Validate on a fraction of the pairs, drawn at random; half a pair is rounded up.

    Raises:
        DataError: one side is left empty.
    """
    order = _shuffled(ids, seed)
    number = int(fraction * len(order) + 0.5)
    if not 0 < number < len(order):
        side = "train" if number else "validate"
        raise DataError(
            f"--val-fraction {fraction:g} of {len(order)} labelled pairs leaves none to {side} on; "
            "choose another fraction or add pairs"
        )
    name = f"random(fraction={fraction}, seed={seed})"
    return Split(name, tuple(sorted(order[number:])), tuple(sorted(order[:number])))


def k_fold(ids: Sequence[str], folds: int, fold: int, seed: int) -> Split:
    """Validate on one of k random parts, whose sizes differ by one pair at most.

    Raises:
        DataError: fewer pairs than folds.
    """
    order = _shuffled(ids, seed)
    if len(order) < folds:
        raise DataError(
            f"{len(order)} labelled pairs are too few for {folds} folds; choose fewer --folds or "
            "add pairs"
        )
    val = order[fold::folds]
    train = sorted(set(order) - set(val))
    return Split(k_fold_name(folds, fold, seed), tuple(train), tuple(sorted(val)))


def _shuffled(ids: Sequence[str], seed: int) -> list[str]:
    # A hash of seed and name, as no generator promises the same draws in its next version. Pairs
    # that are added later leave the order of the others as it is.
    def key(name: str) -> bytes:
        return hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogateescape")).digest()

    return sorted(ids, key=key)


def from_lists(ids: Sequence[str], train_list: Path | None, val_list: Path) -> Split:
    """Read file names from text files, one a line, with or without folder and suffix.

    Args:
        ids: all ids there are, ``train/<stem>``.
        train_list: names to train on; None takes all that ``val_list`` does not name.
        val_list: names to validate on.

    Raises:
        DataError: a list is unreadable or empty, names a pair that does not exist, or both lists
            name the same pair.
    """
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


def _read_list(path: Path, ids: Sequence[str]) -> list[str]:
    lines = read_lines(path)
    for line in lines:
        if Path(line).parts[:1] == ("val",):
            raise DataError(f"{path}: {line!r} is in the test folder; lists divide ROOT/train")
    known = {name.rsplit("/", 1)[-1]: name for name in ids}
    return sorted(choose_named(path, lines, known, "is no pair of the training folder"))
