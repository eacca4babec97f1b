"""What seeds and images allow to say of a difference between two arms.

Both are a sample: other seeds would train other weights, and other images would be tested. Tallies
come in as (S, 3, n, K), of S seeds and n images, as `tools.scoring.statistics` has them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from tools.scoring.statistics import CONFIDENCE, interval, pooled_scores, weighted_scores

RESAMPLES = 2000
MIN_SEEDS = 3
PROVEN, WORSE, NOT_SHOWN = "proven", "proven worse", "not shown"


@dataclass(frozen=True)
class Difference:
    """Arm − baseline in points of percent, with its interval; p is NaN where there is none."""

    value: float
    low: float
    high: float
    welch_p: float  # of two independent groups of seeds of unequal variance
    paired_p: float  # of the differences seed by seed

    @property
    def side(self) -> int:
        """1 or −1 where the interval lies above or below 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def seed_scores(tallies: np.ndarray, score: str) -> np.ndarray:
    """Return the score of each seed over all images, in percent: (S,)."""
    return 100 * np.array([pooled_scores(each)[score] for each in tallies])


def compare(arm: np.ndarray, baseline: np.ndarray, score: str, seed: int = 0) -> Difference:
    """Compare tallies of the same seeds and images, both (S, 3, n, K).

    The interval is a percentile bootstrap that draws images and seeds with replacement, the same
    for both arms; a resample's value is the mean over its seeds of the difference of scores over
    its images. With few seeds their spread in a bootstrap is too small: by √((S − 1) / S), and by
    normal quantiles in place of Student's. The seeds' part is widened by both, as Hesterberg
    proposes (The American Statistician 69(4), 2015, "narrowness bias"). One seed has no interval.
    """
    seeds, images = len(arm), arm.shape[2]
    values = [seed_scores(each, score) for each in (arm, baseline)]
    value = float(np.mean(values[0] - values[1]))
    if seeds < 2:
        return Difference(value, *[float("nan")] * 4)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(images, np.full(images, 1 / images), size=RESAMPLES)
    drawn = [
        np.stack([weighted_scores(each, weights)[score] for each in a]) for a in (arm, baseline)
    ]
    differences = 100 * (drawn[0] - drawn[1])  # (S, B)
    of_images = differences.mean(0)
    shares = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    of_seeds = (shares * differences.T).sum(1) - of_images
    tail = (1 + CONFIDENCE) / 2
    wider = np.sqrt(seeds / (seeds - 1)) * stats.t.ppf(tail, seeds - 1) / stats.norm.ppf(tail)
    low, high = interval(of_images + wider * of_seeds)
    with np.errstate(all="ignore"):  # seeds that agree in every digit
        tests = (stats.ttest_ind(*values, equal_var=False), stats.ttest_rel(*values))
    return Difference(value, float(low), float(high), *(float(test.pvalue) for test in tests))


def verdict(by_epoch: Mapping[str, Difference], seeds: int) -> str:
    """Say what is proven: the same side of 0 with the best and the last epoch, of enough seeds."""
    sides = {difference.side for difference in by_epoch.values()}
    if seeds < MIN_SEEDS or len(sides) > 1:
        return NOT_SHOWN
    return {1: PROVEN, -1: WORSE, 0: NOT_SHOWN}[sides.pop()]
