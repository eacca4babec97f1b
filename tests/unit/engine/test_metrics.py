import math
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.classes import IGNORED
from engine.metrics import ConfusionMatrix, Metrics, compute_metrics

FRACTIONS = (
    *("score", "miou", "sek", "f_scd", "f_scd_precision", "f_scd_recall", "oa", "kappa"),
    *("iou_unchanged", "iou_changed"),
)


def count(prediction: torch.Tensor, label: torch.Tensor, entries: int = 7) -> torch.Tensor:
    confusion = ConfusionMatrix(entries)
    confusion.update(prediction, label)
    return confusion.counts


def random_maps(seed: int = 0, entries: int = 7, right: float = 0.7) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, entries, (4, 20, 20), generator=generator)
    guess = torch.randint(0, entries, label.shape, generator=generator)
    prediction = torch.where(torch.rand(label.shape, generator=generator) < right, label, guess)
    return prediction.to(torch.uint8), label.to(torch.uint8)


def values(metrics: Metrics) -> list[float]:
    return [getattr(metrics, name) for name in FRACTIONS] + list(metrics.class_iou)


def test_scores_are_the_published_ones():
    with np.load(Path(__file__).parents[2] / "data" / "metrics.npz") as figures:
        maps = [torch.from_numpy(figures[name]) for name in ("prediction", "label")]
        metrics = compute_metrics(count(*maps))
        for name in ("score", "miou", "sek"):
            assert getattr(metrics, name) == pytest.approx(float(figures[name]), abs=1e-6), name


@pytest.mark.parametrize("entries", [2, 7, 9])
def test_counts_equal_a_loop_over_pixels(entries):
    prediction, label = random_maps(entries=entries)
    expected = np.zeros((entries, entries), dtype=np.int64)
    for row, column in zip(label.flatten().tolist(), prediction.flatten().tolist(), strict=True):
        expected[row, column] += 1
    assert np.array_equal(count(prediction, label, entries).numpy(), expected)


def test_scores_equal_their_definitions():
    counts = count(*random_maps()).numpy().astype(float)
    metrics = compute_metrics(torch.from_numpy(counts))
    total, unchanged = counts.sum(), counts[0, 0]
    iou = [counts[i, i] / (counts[i].sum() + counts[:, i].sum() - counts[i, i]) for i in range(7)]
    changed = counts[1:, 1:].sum() / (total - unchanged)
    assert metrics.class_iou == pytest.approx(iou)
    assert metrics.iou_unchanged == pytest.approx(iou[0])
    assert metrics.iou_changed == pytest.approx(changed)
    assert metrics.miou == pytest.approx((iou[0] + changed) / 2)
    assert metrics.oa == pytest.approx(np.trace(counts) / total)
    rest = counts.copy()
    rest[0, 0] = 0
    observed = np.trace(rest) / rest.sum()
    expected = rest.sum(0) @ rest.sum(1) / rest.sum() ** 2
    sek = (observed - expected) / (1 - expected) * math.exp(changed - 1)
    assert metrics.sek == pytest.approx(sek)
    assert metrics.score == pytest.approx(0.3 * metrics.miou + 0.7 * sek)
    hits = np.trace(counts) - unchanged
    precision, recall = hits / counts[:, 1:].sum(), hits / counts[1:].sum()
    assert metrics.f_scd_precision == pytest.approx(precision)
    assert metrics.f_scd_recall == pytest.approx(recall)
    assert metrics.f_scd == pytest.approx(2 * precision * recall / (precision + recall))


def test_perfect_prediction_is_one_in_everything():
    _, label = random_maps()
    assert values(compute_metrics(count(label, label))) == pytest.approx([1.0] * 17)


def test_perfect_prediction_with_an_absent_class():
    _, label = random_maps(entries=5)
    metrics = compute_metrics(count(label, label))
    assert metrics.score == pytest.approx(1)
    assert metrics.f_scd == pytest.approx(1)
    assert metrics.class_iou == pytest.approx((1, 1, 1, 1, 1, 0, 0))


