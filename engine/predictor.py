"""Test-time augmentation, ensembles, and the way from probabilities to class maps."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import nn

from models.normalization import IMAGENET, Normalization

# (flip left-right first, then quarter turns counter-clockwise), in the order in which
# a time limit keeps them. Flip + 2 turns is the upside-down flip. Published views.
View = tuple[bool, int]

VIEWS: tuple[View, ...] = ((False, 0), (True, 0), (True, 2), (False, 1), (False, 2), (False, 3))

IDENTITY: tuple[View, ...] = VIEWS[:1]

CHANGE_THRESHOLD = 0.5

# On a CPU larger passes gain little (`docs/performance.md`), and one that is too large is not an
# exception there but a killed process: 2^20 pixels take hrnet_w64 1 GB.
CPU_PIXELS_PER_PASS = 2**20


class Probabilities(NamedTuple):
    """What a model or an ensemble believes about N pairs.

    Attributes:
        semantic_probs1: (N, C, H, W) float32, sums to 1 over C: classes at the first date; None of
            models without classes.
        semantic_probs2: the same at the second date.
        change_probs: (N, H, W) float32, probability of *changed*.
    """

    semantic_probs1: torch.Tensor | None
    semantic_probs2: torch.Tensor | None
    change_probs: torch.Tensor

    def present(self) -> list[torch.Tensor]:
        """Return the probabilities there are."""
        return [probs for probs in self if probs is not None]


def apply_view(x: torch.Tensor, view: View) -> torch.Tensor:
    """Flip and turn the last two dimensions."""
    flip, turns = view
    x = x.flip(-1) if flip else x
    return x.rot90(turns, (-2, -1)) if turns else x


def undo_view(x: torch.Tensor, view: View) -> torch.Tensor:
    """Inverse of `apply_view`."""
    flip, turns = view
    x = x.rot90(-turns, (-2, -1)) if turns else x
    return x.flip(-1) if flip else x


class Segment(NamedTuple):
    """Consecutive pairs of a batch under one view."""

    view: View
    start: int
    stop: int


class Predictor:
    """Runs models over all views of a batch of pairs.

    Every forward pass takes both dates and as many (pair, view) items as memory allows; the number
    is halved when the device runs out of memory, and stays so. Probabilities are added up in place.

    Args:
        models: models in eval mode, on one device, of one class list.
        views: the views to average; `VIEWS` for TTA, `IDENTITY` for none.
        autocast: makes a context for the forward passes, such as ``torch.autocast``.
        normalizations: what each model's input goes through; None for ImageNet's of RGB.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        views: Sequence[View] = IDENTITY,
        autocast: Callable[[], object] = nullcontext,
        normalizations: Sequence[Normalization] | None = None,
    ) -> None:
        self.models = self._plain_models = list(models)
        self.normalizations = list(normalizations or [IMAGENET] * len(self.models))
        self.views = tuple(views)
        self.autocast = autocast
        self.device = next(self.models[0].parameters()).device
        # Pairs per pass by height, width and turn, once compiled.
        self._compiled_sizes: dict[tuple[int, int, int], int] | None = None
        on_cpu = self.device.type == "cpu"
        self.pixels_per_pass = CPU_PIXELS_PER_PASS if on_cpu else sys.maxsize

    def compile(self) -> None:
        """Compile the models with frozen weights; the next forward pass takes a minute per model.

        Passes then keep the size of the first one, a batch under one view as far as memory allows,
        and smaller ones are filled up, so that nothing is compiled twice.
        """
        self._compiled_sizes = {}
        self.models = [torch.compile(model, dynamic=False) for model in self._plain_models]

    def run_uncompiled(self) -> None:
        """Undo `compile`."""
        self._compiled_sizes = None
        self.models = self._plain_models

    @torch.inference_mode()
    def __call__(self, image1: torch.Tensor, image2: torch.Tensor) -> Probabilities:
        """Return the mean probabilities over models and views; arguments as `each_model`."""
        total: Probabilities | None = None
        for probs in self.each_model(image1, image2):
            if total is None:
                total = probs
            else:
                for mean, value in zip(total.present(), probs.present(), strict=True):
                    mean.add_(value)
        for mean in total.present():
            mean.div_(len(self.models))
        return total

    @torch.inference_mode()
    def each_model(self, image1: torch.Tensor, image2: torch.Tensor) -> Iterator[Probabilities]:
        """Yield each model's probabilities, averaged over its views.

        Args:
            image1: (N, bands, H, W) uint8 or uint16, the first date; any device.
            image2: the same shape, the second date.
        """
        images = [image.to(self.device, non_blocking=True) for image in (image1, image2)]
        done, normalized = None, []
        for model, normalization in zip(self.models, self.normalizations, strict=True):
            if normalization != done:
                done, normalized = normalization, [normalization(image) for image in images]
            yield self._mean_over_views(model, *normalized)

    def _mean_over_views(
        self, model: nn.Module, image1: torch.Tensor, image2: torch.Tensor
    ) -> Probabilities:
        height, width = image1.shape[-2:]
        total: Probabilities | None = None
        for views in _views_of_one_shape(self.views, square=height == width):
            waiting = [Segment(view, 0, len(image1)) for view in views]
            while waiting:
                size = self._pass_size(image1, views)
                segments, rest = _split(waiting, size)
                compiled = self._compiled_sizes is not None
                filled = size if compiled else sum(s.stop - s.start for s in segments)
                try:
                    probs = self._run(
                        model, _gather(image1, segments, filled), _gather(image2, segments, filled)
                    )
                except torch.OutOfMemoryError:
                    if size == 1:
                        raise
                    self.pixels_per_pass = size // 2 * height * width
                    continue
                if total is None:
                    total = Probabilities(
                        *(
                            None
                            if p is None
                            else p.new_zeros(len(image1), *p.shape[1:-2], height, width)
                            for p in probs
                        )
                    )
                _add_segments(total, probs, segments)
                waiting = rest
        for mean in total.present():
            mean.div_(len(self.views))
        return total

    def _pass_size(self, images: torch.Tensor, views: Sequence[View]) -> int:
        """Return how many pairs, each under one view, go through a model at once."""
        height, width = images.shape[-2:]
        limit = max(1, self.pixels_per_pass // (height * width))
        if self._compiled_sizes is None:
            return min(limit, len(images) * len(views))
        # Not the number of views, which a time limit may lower.
        first = self._compiled_sizes.setdefault((height, width, views[0][1] % 2), len(images))
        return min(limit, first)

    def _run(self, model: nn.Module, image1: torch.Tensor, image2: torch.Tensor) -> Probabilities:
        with self._frozen_weights(), self.autocast():
            *semantic_logits, change_logits = model(image1, image2)
        return Probabilities(
            *(None if x is None else x.float().softmax(dim=1) for x in semantic_logits),
            change_logits.float().sigmoid(),
        )

    @contextmanager
    def _frozen_weights(self) -> Iterator[None]:
        """Make weights constants of whatever the next forward pass compiles."""
        if self._compiled_sizes is None:
            yield
            return
        from torch._dynamo import config as tracing
        from torch._inductor import config as compiling

        # As an option of `model.compile` it would come too late: tracing has to know it already.
        # And with its own constants every model counts as a recompilation of the same code.
        limit = max(tracing.recompile_limit, len(self.models) * len(self._compiled_sizes))
        with compiling.patch(freezing=True), tracing.patch(recompile_limit=limit):
            yield


def _split(segments: list[Segment], size: int) -> tuple[list[Segment], list[Segment]]:
    """Cut off the first ``size`` pairs."""
    head, room = [], size
    for i, (view, start, stop) in enumerate(segments):
        if stop - start > room:
            cut = start + room
            first = [Segment(view, start, cut)] if room else []
            return head + first, [Segment(view, cut, stop), *segments[i + 1 :]]
        head.append(segments[i])
        room -= stop - start
    return head, []


def _add_segments(total: Probabilities, probs: Probabilities, segments: list[Segment]) -> None:
    """Turn each segment's probabilities back and add them to those of its pairs."""
    start = 0
    for view, first, last in segments:
        stop = start + last - first
        for mean, value in zip(total.present(), probs.present(), strict=True):
            mean[first:last].add_(undo_view(value[start:stop], view))
        start = stop


def _gather(images: torch.Tensor, segments: list[Segment], size: int) -> torch.Tensor:
    """Return the segments' images under their views, zeros behind, in channels-last memory."""
    sides = images.shape[-2:][:: -1 if segments[0].view[1] % 2 else 1]
    batch = torch.empty(
        (size, images.shape[1], *sides),
        dtype=images.dtype,
        device=images.device,
        memory_format=torch.channels_last,
    )
    filled = 0
    for view, start, stop in segments:
        batch[filled : filled + stop - start] = apply_view(images[start:stop], view)
        filled += stop - start
    batch[filled:] = 0
    return batch


def decode(probs: Probabilities) -> tuple[torch.Tensor, ...]:
    """Return the predicted maps, (N, H, W) uint8.

    Those of both dates, 0 = unchanged, 1..C = class; of models without classes the one map of
    change, 1 = changed.
    """
    changed = probs.change_probs >= CHANGE_THRESHOLD
    classes = [p.argmax(dim=1) + 1 for p in probs[:2] if p is not None]
    return tuple((c * changed).to(torch.uint8) for c in classes) or (changed.to(torch.uint8),)


def _views_of_one_shape(views: Sequence[View], square: bool) -> list[list[View]]:
    """Split views into groups that can share a batch: a quarter turn swaps the sides."""
    if square:
        return [list(views)]
    groups = [[v for v in views if v[1] % 2 == 0], [v for v in views if v[1] % 2 == 1]]
    return [group for group in groups if group]


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
