"""The weight of changed pixels, in data where change is rare."""

import pytest
import torch
import torch.nn.functional as F

from engine.config import PUBLISHED
from models.losses import (
    CHANGED_PIXEL_WEIGHT,
    MAX_CHANGED_PIXEL_WEIGHT,
    ChangeCriterion,
    balanced_change_weight,
    change_loss,
)


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
    terms = ChangeCriterion(1, None, 7)((None, None, logits), None, None, mask)
    assert terms["change"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert PUBLISHED["change_weight"] == CHANGED_PIXEL_WEIGHT