@pytest.mark.parametrize(
    ("prediction", "label"),
    [
        (torch.zeros(0), torch.zeros(0)),
        (torch.zeros(9), torch.zeros(9)),
        (torch.zeros(9), torch.ones(9)),
        (torch.ones(9), torch.zeros(9)),
        (torch.ones(9), torch.ones(9)),
        (torch.ones(9), torch.full((9,), 2)),
        (torch.tensor([0, 3]), torch.tensor([0, 4])),
    ],
    ids=["no-pixels", "unchanged", "missed", "invented", "one-class", "wrong-class", "absent"],
)
def test_scores_are_never_nan(prediction, label):
    metrics = compute_metrics(count(prediction.to(torch.uint8), label.to(torch.uint8)))
    assert all(math.isfinite(value) for value in values(metrics))


def test_a_set_without_change():
    nothing = torch.zeros(100, dtype=torch.uint8)
    metrics = compute_metrics(count(nothing, nothing))
    assert metrics.sek == metrics.iou_changed == metrics.f_scd == 0
    assert metrics.iou_unchanged == metrics.oa == 1


def test_sek_can_be_negative():
    label = torch.tensor([1, 2] * 50)
    metrics = compute_metrics(count(3 - label, label, 3))
    assert metrics.sek == pytest.approx(-1)
    assert metrics.score < 0


def test_order_of_batches_does_not_matter():
    batches = [random_maps(seed) for seed in range(4)]
    results = []
    for order in (batches, batches[::-1]):
        confusion = ConfusionMatrix(7)
        for prediction, label in order:
            confusion.update(prediction, label)
        results.append(confusion.counts)
    together = [torch.cat(maps) for maps in zip(*batches, strict=True)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], count(*together))


def test_numbering_of_the_classes_does_not_matter():
    prediction, label = random_maps()
    renumber = torch.tensor([0, 4, 1, 6, 2, 3, 5])
    before = compute_metrics(count(prediction, label))
    after = compute_metrics(count(renumber[prediction.long()], renumber[label.long()]))
    for name in FRACTIONS:
        assert getattr(after, name) == pytest.approx(getattr(before, name)), name
    assert [after.class_iou[i] for i in renumber] == pytest.approx(before.class_iou)


def test_rows_are_labels():
    counts = count(torch.tensor([2]), torch.tensor([5]))
    assert counts[5, 2] == 1
    assert counts.sum() == 1


@pytest.mark.parametrize("entries", [2, 7, 255])
def test_ignored_pixels_are_not_counted(entries):
    prediction, label = random_maps(entries=entries)
    expected = count(prediction[:, 5:], label[:, 5:], entries)
    label[:, :5] = IGNORED
    assert torch.equal(count(prediction, label, entries), expected)


def test_shapes_that_differ_are_an_error():
    with pytest.raises(ValueError, match="differ"):
        ConfusionMatrix(7).update(torch.zeros(2, 3), torch.zeros(3, 2))


def test_counts_beyond_16_million_stay_exact():
    counts = torch.tensor([[2**40, 1], [1, 2**40]])
    assert compute_metrics(counts).oa == (2**41) / (2**41 + 2)


def test_kappa_of_chance_is_zero_and_of_agreement_one():
    assert compute_metrics(torch.tensor([[25.0, 25], [25, 25]])).kappa == pytest.approx(0)
    assert compute_metrics(torch.eye(3) * 7).kappa == pytest.approx(1)
    assert compute_metrics(torch.zeros(3, 3)).kappa == 0


@pytest.mark.parametrize("date", [None, 1])
def test_no_class_takes_the_column_of_a_score(date):
    counts = torch.arange(1.0, 17).view(4, 4)
    metrics = compute_metrics(counts, date)
    row = metrics.to_row(("none", "changed", "unchanged", "water"))
    assert (row["iou_changed"], row["iou_unchanged"]) == (
        metrics.iou_changed,
        metrics.iou_unchanged,
    )
    prefix, suffix = ("iou", "_date1") if date else ("class_iou", "")
    ious = [row[f"{name}{suffix}"] for name in (f"{prefix}_changed", f"{prefix}_unchanged")]
    assert (*ious, row[f"iou_water{suffix}"]) == metrics.class_iou[1:]


def test_metrics_go_to_plain_values_and_back():
    metrics = compute_metrics(count(*random_maps()))
    plain = metrics.to_dict()
    assert all(isinstance(value, float) for name, value in plain.items() if name != "class_iou")
    assert values(Metrics(**plain)) == values(metrics)
