"""Counts, scores and resampled intervals behind tools/score.py."""

import math

import numpy as np
import pytest
import torch

from engine.metrics import ConfusionMatrix, compute_metrics
from tests.helpers.random_maps import SCALARS, SIZES, all_maps, counts_of, random_maps
from tools.scoring.statistics import (
    bootstrap,
    compare,
    count_pair,
    drop_one_sided,
    image_scores,
    interval,
    pooled_scores,
    tally,
    weighted_scores,
)


@pytest.mark.parametrize("classes", [1, 2, 6, 16, 254])
def test_counts_equal_a_loop_over_pixels(classes):
    maps = random_maps(3, (12, 9), classes)
    confusion = np.zeros((classes + 1, classes + 1), dtype=int)
    transitions = np.zeros((3, classes + 1, classes + 1), dtype=int)
    for first, second, true1, true2 in zip(*(m.ravel().tolist() for m in maps), strict=True):
        confusion[true1, first] += 1
        confusion[true2, second] += 1
        transitions[0, true1, true2] += 1
        transitions[1, first, second] += 1
        transitions[2, true1, true2] += (true1, true2) == (first, second)
    pair = count_pair(*maps, classes)
    assert np.array_equal(pair.confusion, confusion)
    assert np.array_equal(pair.transitions, transitions)


def codes(mask1: np.ndarray, mask2: np.ndarray) -> torch.Tensor:
    """The definition of transitions: one map of entries (from - 1)·C + to, else 0."""
    return torch.from_numpy(np.where(mask1 > 0, (mask1.astype(int) - 1) * 6 + mask2, 0))


@pytest.mark.parametrize(("matrix", "entries"), [("dates", 7), ("transitions", 37)])
def test_scores_equal_those_of_the_whole_matrix(matrix, entries):
    confusion = ConfusionMatrix(entries)
    for first, second, true1, true2 in all_maps():
        if matrix == "transitions":
            confusion.update(codes(first, second), codes(true1, true2))
        else:
            confusion.update(torch.from_numpy(first), torch.from_numpy(true1))
            confusion.update(torch.from_numpy(second), torch.from_numpy(true2))
    expected = compute_metrics(confusion.counts)
    found = pooled_scores(tally(counts_of(all_maps()), matrix))
    for name in (*SCALARS, "iou_changed", "iou_unchanged", "class_iou"):
        assert found[name] == pytest.approx(getattr(expected, name), abs=1e-12), name


def test_image_scores_are_those_of_each_image_alone():
    counts = counts_of(all_maps())
    together = image_scores(tally(counts, "dates"))
    for i, pair in enumerate(counts):
        alone = compute_metrics(torch.from_numpy(pair.confusion))
        for name in SCALARS:
            assert together[name][i] == pytest.approx(getattr(alone, name), abs=1e-12), name


def test_accuracies_differ_only_where_sizes_do():
    scores = pooled_scores(tally(counts_of(all_maps()), "dates"))
    each = [np.mean([(m[0] == m[2]).mean(), (m[1] == m[3]).mean()]) for m in all_maps()]
    assert scores["oa_image_mean"] == pytest.approx(np.mean(each))
    assert scores["oa_image_mean"] != pytest.approx(scores["oa"], abs=1e-6)
    equal = [random_maps(seed) for seed in range(4)]
    scores = pooled_scores(tally(counts_of(equal), "dates"))
    assert scores["oa_image_mean"] == pytest.approx(scores["oa"])


def test_one_sided_pixels_are_counted_and_dropped():
    first, second = np.array([[0, 3, 0, 2]], np.uint8), np.array([[0, 0, 5, 2]], np.uint8)
    label = np.array([[0, 0, 0, 2]], np.uint8)
    pair = count_pair(first, second, label, label, 6)
    assert pair.one_sided == [0, 2, 0]
    with pytest.raises(ValueError, match="one date alone"):
        tally([pair], "transitions")
    for mask in drop_one_sided(first, second):
        assert mask.tolist() == [[0, 0, 0, 2]]
    with pytest.raises(ValueError, match="shapes"):
        count_pair(first, second, label, label[:, :1], 6)


def test_a_weight_is_a_copy_of_the_image():
    counts = counts_of(all_maps())
    weights = np.array([[2, 0, 1, 3, 0, 0]])
    copies = [counts[i] for i in (0, 0, 2, 3, 3, 3)]
    for matrix in ("dates", "transitions"):
        weighted = weighted_scores(tally(counts, matrix), weights)
        expected = pooled_scores(tally(copies, matrix))
        for name, found in weighted.items():
            assert found[0] == pytest.approx(expected[name], abs=1e-12), name


@pytest.mark.parametrize("matrix", ["dates", "transitions"])
def test_intervals_contain_the_value(matrix):
    counts = counts_of([random_maps(seed, SIZES[seed % 6]) for seed in range(30)])
    tallies = tally(counts, matrix)
    (samples,) = bootstrap([tallies], 400, seed=1)
    for name, found in pooled_scores(tallies).items():
        low, high = interval(samples[name])
        assert (low <= found).all(), name
        assert (found <= high).all(), name
        if name in SCALARS:
            assert low < high


def test_an_interval_has_the_width_of_theory():
    # Mean of image accuracies: standard error = deviation / sqrt(images).
    tallies = tally(counts_of([random_maps(s, right=0.2 + 0.01 * s) for s in range(60)]), "dates")
    (samples,) = bootstrap([tallies], 4000)
    low, high = interval(samples["oa_image_mean"])
    expected = 2 * 1.96 * image_scores(tallies)["oa"].std() / math.sqrt(60)
    assert high - low == pytest.approx(expected, rel=0.08)


def test_resamples_depend_on_the_seed_alone(monkeypatch):
    tallies = tally(counts_of(all_maps()), "dates")
    (first,) = bootstrap([tallies], 64, seed=3)
    monkeypatch.setattr("tools.scoring.statistics.CHUNK_ENTRIES", 150)  # seven draws at a time
    (second,) = bootstrap([tallies], 64, seed=3)
    (third,) = bootstrap([tallies], 64, seed=4)
    assert np.allclose(first["score"], second["score"], rtol=0, atol=1e-12)
    assert not np.allclose(first["score"], third["score"])


def test_paired_differences():
    better, worse = (tally(counts_of(all_maps(right)), "dates") for right in (0.9, 0.5))
    values = [pooled_scores(stack) for stack in (better, worse)]
    samples = bootstrap([better, worse], 300)
    difference = compare(values, samples)["score"]
    assert difference["value"] == pytest.approx(values[0]["score"] - values[1]["score"])
    assert 0 < difference["low"] < difference["value"] < difference["high"]
    assert difference["share_better"] == 1
    opposite = compare(values[::-1], samples[::-1])["score"]
    ends = (-difference["high"], -difference["low"])
    assert (opposite["low"], opposite["high"]) == pytest.approx(ends)
    assert opposite["share_better"] == 0
