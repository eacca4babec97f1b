"""Which bands of the image files are used, how deep they are, and how they are distributed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, in 0..255
IMAGENET_STD = (58.395, 57.12, 57.375)
MAX_BANDS = 128  # what OpenCV 5 flips and turns at once


@dataclass(frozen=True)
class Bands:
    """Band numbers of a file, from 1 in order of use, and 8 or 16 bits; others are a ValueError."""

    numbers: tuple[int, ...] = (1, 2, 3)
    bits: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", tuple(self.numbers))
        whole = all(type(n) is int and 1 <= n <= MAX_BANDS for n in self.numbers)
        if not self.numbers or not whole or len(set(self.numbers)) < len(self.numbers):
            raise ValueError(f"bands {self.numbers!r} are not different ones of 1 to {MAX_BANDS}")
        if type(self.bits) is not int or self.bits not in (8, 16):
            raise ValueError(f"{self.bits!r} bits per value; 8 or 16 are known")

    @property
    def dtype(self) -> str:
        """Type of the values: ``uint8`` or ``uint16``."""
        return f"uint{self.bits}"

    def __str__(self) -> str:
        plural = "s" if len(self.numbers) > 1 else ""
        return f"band{plural} {', '.join(map(str, self.numbers))} of {self.bits} bits"


RGB = Bands()


@dataclass(frozen=True)
class Imagery:
    """What a model sees: its bands (or a dict of their attributes), and what normalises them.

    ``mean`` and ``std`` are in the files' own units; others are a ValueError or TypeError.
    """

    bands: Bands = RGB
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if isinstance(self.bands, dict):
            object.__setattr__(self, "bands", Bands(**self.bands))
        if not isinstance(self.bands, Bands):
            raise TypeError(f"bands {self.bands!r} are not numbers and bits")
        for name in ("mean", "std"):
            try:
                values = tuple(float(value) for value in getattr(self, name))
            except OverflowError as error:
                raise ValueError(f"{name} is not a finite number for each band used") from error
            object.__setattr__(self, name, values)
            if len(values) != len(self.bands.numbers) or not all(map(math.isfinite, values)):
                raise ValueError(f"{name} {list(values)} is not a finite number for each band used")
        if min(self.std) <= 0:
            raise ValueError(f"std {list(self.std)} is not above 0 for each band used")


RGB_IMAGERY = Imagery()


def union(selections: Sequence[Bands]) -> Bands:
    """Return the bands that serve several selections; a ValueError if their depths differ."""
    depths = sorted({selection.bits for selection in selections})
    if len(depths) > 1:
        raise ValueError("images of 8 and of 16 bits")
    if len(set(selections)) == 1:
        return selections[0]
    return Bands(tuple(sorted({n for s in selections for n in s.numbers})), depths[0])
