"""The training loss: named terms and their weights.

Beside the published terms there are those of the two dates and the change as one model: with
q = sigmoid(change logit) and s = Σ_c p1(c)·p2(c), a pixel is

    unchanged of class c with probability (1 − q)·p1(c)·p2(c) / Z, and
    changed from c1 to another class c2 with probability q·p1(c1)·p2(c2) / Z,
    Z = q·(1 − s) + (1 − q)·s.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from datasets.classes import IGNORED
from datasets.dataset import to_cells
from utils.dist import all_mean

# Total = 2·change + semantic1 + semantic2, as published (SenseEarth 2020, 1st place).
TERM_WEIGHTS = {"change": 2.0, "semantic1": 1.0, "semantic2": 1.0, "pair": 1.0}
CHANGED_PIXEL_WEIGHT = 2.0
TRUTHS = {"truth": 1, "smoothed": 5}  # cells over which the ground truth is averaged
TEMPERATURE = 2.0  # of distilled classes; the weights 8 and 1 of `ChangeCriterion` belong to it
USUAL_SHARE = 0.2  # of changed pixels, in the data that the published weight is for
MAX_CHANGED_PIXEL_WEIGHT = 16.0

# Class weights of the published recipe for SECOND's six classes: water, ground, low vegetation,
# tree, building, playground. The report puts their gain at about one point of Score.
SECOND_CLASS_NAMES = ("water", "ground", "low vegetation", "tree", "building", "playground")
SECOND_CLASS_WEIGHTS = (2.0, 1.0, 2.0, 2.0, 1.0, 1.0)


@dataclass(frozen=True)
class LossOptions:
    """What the terms count, and which there are; the defaults are as published.

    ``targets`` of `TRUTHS` puts the ground truth in the place of soft targets.
    """

    change_weight: float = CHANGED_PIXEL_WEIGHT
    agreement: float = 0.0
    joint: bool = False
    distill_weights: Sequence[float] = (8.0, 1.0)  # of change, and of semantics
    targets: str | None = None


class ChangeCriterion(nn.Module):
    """Semantic cross-entropy on each date, by class weight (else ones), and `change_loss`.

    Where both dates have logits and labels, `agreement_loss` comes in by its weight, or all terms
    are those of the joint model, as `join` tells. With soft targets also `distillation_loss`.
    """

    def __init__(
        self,
        num_classes: int,
        class_weights: Sequence[float] | None = None,
        options: LossOptions | None = None,
    ) -> None:
        super().__init__()
        self.options = options = options or LossOptions()
        self.blur = TRUTHS.get(options.targets)
        change, semantic = options.distill_weights
        self.term_weights = TERM_WEIGHTS | {"distill_change": change}
        self.term_weights |= {"distill_semantic1": semantic, "distill_semantic2": semantic}
        self.term_weights["agreement"] = options.agreement
        weights = torch.ones(num_classes) if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights.float())

    def forward(
        self,
        output: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor],
        label1: torch.Tensor | None,
        label2: torch.Tensor | None,
        change_mask: torch.Tensor,
        soft: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return the loss terms by name, and their weighted sum as ``total``.

        ``output`` is a `ChangeOutput`. Labels are (N, H, W) integer, 0 = unlabelled, 1..C;
        ``change_mask`` is (N, H, W), 1 = changed, from the ground truth. `IGNORED` pixels have no
        loss. A date without logits or without a label has no term. ``soft`` are those that
        `soft_targets` made of a teacher's probabilities; a term of weight 0 is left out.
        """
        *semantic_logits, change_logits = output
        labels, more = (label1, label2), {}
        if all(each is not None for each in (*semantic_logits, *labels)):
            if self.options.joint:
                change_logits, more["pair"] = join(output, labels, change_mask, self.class_weights)
            if self.options.agreement:
                more["agreement"] = agreement_loss(*semantic_logits, change_mask)
        terms = {"change": change_loss(change_logits, change_mask, self.options.change_weight)}
        dates = zip(("semantic1", "semantic2"), semantic_logits, labels, strict=True)
        for name, logits, label in dates:
            if logits is not None and label is not None:
                terms[name] = semantic_loss(logits, label, self.class_weights)
        terms |= more
        if self.blur:
            soft = true_targets(change_mask, self.blur)
        if soft is not None:
            distilled = distillation_loss(output, soft, change_mask)
            terms |= {name: value for name, value in distilled.items() if self.term_weights[name]}
        terms["total"] = sum(self.term_weights[name] * value for name, value in terms.items())
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
    target, weight = _target(label, class_weights)
    total = F.cross_entropy(
        logits.float(), target, weight=class_weights, ignore_index=-1, reduction="sum"
    )
    return total / _at_least_tiny(all_mean(weight.sum()))


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
    return mean / _at_least_tiny(counted)


