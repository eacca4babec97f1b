"""Which division of a data set is asked for, and the name under which it is recorded."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import OptionError

# Every protocol, and the options that are its own.
PROTOCOLS = {
    "every-10th": (),
    "folders": (),
    "lists": ("val_list", "train_list"),
    "random": ("val_fraction", "split_seed"),
    "k-fold": ("folds", "fold", "split_seed"),
}
VAL_FRACTION, FOLDS, SEED = 0.1, 5, 0  # where random and k-fold are asked for without them
_K_FOLD = re.compile(r"k-fold\(k=(\d+), fold=(\d+), seed=(\d+)\)")


@dataclass(frozen=True)
class SplitOptions:
    """A protocol and its parameters; without any, what the data set suggests.

    Attributes:
        protocol: a key of `PROTOCOLS`. None takes lists if there are any, else a labelled
            ROOT/val, else every 10th name.
        val_list, train_list: files of names, of ``lists``.
        val_fraction: 0..1, of ``random``.
        folds, fold: how many, and which one to validate on, from 0; of ``k-fold``.
        split_seed: decides the order from which ``random`` and ``k-fold`` draw.

    Raises:
        OptionError: an unknown protocol, parameters of another one, missing or impossible ones.
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
        if self.protocol == "k-fold":
            self._check_folds()

    def _check_folds(self) -> None:
        folds = self.number_of_folds
        if folds < 2:
            raise OptionError(f"--folds {folds}: a k-fold split has at least 2")
        if self.fold is None or not 0 <= self.fold < folds:
            given = "" if self.fold is None else f" {self.fold}"
            raise OptionError(
                f"--fold{given}: name the fold to validate on, 0 to {folds - 1} of {folds}"
            )

    @property
    def seed(self) -> int:
        """What decides the order from which pairs are drawn."""
        return SEED if self.split_seed is None else self.split_seed

    @property
    def number_of_folds(self) -> int:
        """Into how many parts ``k-fold`` divides the pairs."""
        return FOLDS if self.folds is None else self.folds

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "SplitOptions":
        """Return what a script's options, or those that a run has left, ask for."""
        lists = {name: options.get(name) for name in PROTOCOLS["lists"]}
        return cls(
            options.get("split"),
            **{name: Path(path) if path else None for name, path in lists.items()},
            **{name: options.get(name) for name in ("val_fraction", "folds", "fold", "split_seed")},
        )

    def choose(self, val_labelled: bool) -> str:
        """Return the protocol that holds where ROOT/val has labels, or has none.

        Raises:
            OptionError: ``folders`` is asked for, but there are no labels.
        """
        if self.protocol == "folders" and not val_labelled:
            raise OptionError(
                "--split folders: ROOT/val has no label1 and label2, nor label; add them or choose "
                "another split"
            )
        if self.protocol or self.val_list:
            return self.protocol or "lists"
        return "folders" if val_labelled else "every-10th"


def require_options_of(protocol: str, options: Mapping[str, Any]) -> None:
    """Refuse options that another protocol has and this one has not.

    Raises:
        OptionError: one is given, that is, not None.
    """
    foreign = {name for names in PROTOCOLS.values() for name in names}
    for name in sorted(foreign - set(PROTOCOLS.get(protocol, ()))):
        if options.get(name) is not None:
            users = " or ".join(key for key, names in PROTOCOLS.items() if name in names)
            raise OptionError(f"--{name.replace('_', '-')} is for --split {users}")


def k_fold_name(folds: int, fold: int, seed: int) -> str:
    """Return how one fold is recorded."""
    return f"k-fold(k={folds}, fold={fold}, seed={seed})"


def parse_k_fold(protocol: str) -> tuple[str, int, int] | None:
    """Take a recorded name apart.

    Returns:
        The name of the whole k-fold, the number of folds, and which one it is; None for the name
        of another protocol.
    """
    match = _K_FOLD.fullmatch(protocol)
    if match is None:
        return None
    folds, fold, seed = map(int, match.groups())
    return f"k-fold(k={folds}, seed={seed})", folds, fold


AS_THE_DATA_SUGGESTS = SplitOptions()
