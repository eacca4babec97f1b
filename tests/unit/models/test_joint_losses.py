"""Both dates and the change as one model, agreement, and the weight of rare change."""

import pytest
import torch
import torch.nn.functional as F

from datasets.classes import IGNORED
from engine.config import PUBLISHED
from models.losses import (
    CHANGED_PIXEL_WEIGHT,
    MAX_CHANGED_PIXEL_WEIGHT,
    ChangeCriterion,
    LossOptions,
    agreement_loss,
    balanced_change_weight,
    change_loss,
    log_cases,
)

WEIGHTS = (2.0, 1.0, 0.5, 1.0)


def draw(scale: float = 2.0, dtype: torch.dtype = torch.float32) -> tuple[list, list]:
    """Logits of four classes and a change, and labels: unchanged, changed, changed, no data."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(2, 4, 6, 8), (2, 4, 6, 8), (2, 6, 8)]
    output = [torch.randn(s, generator=generator, dtype=dtype) * scale for s in sizes]
    change_mask = torch.zeros(2, 6, 8, dtype=torch.uint8)
    change_mask[:, 2:] = 1
    label1 = torch.randint(1, 5, (2, 6, 8), generator=generator).to(torch.uint8)
    label2 = 1 + (label1 + torch.randint(0, 3, (2, 6, 8), generator=generator)) % 4
    maps = [label1 * change_mask, label2.to(torch.uint8) * change_mask, change_mask]
    for each in maps:
        each[:, 5] = IGNORED
    return [logits.requires_grad_() for logits in output], maps


def test_the_cases_are_those_of_a_sum_over_all_pairs_of_classes():
    (logits1, logits2, _), _ = draw(dtype=torch.float64)
    products = logits1.softmax(1)[:, :, None] * logits2.softmax(1)[:, None]
    same = products.diagonal(dim1=1, dim2=2).sum(-1)
    found = log_cases(logits1, logits2)
    for log, expected in zip(found, (same, products.sum((1, 2)) - same), strict=True):
        torch.testing.assert_close(log, expected.log())
    small = [logits[:1, :, :2, :2].detach().requires_grad_() for logits in (logits1, logits2)]
    assert torch.autograd.gradcheck(log_cases, small)


def test_nothing_is_lost_where_both_dates_are_sure_of_one_class():
    logits = torch.tensor([30.0, 0, 0, 0]).view(1, 4, 1, 1)
    log_same, log_different = log_cases(logits, logits)
    assert log_same.item() == pytest.approx(0, abs=1e-6)
    # 1 − s = 6·e^−30 + …, far below the spacing of float32 at 1.
    assert log_different.item() == pytest.approx(-30 + torch.tensor(6.0).log().item(), abs=1e-4)


def test_the_joint_loss_is_minus_the_log_likelihood():
    output, maps = draw()
    terms = ChangeCriterion(4, None, LossOptions(joint=True))(output, *maps)
    logits1, logits2, change = (logits.detach().double() for logits in output)
    p1, p2, q = logits1.softmax(1), logits2.softmax(1), change.sigmoid()
    s = (p1 * p2).sum(1)
    z = q * (1 - s) + (1 - q) * s
    of1, of2 = (
        p.gather(1, (each.long() - 1).clamp(0, 3)[:, None])[:, 0]
        for p, each in ((p1, maps[0]), (p2, maps[1]))
    )
    changed, unchanged = maps[2] == 1, maps[2] == 0
    whether = torch.where(changed, CHANGED_PIXEL_WEIGHT * -(q * (1 - s) / z).log(), 0)
    whether = torch.where(unchanged, -((1 - q) * s / z).log(), whether)
    known = (changed | unchanged).sum()
    assert terms["change"].item() == pytest.approx((whether.sum() / known).item(), rel=1e-5)
    # What is left of −log(q·p1·p2/z): the classes, given that they differ.
    classes = -(q * of1 * of2 / z).log() + (q * (1 - s) / z).log()
    found = terms["semantic1"] + terms["semantic2"] + terms["pair"]
    assert found.item() == pytest.approx(classes[changed].mean().item(), rel=1e-5)
    expected = 2 * terms["change"] + found
    assert terms["total"].item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("scale", [3, 40, 1e4])
def test_both_are_finite_and_the_joint_classes_not_below_zero_with_any_weights(scale):
    output, maps = draw(scale)
    terms = ChangeCriterion(4, WEIGHTS, LossOptions(joint=True))(output, *maps)
    assert terms["semantic1"] + terms["semantic2"] + terms["pair"] >= 0
    for found in (terms, ChangeCriterion(4, WEIGHTS, LossOptions(agreement=0.5))(output, *maps)):
        assert all(value.isfinite() for value in found.values())
        found["total"].backward()
        assert all(logits.grad.isfinite().all() for logits in output)
    assert not any(logits.grad[..., 5, :].any() for logits in output)


def test_labels_that_the_joint_model_rules_out_count_as_published():
    output, (label1, _, change_mask) = draw()
    change_mask[:, :2] = 1  # unlabelled and changed: the pair counts, the classes do not
    maps = (label1, label1, change_mask)  # changed, of one class at both dates
    found = ChangeCriterion(4, None, LossOptions(joint=True))(output, *maps)
    assert found["pair"] == 0
    output[2].grad = None
    found["change"].backward()
    assert output[0].grad[:, :, :2].any() and not output[0].grad[:, :, 2:].any()


def test_agreement_is_of_unchanged_pixels_alone():
    output, maps = draw()
    p1, p2 = (logits.detach().softmax(1) for logits in output[:2])
    expected = -(p1 * p2).sum(1).log()[maps[2] == 0].mean()
    assert agreement_loss(*output[:2], maps[2]).item() == pytest.approx(expected.item(), rel=1e-5)
    published = ChangeCriterion(4)(output, *maps)
    terms = ChangeCriterion(4, None, LossOptions(agreement=0.5))(output, *maps)
    more = terms["total"] - published["total"]
    assert more.item() == pytest.approx(expected.item() / 2, rel=1e-4)
    terms["agreement"].backward()
    assert output[1].grad[:, :, :2].any() and not output[1].grad[:, :, 2:].any()
    assert agreement_loss(*output[:2], torch.ones_like(maps[2])) == 0


@pytest.mark.parametrize("missing", ["label", "logits"])
def test_one_date_has_the_published_terms_alone(missing):
    output, maps = draw()
    (maps if missing == "label" else output)[1] = None
    terms = ChangeCriterion(4, None, LossOptions(agreement=1.0, joint=True))(output, *maps)
    assert set(terms) == {"change", "semantic1", "total"}
    assert terms["change"] == change_loss(output[2], maps[2])


@pytest.mark.parametrize(
    ("share", "weight"),
    [(0.5, 2), (0.2, 2), (0.1, 4.5), (0.05, 9.5), (0.014, None), (0, None), (1, 2)],
)
def test_the_rarer_the_change_the_more_a_pixel_of_it_weighs(share, weight):
    expected = weight or MAX_CHANGED_PIXEL_WEIGHT
    assert balanced_change_weight(share) == pytest.approx(expected, rel=1e-12)


def test_a_changed_pixel_counts_as_often_as_its_weight_says():
    logits, mask = torch.tensor([[[2.0, -1.0]]]), torch.tensor([[[1, 0]]])
    expected = (7 * F.softplus(torch.tensor(-2.0)) + F.softplus(torch.tensor(-1.0))) / 2
    assert change_loss(logits, mask, 7).item() == pytest.approx(expected.item(), rel=1e-6)
    assert PUBLISHED["change_weight"] == CHANGED_PIXEL_WEIGHT
