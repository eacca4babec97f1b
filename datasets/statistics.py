"""What is measured on training pairs: mean and deviation of each band, and what changed."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from datasets.bands import RGB, RGB_IMAGERY, Bands, Imagery
from datasets.classes import IGNORED
from datasets.dataset import ChangeDetectionDataset
from datasets.images import read_header, read_masked, require_bands
from datasets.pairs import Pair
from utils import dist
from utils.errors import DataError
from utils.files import read_json
from utils.text import progress

MEASURED_PAIRS = 100  # of a training run without given statistics
MEASURED_LABELS = 300  # pairs: rare change is in few of them
REPORT_KEY = "band_statistics"  # of check_data.py's report


class Changes(NamedTuple):
    """What the labels of training pairs tell of change.

    ``share``, 0..1, of the pixels with data changed. ``by_chance``, 1/C to 1, is how likely the
    classes of two changed pixels agree; ``same_class`` how much rarer than that the dates of one
    do, as a ratio of odds, 0 (never) to 1. Without labels of both dates, or any change, these are
    1/C and 0.
    """

    share: float
    same_class: float
    by_chance: float


@dataclass(frozen=True)
class BandSums:
    """Sums of values and of their squares per band, in whole numbers: no digit is lost."""

    pixels: int
    sums: tuple[int, ...]
    squares: tuple[int, ...]

    def __add__(self, other: "BandSums") -> "BandSums":
        sums, squares = map(add, self.sums, other.sums), map(add, self.squares, other.squares)
        return BandSums(self.pixels + other.pixels, tuple(sums), tuple(squares))

    def mean(self) -> list[float]:
        """Return the mean of each band, in the images' own units."""
        return [total / max(1, self.pixels) for total in self.sums]

    def std(self) -> list[float]:
        """Return the standard deviation of each band, over all pixels."""
        bands = zip(self.sums, self.squares, strict=True)
        pixels = max(1, self.pixels)
        return [math.sqrt(pixels * square - sum_**2) / pixels for sum_, square in bands]


def sum_bands(image: np.ndarray, valid: np.ndarray | None = None) -> BandSums:
    """Sum up (H, W, bands) uint8 or uint16, where ``valid``, (H, W) bool, holds; None for all."""
    values = image.reshape(-1, image.shape[-1]) if valid is None else image[valid]
    sums, squares = [], []
    for band in values.T:
        counts = np.bincount(band).astype(object if len(values) >= 2**31 else np.int64)
        levels = np.arange(len(counts), dtype=counts.dtype)
        sums.append(int(counts @ levels))
        squares.append(int(counts @ levels**2))
    return BandSums(len(values), tuple(sums), tuple(squares))


def choose_bands(numbers: Sequence[int], image: Path) -> Bands:
    """Return the bands with these numbers, in the depth of a data set's first image."""
    header = read_header(image)
    bands = Bands(tuple(numbers), 16 if header.bits == 16 else 8)
    require_bands(image, header, bands)
    return bands


def find_imagery(bands: Bands, given: Imagery | None, pairs: Sequence[Pair]) -> Imagery:
    """Return bands and statistics for a new run: those given, ImageNet's for RGB, or measured."""
    if given:
        return given
    if bands == RGB:
        return RGB_IMAGERY
    number = len(measured_pairs(pairs))
    dist.print0(f"measuring {bands} on {number} of {len(pairs)} training pairs")
    imagery = dist.broadcast(measure(pairs, bands) if dist.is_main() else None)
    mean, std = (", ".join(f"{v:.1f}" for v in values) for values in (imagery.mean, imagery.std))
    dist.print0(f"mean {mean}; standard deviation {std}")
    return imagery


def measured_pairs(pairs: Sequence, most: int = MEASURED_PAIRS) -> Sequence:
    """Return evenly spread pairs, ``most`` at the most."""
    return pairs[:: max(1, math.ceil(len(pairs) / most))]


def measure(pairs: Sequence[Pair], bands: Bands) -> Imagery:
    """Measure both dates of `measured_pairs`; a DataError if a band has one value everywhere."""
    paths = [path for pair in measured_pairs(pairs) for path in (pair.image1, pair.image2)]
    sums = (sum_bands(*read_masked(path, bands)) for path in progress(paths, "bands"))
    total = reduce(add, sums)
    _require_contrast(total.std(), bands, pairs[0].image1.parent)
    return Imagery(bands, tuple(total.mean()), tuple(total.std()))


