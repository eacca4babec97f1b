"""What seeds and images allow to say of a difference between two arms.

Both are samples: other seeds would train other weights, other images could have been tested.
Tallies are (S, 3, n, K), of S seeds and n images, each as `tools.scoring.statistics` has them.
"""

import warnings
from collections.abc import Iterable, Mapping

import numpy as np
from scipy import stats

from tools.scoring.statistics import CONFIDENCE, bootstrap, interval, pooled_scores

RESAMPLES = 2000
MIN_SEEDS = 3
PROVEN, WORSE, NOT_SHOWN = "proven", "proven worse", "not shown"

Difference = Mapping[str, float | None]


def compare(arm: np.ndarray, baseline: np.ndarray, score: str) -> Difference:
    """Return arm − baseline in points of percent, for the same seeds and images, (S, 3, n, K).

    It is the ``value``, mean over seeds; the 95 % interval from ``low`` to ``high``; ``welch_p`` of
    two independent groups of seeds of unequal variance, and ``paired_p`` of the differences seed by
    seed. None where one seed alone allows none, or no seed differs.

    The interval is a percentile bootstrap over images and seeds at once, the same draws for both
    arms. A bootstrap of S seeds understates their spread, by √((S − 1) / S) and by taking normal
    quantiles for Student's: 13 of 100 intervals of 5 seeds exclude 0 by chance. Their part is
    widened by both factors, after Hesterberg (The American Statistician 69(4), 2015).
    """
    seeds = len(arm)
    values = [100 * np.array([pooled_scores(each)[score] for each in a]) for a in (arm, baseline)]
    found = {"value": float((values[0] - values[1]).mean())}
    if seeds == 1:
        return found | dict.fromkeys(("low", "high", "welch_p", "paired_p"))
    drawn = np.array([each[score] for each in bootstrap([*arm, *baseline], RESAMPLES)])
    differences = 100 * (drawn[:seeds] - drawn[seeds:])  # (S, B)
    rng = np.random.default_rng(1)  # not the seed that draws the images
    shares = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    of_images = differences.mean(0)
    of_seeds = (shares * differences.T).sum(1) - of_images
    tail = (1 + CONFIDENCE) / 2
    wider = np.sqrt(seeds / (seeds - 1)) * stats.t.ppf(tail, seeds - 1) / stats.norm.ppf(tail)
    found["low"], found["high"] = interval(of_images + wider * of_seeds).tolist()
    with warnings.catch_warnings():  # of seeds that differ by the same
        warnings.simplefilter("ignore", RuntimeWarning)
        welch, paired = stats.ttest_ind(*values, equal_var=False), stats.ttest_rel(*values)
    for name, test in (("welch_p", welch), ("paired_p", paired)):
        found[name] = float(test.pvalue) if np.isfinite(test.pvalue) else None
    return found


def verdict(differences: Iterable[Difference], seeds: int) -> str:
    """Say what those of the best and of the last epoch prove: intervals on one side of 0 each."""
    if seeds < MIN_SEEDS:
        return NOT_SHOWN
    found = list(differences)
    if all(difference["low"] > 0 for difference in found):
        return PROVEN
    return WORSE if all(difference["high"] < 0 for difference in found) else NOT_SHOWN
