"""Voting a class for the pixels that the ground truth leaves unlabelled."""

from collections.abc import Sequence

import torch

from utils.dist import World
from utils.text import table

ABSTAIN = 0


def hard_votes(class_maps1: torch.Tensor, class_maps2: torch.Tensor) -> torch.Tensor:
    """Return each model's vote: the class both dates agree on, else abstention.

    An unchanged pixel has one class at both dates, so a model that sees two does not know.

    Args:
        class_maps1: (M, …) integer, class 1..C that each of M models sees at the first date.
        class_maps2: the same at the second date.

    Returns:
        (M, …), 1..C, or 0 where a model abstains.
    """
    return torch.where(class_maps1 == class_maps2, class_maps1, ABSTAIN)


def count_votes(votes: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return the winner of a vote: abstention counts like a class, ties go to the lower index.

    Args:
        votes: (M, …) integer, 0..C.
        num_classes: C.

    Returns:
        (…) uint8, 0..C.
    """
    counts = torch.stack([(votes == entry).sum(dim=0) for entry in range(num_classes + 1)])
    return first_argmax(counts).to(torch.uint8)


def soft_vote(
    semantic_probs1: torch.Tensor, semantic_probs2: torch.Tensor, min_confidence: float
) -> torch.Tensor:
    """Return the likeliest class of an unchanged pixel, or 0 below a confidence.

    Args:
        semantic_probs1: (N, C, H, W) class probabilities at the first date, ensemble mean.
        semantic_probs2: the same at the second date.
        min_confidence: the mean probability of both dates a class needs, 0..1.

    Returns:
        (N, H, W) uint8, 0..C.
    """
    confidence, winner = ((semantic_probs1 + semantic_probs2) / 2).max(dim=1)
    return torch.where(confidence >= min_confidence, winner + 1, ABSTAIN).to(torch.uint8)


def merge_labels(label: torch.Tensor, vote: torch.Tensor) -> torch.Tensor:
    """Return the ground truth where it has a class, the vote elsewhere; same shapes, uint8."""
    return torch.where(label > 0, label, vote)


def first_argmax(counts: torch.Tensor) -> torch.Tensor:
    """Argmax over dim 0 that returns the lowest index among equals, on every device."""
    best = counts.max(dim=0).values
    position = torch.arange(len(counts), device=counts.device)
    position = position.view(-1, *[1] * (counts.dim() - 1))
    return torch.where(counts == best, position, len(counts)).min(dim=0).values


class Coverage:
    """Counts what was labelled: by the ground truth, by the vote, or not at all.

    Attributes:
        labelled: (C + 1,) int64, pixels of both dates per class in the ground truth, 0 = none.
        voted: (C + 1,) int64, the others per voted class, 0 = left unlabelled.
    """

    def __init__(self, num_classes: int) -> None:
        self.labelled = torch.zeros(num_classes + 1, dtype=torch.int64)
        self.voted = torch.zeros(num_classes + 1, dtype=torch.int64)

    def update(self, label1: torch.Tensor, label2: torch.Tensor, vote: torch.Tensor) -> None:
        """Add a batch of (N, H, W) maps; ``vote`` counts where a label is 0."""
        entries = len(self.labelled)
        for label in (label1, label2):
            self.labelled += torch.bincount(label.flatten().long(), minlength=entries)
            self.voted += torch.bincount(vote[label == 0].long(), minlength=entries)

    def over(self, world: World) -> "Coverage":
        """Return the counts of all processes together; every process must call it."""
        total = Coverage(len(self.labelled) - 1)
        total.labelled, total.voted = world.sum(self.labelled), world.sum(self.voted)
        return total

    @property
    def before(self) -> float:
        """Share of pixels, both dates, that the ground truth labels; 0..1."""
        return self.labelled[1:].sum().item() / max(1, self.labelled.sum().item())

    @property
    def after(self) -> float:
        """Share of pixels, both dates, that have a class after the vote; 0..1."""
        covered = self.labelled[1:].sum() + self.voted[1:].sum()
        return covered.item() / max(1, self.labelled.sum().item())

    def table(self, class_names: Sequence[str]) -> str:
        """Return the counts as text, in percent of all pixels of both dates."""
        total = max(1, self.labelled.sum().item())

        def percent(count: torch.Tensor) -> str:
            return f"{100 * count.item() / total:.2f}"

        rows = [
            (name, percent(labelled), percent(voted), percent(labelled + voted))
            for name, labelled, voted in zip(
                class_names[1:], self.labelled[1:], self.voted[1:], strict=True
            )
        ]
        sums = (self.labelled[1:].sum(), self.voted[1:].sum())
        rows.append(("all", percent(sums[0]), percent(sums[1]), percent(sums[0] + sums[1])))
        rows.append(("unlabelled", percent(self.labelled[0]), "", percent(self.voted[0])))
        return table(("% of pixels", "labelled", "voted", "after"), rows)