def measure_changes(dataset: ChangeDetectionDataset) -> Changes:
    """Measure evenly spread pairs, each as often as the dataset has it; all must call it."""
    classes, often = dataset.task.num_classes, Counter(dataset.pairs)
    pixels, both = torch.zeros(2, dtype=torch.float64), np.zeros((IGNORED, IGNORED))
    indices = measured_pairs(range(len(often)), MEASURED_LABELS)  # all are there before any again
    for pair, labels in _own_labels(dataset, indices):
        changed, known = labels["change_mask"] == 1, labels["change_mask"] != IGNORED
        pixels += often[pair] * torch.stack([changed.sum(), known.sum()])
        if pair.labelled_dates == (1, 2):
            label1, label2 = (labels[key][changed].numpy() for key in ("label1", "label2"))
            cells = np.bincount(label1.astype(np.int64) * IGNORED + label2, minlength=both.size)
            both += often[pair] * cells.reshape(both.shape)
    pixels, counts = dist.all_sum(pixels), dist.all_sum(torch.from_numpy(both)).numpy()
    weight, by_chance = 0.0, 1 / classes
    if counts.any():
        same = counts.trace() / counts.sum()
        shares = (counts.sum(0) + counts.sum(1)) / (2 * counts.sum())
        by_chance = float(shares @ shares)
        most = same * (1 - by_chance) >= (1 - same) * by_chance
        weight = 1.0 if most else same / (1 - same) / (by_chance / (1 - by_chance))
    return Changes(float(pixels[0] / pixels[1].clamp(min=1)), float(weight), by_chance)


def changed_pairs(dataset: ChangeDetectionDataset) -> list[Pair]:
    """Return the pairs with labels of change, in their order; every process must call it."""
    labelled = _own_labels(dataset, range(len(dataset)))
    own = [pair for pair, labels in labelled if (labels["change_mask"] == 1).any()]
    found = {pair for pairs in dist.gather(own) for pair in pairs}
    return [pair for pair in dataset.pairs if pair in found]


def _own_labels(
    dataset: ChangeDetectionDataset, indices: Sequence[int]
) -> Iterator[tuple[Pair, dict[str, torch.Tensor]]]:
    """Read this process's share of the pairs; training speaks of a damaged one when it comes."""
    for index in progress(indices[dist.rank() :: dist.size()], "labels", unit="pair"):
        with suppress(DataError):
            if labels := dataset.labels(index):
                yield dataset.pairs[index], labels


def read_statistics(path: Path, bands: Bands) -> Imagery:
    """Read check_data.py's report, or ``{"mean": […], "std": […]}`` by band number of the files;
    a DataError if it says nothing of a chosen band, or is of another depth.
    """
    try:
        content = read_json(path)
        content = content.get(REPORT_KEY, content)
        if content is None:
            raise DataError(
                f"{path}: no band statistics, since check_data.py found training images of several "
                "kinds, damaged or none; repair what it reports and run it again"
            )
        mean, std = ([float(value) for value in content[name]] for name in ("mean", "std"))
        known, bits = min(len(mean), len(std)), int(content.get("bits", bands.bits))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{path}: no band statistics ({type(error).__name__}: {error}); give check_data.py's "
            'report.json or {"mean": […], "std": […]}'
        ) from error
    if max(bands.numbers) > known:
        raise DataError(
            f"{path}: statistics of {known} bands, but {bands} are used; run check_data.py again"
        )
    if bits != bands.bits:
        raise DataError(f"{path}: statistics of {bits}-bit images, these have {bands.bits} bits")
    means, stds = ([values[number - 1] for number in bands.numbers] for values in (mean, std))
    _require_contrast(stds, bands, path)
    try:
        return Imagery(bands, tuple(means), tuple(stds))
    except ValueError as error:
        raise DataError(f"{path}: {error}; correct the file") from error


def statistics_to_dict(sums: BandSums, bits: int, pairs: int) -> dict[str, Any]:
    """Return statistics as `read_statistics` reads them."""
    return {"bits": bits, "pairs": pairs, "mean": sums.mean(), "std": sums.std()}


def _require_contrast(std: Sequence[float], bands: Bands, where: Path) -> None:
    for number, value in zip(bands.numbers, std, strict=True):
        if not value > 0:
            raise DataError(
                f"{where}: band {number} has one value everywhere; choose others with --bands"
            )
