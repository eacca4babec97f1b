"""The training loss: named terms and their weights."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from datasets.classes import IGNORED
from utils.dist import all_mean

# Total = 2·change + semantic1 + semantic2, as published (SenseEarth 2020, 1st place).
TERM_WEIGHTS = {"change": 2.0, "semantic1": 1.0, "semantic2": 1.0}
CHANGED_PIXEL_WEIGHT = 2.0
USUAL_SHARE = 0.2  # of changed pixels, in the data that the published weight is for
MAX_CHANGED_PIXEL_WEIGHT = 16.0

# Class weights of the published recipe for SECOND's six classes: water, ground, low vegetation,
# tree, building, playground. The report puts their gain at about one point of Score.
SECOND_CLASS_NAMES = ("water", "ground", "low vegetation", "tree", "building", "playground")
SECOND_CLASS_WEIGHTS = (2.0, 1.0, 2.0, 2.0, 1.0, 1.0)


class ChangeCriterion(nn.Module):
    """Semantic cross-entropy on each date, by class weight (else ones), and `change_loss`."""

    def __init__(
        self,
        num_classes: int,
        class_weights: Sequence[float] | None = None,
        change_weight: float = CHANGED_PIXEL_WEIGHT,
    ) -> None:
        super().__init__()
        self.change_weight = change_weight
        weights = torch.ones(num_classes) if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights.float())

    def forward(
        self,
        output: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor],
        label1: torch.Tensor | None,
        label2: torch.Tensor | None,
        change_mask: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Return the loss terms by name, and their weighted sum as ``total``.

        ``output`` is a `ChangeOutput`. Labels are (N, H, W) integer, 0 = unlabelled, 1..C;
        ``change_mask`` is (N, H, W), 1 = changed, from the ground truth. `IGNORED` pixels have no
        loss. A date without logits or without a label has no term.
        """
        *semantic_logits, change_logits = output
        terms = {"change": change_loss(change_logits, change_mask, self.change_weight)}
        dates = zip(("semantic1", "semantic2"), semantic_logits, (label1, label2), strict=True)
        for name, logits, label in dates:
            if logits is not None and label is not None:
                terms[name] = semantic_loss(logits, label, self.class_weights)
        terms["total"] = sum(TERM_WEIGHTS[name] * value for name, value in terms.items())
        return terms


def default_class_weights(
    class_names: Sequence[str], pseudo_labels: bool
) -> tuple[float, ...] | None:
    """Return the published weights, for ground truth of SECOND's classes; None for ones."""
    weights = dict(zip(SECOND_CLASS_NAMES, SECOND_CLASS_WEIGHTS, strict=True))
    published = set(class_names) == weights.keys() and not pseudo_labels
    return tuple(weights[name] for name in class_names) if published else None


def balanced_change_weight(share: float) -> float:
    """Return the weight of changed pixels, where ``share`` of all changed, 0..1.

    Together they weigh, beside the unchanged ones, what they do with the published weight at
    `USUAL_SHARE`: 2 · (0.2 / 0.8) / (share / (1 − share)). No less than 2, as with a greater share;
    no more than `MAX_CHANGED_PIXEL_WEIGHT`, since a weight w moves the threshold of 0.5 to a true
    probability of 1 / (1 + w).
    """
    usual = CHANGED_PIXEL_WEIGHT * USUAL_SHARE / (1 - USUAL_SHARE)
    weight = usual * (1 - share) / max(share, 1e-6)
    return min(max(weight, CHANGED_PIXEL_WEIGHT), MAX_CHANGED_PIXEL_WEIGHT)


def semantic_loss(
    logits: torch.Tensor, label: torch.Tensor, class_weights: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of (N, C, H, W) over labelled pixels, averaged by class weight; 0 for none.

    Every process must call it: the mean of their losses is that of one with all their pixels.
    ``label`` is (N, H, W) integer, 1..C; 0 and `IGNORED` do not count.
    """
    target = label.masked_fill(label == IGNORED, 0).long() - 1
    total = F.cross_entropy(
        logits.float(), target, weight=class_weights, ignore_index=-1, reduction="sum"
    )
    labelled = target >= 0
    weight_sum = all_mean((class_weights[target.clamp(min=0)] * labelled).sum())
    return total / weight_sum.clamp(min=torch.finfo(torch.float32).tiny)


def change_loss(
    logits: torch.Tensor, change_mask: torch.Tensor, changed_weight: float = CHANGED_PIXEL_WEIGHT
) -> torch.Tensor:
    """Binary cross-entropy averaged over (N, H, W) pixels but `IGNORED` ones, a changed one (1)
    counted ``changed_weight`` times; 0 for none. Every process must call it, as `semantic_loss`.
    """
    ignored = change_mask == IGNORED
    target = change_mask.masked_fill(ignored, 0).float()
    weight = (1 + (changed_weight - 1) * target).masked_fill(ignored, 0)
    mean = F.binary_cross_entropy_with_logits(logits.float(), target, weight=weight)
    counted = 1 - all_mean(ignored.sum() / ignored.numel())
    return mean / counted.clamp(min=torch.finfo(torch.float32).tiny)
