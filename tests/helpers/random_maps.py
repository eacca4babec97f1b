"""Predictions and labels drawn at random, for the tests of scores."""

import numpy as np

from tools.scoring.statistics import count_pair

SCALARS = ("score", "miou", "sek", "f_scd", "f_scd_precision", "f_scd_recall", "oa", "kappa")
SIZES = ((24, 32), (16, 16), (40, 20), (32, 32), (8, 48), (24, 24))
Maps = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def random_maps(
    seed: int, size: tuple[int, int] = (24, 32), classes: int = 6, right: float = 0.7
) -> Maps:
    """Prediction and label maps of both dates; each pair changes in the same pixels."""
    rng = np.random.default_rng(seed)
    changed = rng.random(size) < 0.3
    found = np.where(rng.random(size) < 0.85, changed, ~changed)
    labels = [rng.integers(1, classes + 1, size) * changed for _ in range(2)]
    predictions = []
    for label in labels:
        guess = rng.integers(1, classes + 1, size)
        named = np.where((label > 0) & (rng.random(size) < right), label, guess)
        predictions.append(named * found)
    return tuple(mask.astype(np.uint8) for mask in (*predictions, *labels))


def all_maps(right: float = 0.7, classes: int = 6) -> list[Maps]:
    return [random_maps(seed, size, classes, right) for seed, size in enumerate(SIZES)]


def counts_of(maps: list[Maps], classes: int = 6) -> list:
    return [count_pair(*pair, classes) for pair in maps]
