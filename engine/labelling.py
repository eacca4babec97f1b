"""label.py: an ensemble votes a class for the pixels that the ground truth leaves unlabelled."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from datasets.classes import IGNORED, find_preset
from datasets.pairs import index_voted_pairs, split_pairs
from datasets.task import load_task
from engine.config import PUBLISHED, LabelConfig
from engine.predict import Job, open_work
from engine.predictor import Predictor
from utils.dist import all_sum, print0
from utils.text import progress, table

ABSTAIN = 0
OPTIONS = ("vote", "min_confidence", "tta", "compile")  # that decide the masks


def label(config: LabelConfig, device: torch.device) -> "Coverage":
    """Write pseudo masks for ROOT/train as one of the processes; return what was labelled."""
    preset = find_preset(config.preset, config.data_root)
    task = load_task(config.data_root, preset)
    # As published unless asked: whether joint decoding helps a vote no study has shown.
    config = replace(config, decode=config.decode or PUBLISHED["decode"])
    pairs = index_voted_pairs(config.data_root, task, preset)
    # The masks are for a student that validates on these.
    split, _, _ = split_pairs(config.data_root, config.split_options, preset)
    folder = config.outdir / "masks" / "train"
    job = Job("labelling", task, pairs, split.val, folder, OPTIONS, by_students=False)
    coverage = Coverage(task.num_classes)
    with open_work(config, device, job) as (loader, predictor, writer, _):
        for index in loader.batch_sampler.skipped:
            labels, (mask1, _) = loader.dataset.labels(index), job.read_masks(index)
            coverage.update(labels["label1"], labels["label2"], mask1)
        for batch in progress(loader, "label"):
            label1, label2 = batch["label1"], batch["label2"]
            vote = vote_batch(config, predictor, batch, task.num_classes).cpu()
            coverage.update(label1, label2, vote)
            writer.write(batch["name"], merge_labels(label1, vote), merge_labels(label2, vote))
        coverage.labelled, coverage.voted = all_sum(coverage.labelled), all_sum(coverage.voted)
    print0(f"{coverage.table(task.classes.names)}\npseudo masks: {folder}")
    return coverage


def vote_batch(
    config: LabelConfig, predictor: Predictor, batch: Mapping[str, Any], num_classes: int
) -> torch.Tensor:
    """Return the ensemble's vote for every pixel of a batch: (N, H, W) uint8, 0 = no class."""
    images = batch["image1"], batch["image2"]
    if config.vote == "soft":
        probs1, probs2, _ = predictor(*images)
        joint = predictor.decoding.is_joint
        return soft_vote(probs1, probs2, config.min_confidence, joint)
    votes = [
        hard_votes(*((each.argmax(dim=1) + 1).to(torch.uint8) for each in probs[:2]))
        for probs in predictor.each_model(*images)
    ]
    return count_votes(torch.stack(votes), num_classes)


def hard_votes(class_maps1: torch.Tensor, class_maps2: torch.Tensor) -> torch.Tensor:
    """Return a model's vote: the class 1..C that it sees at both dates, else 0, abstention.

    An unchanged pixel has one class at both dates, so a model that sees two does not know.
    """
    return torch.where(class_maps1 == class_maps2, class_maps1, ABSTAIN)


def count_votes(votes: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return the winner of M votes: (M, …) integer, 0..C → (…) uint8, 0..C.

    Abstention counts like a class, ties go to the lower index.
    """
    entries = num_classes + 1
    # No two ranks are equal: which of equals `argmax` takes depends on the device.
    ranks = [(votes == entry).sum(dim=0) * entries - entry for entry in range(entries)]
    return torch.stack(ranks).argmax(dim=0).to(torch.uint8)


def soft_vote(
    semantic_probs1: torch.Tensor,
    semantic_probs2: torch.Tensor,
    min_confidence: float,
    joint: bool = False,
) -> torch.Tensor:
    """Return the likeliest class of unchanged pixels: (N, C, H, W) twice → (N, H, W) uint8, 0..C.

    It is 0 where its probability is below ``min_confidence``: the mean of both dates or, if
    ``joint``, their product as a share of all classes'.
    """
    if joint:
        product = semantic_probs1 * semantic_probs2
        confidence, winner = product.max(dim=1)
        confidence = confidence / product.sum(dim=1).clamp(min=torch.finfo(product.dtype).tiny)
    else:
        confidence, winner = ((semantic_probs1 + semantic_probs2) / 2).max(dim=1)
    return torch.where(confidence >= min_confidence, winner + 1, ABSTAIN).to(torch.uint8)


def merge_labels(label: torch.Tensor, vote: torch.Tensor) -> torch.Tensor:
    """Return the ground truth where it has a class, else the vote, and 0 where the label is
    `IGNORED`; same shapes, uint8.
    """
    return torch.where(label > 0, label, vote).masked_fill(label == IGNORED, 0)


class Coverage:
    """Counts the pixels of both dates per class, (C + 1,) int64, 0 = none.

    ``labelled`` are those of the ground truth, ``voted`` those of the vote where that has none.
    """

    def __init__(self, num_classes: int) -> None:
        self.labelled, self.voted = torch.zeros(2, num_classes + 1, dtype=torch.int64)

    def update(self, label1: torch.Tensor, label2: torch.Tensor, vote: torch.Tensor) -> None:
        """Add a batch of (N, H, W) maps; ``vote`` counts where a label is 0."""
        entries = len(self.labelled)
        for label in (label1, label2):
            known = label[label != IGNORED].long()
            self.labelled += torch.bincount(known, minlength=entries)
            self.voted += torch.bincount(vote[label == 0].long(), minlength=entries)

    def table(self, class_names: Sequence[str]) -> str:
        """Return the counts as text, in percent of all pixels with data, of both dates."""
        total = max(1, self.labelled.sum().item())
        counts = torch.stack([self.labelled, self.voted, self.labelled + self.voted])[:, 1:]
        counts = torch.cat([counts, counts.sum(dim=1, keepdim=True)], dim=1)
        rows = [
            (name, *(f"{100 * count / total:.2f}" for count in column))
            for name, column in zip((*class_names[1:], "all"), counts.T.tolist(), strict=True)
        ]
        left = [f"{100 * counts[0].item() / total:.2f}" for counts in (self.labelled, self.voted)]
        rows.append(("unlabelled", left[0], "", left[1]))
        return table(("% of pixels", "labelled", "voted", "after"), rows)
