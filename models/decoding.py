"""From the probabilities of both dates and of change to class maps, date by date or as one model.

An unchanged pixel has one class, a changed one two, or now and then one: how far the dates agree
says whether it changed, and that it changed, which classes it may have. ``docs/method.md`` has the
derivation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import torch

NAMES = ("independent", "joint")  # as engine.config has them, which imports no torch
CHANGE_THRESHOLD = 0.5  # of the published decoding
# 1 and 0.5 would be Bayes' rule for heads that are one model. They look at the same features and
# are trained apart, so that in full the same evidence would count twice. From 0.25 to 0.75 it
# hardly matters how much, and no threshold from 0.4 to 0.8 is better on average: three models and
# their ensemble on the demo's scenes, one model on composed pairs of real imagery.
EVIDENCE, THRESHOLD = 0.5, 0.5


@dataclass(frozen=True)
class Decoding:
    """How probabilities become maps; of ``independent`` decoding its name alone counts.

    ``evidence``, 0 to 1, is the power α of what the classes say of change, ``threshold``, 0 to 1,
    the probability of change from which on a pixel is changed, ``same_class``, 0 to 1, the weight d
    of a change within a class beside one between two, and ``by_chance``, 0 to 1, the probability S
    that two classes drawn apart agree: then the dates say nothing of change.
    """

    name: str = NAMES[0]
    evidence: float = EVIDENCE
    threshold: float = THRESHOLD
    same_class: float = 0.0
    by_chance: float = 0.5

    @classmethod
    def from_dict(cls, values: Mapping[str, str | float]) -> "Decoding":
        """Rebuild what a checkpoint stores, also one of a later version with more in it."""
        return cls(**{each.name: values[each.name] for each in fields(cls) if each.name in values})

    @property
    def is_joint(self) -> bool:
        """Whether dates and change are decoded together."""
        return self.name == "joint"

    @property
    def title(self) -> str:
        """The name, with what it works with."""
        if not self.is_joint:
            return self.name
        values = {n: v for n, v in asdict(self).items() if n != "name" and (v or n != "same_class")}
        told = [f"{name.replace('_', ' ')} {value:.3g}" for name, value in values.items()]
        return f"{self.name} ({', '.join(told)})"


INDEPENDENT = Decoding()


def decode(
    probs: Sequence[torch.Tensor | None], decoding: Decoding = INDEPENDENT
) -> tuple[torch.Tensor, ...]:
    """Return the predicted maps, (N, H, W) uint8, of both dates: 0 = unchanged, 1..C = class.

    ``probs`` are those of both dates, (N, C, H, W), and of change, (N, H, W), in [0, 1]. Without
    classes it is the one map of change, 1 = changed, whatever the decoding; so are the maps of a
    single class, which has no other to change into.
    """
    *semantic_probs, change_probs = probs
    if decoding.is_joint and semantic_probs[0] is not None and semantic_probs[0].shape[1] > 1:
        changed = joint_change_probs(*probs, decoding) >= decoding.threshold
        classes = best_pair(*semantic_probs, changed, decoding.same_class)
    else:
        changed = change_probs >= CHANGE_THRESHOLD
        classes = [p.argmax(dim=1) for p in semantic_probs if p is not None]
    maps = tuple(((c + 1) * changed).to(torch.uint8) for c in classes)
    return maps or (changed.to(torch.uint8),)


def joint_change_probs(
    semantic_probs1: torch.Tensor,
    semantic_probs2: torch.Tensor,
    change_probs: torch.Tensor,
    decoding: Decoding,
) -> torch.Tensor:
    """Return the probability of change in the light of the classes; shapes as `decode`.

    Its odds are q / (1 − q) · (f(s) / f(S))^α, where f(x) = (1 − x + d·x) / x and s = Σ p1(c)·p2(c)
    is the probability that both dates agree.
    """
    eps = torch.finfo(change_probs.dtype).eps  # no certainty: else 0 / 0 where two contradict
    changed = change_probs.clamp(eps, 1 - eps)
    agreement = (semantic_probs1 * semantic_probs2).sum(dim=1).clamp(eps, 1 - eps)
    same, by_chance = decoding.same_class, max(decoding.by_chance, eps)
    before = (1 - by_chance + same * by_chance) / by_chance
    for_change = changed * (1 - agreement + same * agreement) ** decoding.evidence
    return for_change / (for_change + (1 - changed) * (before * agreement) ** decoding.evidence)


def best_pair(
    semantic_probs1: torch.Tensor,
    semantic_probs2: torch.Tensor,
    changed: torch.Tensor,
    same_class: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the likeliest classes, 0..C − 1, of changed pixels: (N, H, W) int64 of each date.

    They differ, except where ``same_class`` · p1(c)·p2(c) is above any p1(c1)·p2(c2). Of equal
    pairs the one with the lower class at date 1 counts, then that with the lower at date 2; where
    all are 0 one date keeps its class. ``changed`` is (N, H, W) bool; elsewhere both are each
    date's own likeliest.
    """
    class1, class2 = (p.argmax(dim=1) for p in (semantic_probs1, semantic_probs2))
    # Where the best of both dates differ no pair is likelier.
    alike = (class1 == class2) & changed
    correct = _correct_few if alike.device.type == "cpu" else _correct_all
    return correct((semantic_probs1, semantic_probs2), (class1, class2), alike, same_class)


def _correct_all(
    probs: Sequence[torch.Tensor],
    classes: Sequence[torch.Tensor],
    alike: torch.Tensor,
    same_class: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the classes with the best pairs where they are ``alike``, without waiting for them."""
    pairs = _best_apart(*probs, classes[0], same_class)
    class1, class2 = (torch.where(alike, *both) for both in zip(pairs, classes, strict=True))
    return class1, class2


def _correct_few(
    probs: Sequence[torch.Tensor],
    classes: Sequence[torch.Tensor],
    alike: torch.Tensor,
    same_class: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do as `_correct_all` pixel by pixel, which is quicker, but a GPU would be waited for."""
    at = torch.nonzero(alike, as_tuple=True)
    class1, class2 = classes
    of_few = (p.movedim(1, -1)[at] for p in probs)
    class1[at], class2[at] = _best_apart(*of_few, class1[at], same_class)
    return class1, class2


def _best_apart(
    probs1: torch.Tensor, probs2: torch.Tensor, shared: torch.Tensor, same_class: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best pairs where ``shared``, (N, …) of (N, C, …), is likeliest at both dates."""
    shared = shared.unsqueeze(1)
    best1, best2 = (p.gather(1, shared) for p in (probs1, probs2))
    # Not by `topk`, which promises no order of equals; `argmax` takes the first.
    next1, next2 = (p.scatter(1, shared, -1.0).argmax(1, keepdim=True) for p in (probs1, probs2))
    first_stays, first_goes = best1 * probs2.gather(1, next2), probs1.gather(1, next1) * best2
    stays = (first_stays > first_goes) | ((first_stays == first_goes) & (shared < next1))
    next1, next2 = torch.where(stays, shared, next1), torch.where(stays, next2, shared)
    if same_class:
        within, apart = same_class * best1 * best2, torch.maximum(first_stays, first_goes)
        same = (within > apart) | ((within == apart) & (shared < torch.maximum(next1, next2)))
        next1, next2 = torch.where(same, shared, next1), torch.where(same, shared, next2)
    return next1.squeeze(1), next2.squeeze(1)