def true_targets(change_mask: torch.Tensor, blur: int) -> torch.Tensor:
    """Return `soft_targets` of change alone that the ground truth tells, which studies compare
    with; each is the mean of ``blur`` × ``blur`` cells around it. `IGNORED` counts as unchanged.
    """
    cells = to_cells(change_mask == 1)
    return soft_targets([F.avg_pool2d(cells, blur, 1, blur // 2, count_include_pad=False)])


def soft_targets(cells: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return what `distillation_loss` learns from: (N, 2C + 1, H, W) uint8, without classes
    (N, 1, H, W).

    ``cells`` are a teacher's probabilities of the classes of both dates, (N, C, H, W), and of
    change, (N, H, W), in the resolution of `to_cells`. Of the former the square roots are kept, all
    that a temperature of 2 needs: in steps of 1/255 they show a probability of 1.5e-5.
    """
    *semantic, change = cells
    parts = [*(each.sqrt() for each in semantic), change[:, None]]
    return (255 * torch.cat(parts, dim=1)).round().to(torch.uint8)


def distillation_loss(
    output: Sequence[torch.Tensor | None], soft: torch.Tensor, change_mask: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the terms that pull a `ChangeOutput` to `soft_targets`, means over all cells.

    Of change the cross-entropy to the teacher's probability; of classes the Kullback-Leibler
    divergence of both at `TEMPERATURE`, times its square (Hinton et al. 2015). The student's logits
    are averaged over a cell. Cells with an `IGNORED` pixel have no loss. Every process must call
    it, as `semantic_loss`.
    """
    *semantic_logits, change_logits = output
    known = (to_cells(change_mask == IGNORED) == 0).float()
    count = all_mean(known.sum()).clamp(min=1)
    targets = soft.float() / 255
    change = F.binary_cross_entropy_with_logits(
        to_cells(change_logits), targets[:, -1], weight=known, reduction="sum"
    )
    terms = {"distill_change": change / count}
    for number, logits in enumerate(semantic_logits):
        if logits is None or soft.shape[1] == 1:
            continue
        log_probs = F.log_softmax(to_cells(logits) / TEMPERATURE, dim=1)
        first = number * logits.shape[1]
        roots = targets[:, first : first + logits.shape[1]]
        teacher = roots / roots.sum(dim=1, keepdim=True).clamp(min=1 / 255)
        divergence = F.kl_div(log_probs, teacher, reduction="none").sum(dim=1) * TEMPERATURE**2
        terms[f"distill_semantic{number + 1}"] = (divergence * known).sum() / count
    return terms


def agreement_loss(
    logits1: torch.Tensor, logits2: torch.Tensor, change_mask: torch.Tensor
) -> torch.Tensor:
    """−log s, the one fact that no label has to tell, averaged over the unchanged pixels.

    Logits are (N, C, H, W), ``change_mask`` (N, H, W), 0 = unchanged; 0 for no such pixel. Every
    process must call it, as `semantic_loss`.
    """
    unchanged = change_mask == 0
    log_same, _ = log_cases(logits1.float(), logits2.float())
    total = (log_same * unchanged).sum()
    return -total / _at_least_tiny(all_mean(unchanged.sum().float()))


def join(
    output: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    labels: tuple[torch.Tensor, torch.Tensor],
    change_mask: torch.Tensor,
    class_weights: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the change logits of the joint model, (N, H, W) float32, and its ``pair`` term.

    Minus its log-likelihood is, per pixel, the binary cross-entropy of

        P(changed) = sigmoid(change logit + log(1 − s) − log s)

    and, where classes are known, their cross-entropy at both dates plus the ``pair`` term, the
    logarithm of 1 − s at changed pixels and of s at unchanged ones. Each keeps its published
    weight; a pixel of the pair term takes the lower one of its two classes, with which the sum is
    never below 0. Labels that the model rules out, as changed pixels of one class, count as
    published. Every process must call it, as `semantic_loss`.
    """
    logits1, logits2, change_logits = (logits.float() for logits in output)
    same, different = log_cases(logits1, logits2)
    (target1, weight1), (target2, weight2) = (_target(label, class_weights) for label in labels)
    known, alike = (target1 >= 0) & (target2 >= 0), target1 == target2
    ruled_out = known & (alike == (change_mask == 1))
    weight = torch.minimum(weight1, weight2).masked_fill(ruled_out, 0)
    pair = (weight * torch.where(alike, same, different)).sum()
    sums = all_mean(torch.stack([weight1.sum(), weight2.sum()]))
    evidence = (different - same).masked_fill(ruled_out, 0)
    return change_logits + evidence, pair / _at_least_tiny(sums.max())


def log_cases(logits1: torch.Tensor, logits2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log s and log(1 − s) of two (N, C, H, W) logits, each (N, H, W) and finite.

    1 − s is summed up from products of different classes: no digit is lost where s is near 1.
    """
    probs1, probs2 = logits1.softmax(dim=1), logits2.softmax(dim=1)
    classes = probs1.shape[1]
    others = 1 - torch.eye(classes, dtype=probs2.dtype, device=probs2.device)
    not2 = F.conv2d(
        probs2, others.view(classes, classes, 1, 1)
    )  # faster than a product of matrices
    same, different = ((probs1 * each).sum(dim=1) for each in (probs2, not2))
    return _at_least_tiny(same).log(), _at_least_tiny(different).log()


def _target(label: torch.Tensor, class_weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return classes from 0 on, -1 where a label says none, and the weight of each pixel."""
    target = label.masked_fill(label == IGNORED, 0).long() - 1
    return target, class_weights[target.clamp(min=0)] * (target >= 0)


def _at_least_tiny(value: torch.Tensor) -> torch.Tensor:
    return value.clamp(min=torch.finfo(torch.float32).tiny)
