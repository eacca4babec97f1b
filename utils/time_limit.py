"""Finishing in time: fewer views per pair when the clock demands it."""

import time
from collections.abc import Callable, Iterable, Iterator

from utils.inference import Predictor

# Kept back for writing the last masks and for batches that take longer than the mean.
RESERVE = 0.05


def views_within(remaining_s: float, remaining_pairs: int, view_s: float, views: int) -> int:
    """Return how many views each remaining pair can have.

    Args:
        remaining_s: seconds left.
        remaining_pairs: pairs not yet predicted.
        view_s: measured seconds per pair and view, over all models.
        views: views in use, the most that is returned; the least is 1.
    """
    affordable = remaining_s * (1 - RESERVE) / max(remaining_pairs * view_s, 1e-9)
    return max(1, min(views, int(affordable)))


def within_time_limit(
    batches: Iterable[dict],
    predictor: Predictor,
    num_pairs: int,
    deadline: float,
    say: Callable[[str], None] = print,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[dict]:
    """Pass batches on and take views from the predictor whenever the rest would end too late.

    The speed is first measured by predicting the first batch once with a single view, then anew
    after every batch, reading and writing included.

    Args:
        batches: dicts with ``image1``, ``image2`` and ``name``; the receiver predicts them.
        predictor: loses views at the end of its list, never the first.
        num_pairs: pairs in all batches together.
        deadline: reading of ``clock`` at which all must be done.
        say: told about each reduction.
        clock: seconds.
    """
    wanted, done, pair_views, started = predictor.views, 0, 0, None
    for batch in batches:
        if started is None:
            started = clock()
            predictor.views = wanted[:1]
            # Reading a value waits for the device; else only the launch would be timed.
            predictor(batch["image1"], batch["image2"]).change_probs.sum().item()
            pair_views += len(batch["name"])
            predictor.views = wanted
        now = clock()
        view_s = (now - started) / pair_views
        affordable = views_within(deadline - now, num_pairs - done, view_s, len(wanted))
        if affordable < len(predictor.views):
            say(f"{affordable} of {len(wanted)} views from pair {done} on, to end in time")
        predictor.views = wanted[:affordable]
        yield batch
        done += len(batch["name"])
        pair_views += len(batch["name"]) * affordable
