"""Test-time augmentation, ensembles, and their scores."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import nn

from datasets.task import Task
from engine.metrics import AnyMetrics, LabelCounts, score_labels
from models.decoding import INDEPENDENT, decode
from utils.dist import all_sum, print0

# (flip left-right first, then quarter turns counter-clockwise), in the order in which
# a time limit keeps them. Flip + 2 turns is the upside-down flip. Published views.
View = tuple[bool, int]
VIEWS: tuple[View, ...] = ((False, 0), (True, 0), (True, 2), (False, 1), (False, 2), (False, 3))
IDENTITY: tuple[View, ...] = VIEWS[:1]
# On a CPU larger passes gain little (`docs/performance.md`), and one that is too large is not an
# exception there but a killed process: 2^20 pixels take hrnet_w64 1 GB.
CPU_PIXELS_PER_PASS = 2**20
# Of the time left, kept back for the last masks and for batches that take longer than the mean.
RESERVE = 0.05


class Probabilities(NamedTuple):
    """What a model or an ensemble believes about N pairs, in float32."""

    semantic_probs1: torch.Tensor | None  # (N, C, H, W), sums to 1 over C; None without classes
    semantic_probs2: torch.Tensor | None
    change_probs: torch.Tensor  # (N, H, W), probability of *changed*

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


class Predictor:
    """Runs models over all views of a batch of pairs.

    A forward pass takes both dates of as many pairs, and these under as many views, as memory
    allows; the number is halved when the device runs out of memory, and stays so. The models are in
    eval mode, on one device and of one class list; ``views`` and ``decoding`` may be changed.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        views: Sequence[View] = IDENTITY,
        autocast: Callable[[], object] = nullcontext,
    ) -> None:
        self.models = self._plain_models = list(models)
        self.views = tuple(views)
        self.autocast = autocast
        self.decoding = INDEPENDENT
        self.device = next(self.models[0].parameters()).device
        on_cpu = self.device.type == "cpu"
        self.pixels_per_pass = CPU_PIXELS_PER_PASS if on_cpu else sys.maxsize
        self._compiled_pairs: int | None = None  # of a pass, once compiled; 0 before the first

    def compile(self) -> None:
        """Compile the models with frozen weights; the next forward pass takes a minute per model.

        A pass is then a batch of the first one's size under one view, or what memory allows of it,
        and smaller ones are filled up, so that nothing is compiled twice.
        """
        self._compiled_pairs = 0
        self.models = [torch.compile(model, dynamic=False) for model in self._plain_models]

    def run_uncompiled(self) -> None:
        """Undo `compile`."""
        self._compiled_pairs = None
        self.models = self._plain_models

    @torch.inference_mode()
    def __call__(self, image1: torch.Tensor, image2: torch.Tensor) -> Probabilities:
        """Return the mean over models and views of two (N, bands, H, W) uint8 or uint16 images."""
        each = self.each_model(image1, image2)
        total = next(each)
        for probs in each:
            for mean, value in zip(total.present(), probs.present(), strict=True):
                mean.add_(value)
        for mean in total.present():
            mean.div_(len(self.models))
        return total

    @torch.inference_mode()
    def maps(self, image1: torch.Tensor, image2: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what `decode` makes of the mean; arguments as for a call."""
        return decode(self(image1, image2), self.decoding)

    @torch.inference_mode()
    def each_model(self, image1: torch.Tensor, image2: torch.Tensor) -> Iterator[Probabilities]:
        """Yield each model's probabilities, averaged over its views; arguments as for a call."""
        images = [image.to(self.device, non_blocking=True) for image in (image1, image2)]
        for model in self.models:
            yield self._mean_over_views(model, *images)

    def _mean_over_views(
        self, model: nn.Module, image1: torch.Tensor, image2: torch.Tensor
    ) -> Probabilities:
        pairs, _, *shape = image1.shape
        pixels = math.prod(shape)
        total: Probabilities | None = None
        waiting = [(views, 0, pairs) for views in _of_one_shape(self.views, *shape)]
        while waiting:
            views, start, end = waiting.pop(0)
            size = self._pass_size(pairs, pixels)
            stop = min(end, start + size)
            now = size // (stop - start)
            rest = [(views[now:], start, stop), (views, stop, end)]
            waiting[:0] = [part for part in rest if part[0] and part[1] < part[2]]
            views = views[:now]
            items = len(views) * (stop - start)
            filled = items if self._compiled_pairs is None else size
            try:
                images = (_under(views, image[start:stop], filled) for image in (image1, image2))
                probs = self._run(model, *images)
            except torch.OutOfMemoryError:
                if items == 1:
                    raise
                self.pixels_per_pass = items // 2 * pixels
                waiting.insert(0, (views, start, stop))
                continue
            if total is None:
                total = Probabilities(
                    *(p if p is None else p.new_zeros(pairs, *p.shape[1:-2], *shape) for p in probs)
                )
            for mean, value in zip(total.present(), probs.present(), strict=True):
                for view, part in zip(views, value.split(stop - start), strict=False):
                    mean[start:stop].add_(undo_view(part, view))
        for mean in total.present():
            mean.div_(len(self.views))
        return total

    def _pass_size(self, pairs: int, pixels: int) -> int:
        """Return how many items, each a pair under one view, go through a model at once."""
        limit = max(1, self.pixels_per_pass // pixels)
        if self._compiled_pairs is None:
            return limit
        self._compiled_pairs = self._compiled_pairs or pairs
        return min(limit, self._compiled_pairs)

    def _run(self, model: nn.Module, image1: torch.Tensor, image2: torch.Tensor) -> Probabilities:
        compiled = self._compiled_pairs is not None
        with _frozen_weights(len(self.models)) if compiled else nullcontext(), self.autocast():
            *semantic_logits, change_logits = model(image1, image2)
        return Probabilities(
            *(None if x is None else x.float().softmax(dim=1) for x in semantic_logits),
            change_logits.float().sigmoid(),
        )


@contextmanager
def _frozen_weights(models: int) -> Iterator[None]:
    """Make weights constants of whatever the next forward pass compiles."""
    # As an option of `torch.compile` it would come too late: tracing has to know it already.
    # And with its own constants every model counts as a recompilation of the same code.
    limit = models * torch._dynamo.config.recompile_limit
    frozen = torch._inductor.config.patch(freezing=True)
    with frozen, torch._dynamo.config.patch(recompile_limit=limit):
        yield


def _of_one_shape(views: Sequence[View], height: int, width: int) -> list[Sequence[View]]:
    """Split views into groups that can share a pass: a quarter turn swaps the sides."""
    upright = [view for view in views if view[1] % 2 == 0 or height == width]
    return [group for group in (upright, [v for v in views if v not in upright]) if group]


def _under(views: Sequence[View], images: torch.Tensor, size: int) -> torch.Tensor:
    """Return images under one view after the other, and zeros up to a size."""
    dtype = images.dtype
    if dtype == torch.uint16:  # which not every device can flip
        images = images.view(torch.int16)
    batch = torch.cat([apply_view(images, view) for view in views])
    if size > len(batch):
        batch = torch.cat([batch, batch.new_zeros(size - len(batch), *batch.shape[1:])])
    return batch.view(dtype)


def evaluate(
    predictor: Predictor,
    batches: Iterable[dict],
    task: Task,
    on_batch: Callable[..., None] | None = None,
    counts: LabelCounts | None = None,
) -> AnyMetrics | None:
    """Predict every pair of a loader; return the scores over all processes, None without labels.

    ``on_batch`` receives each batch's names and predicted maps, (N, H, W) uint8 on the CPU, 0 where
    pixels are ignored;
    ``counts`` are those of pairs that need no prediction any more.
    """
    counts = counts or LabelCounts(task.num_classes, predictor.device)
    for batch in batches:
        maps = predictor.maps(batch["image1"], batch["image2"])
        if "ignored" in batch:
            ignored = batch["ignored"].to(predictor.device, non_blocking=True)
            maps = tuple(pred.masked_fill(ignored, 0) for pred in maps)
        counts.update(maps, batch)
        if on_batch is not None:
            on_batch(batch["name"], *(pred.cpu() for pred in maps))
    return score_labels(all_sum(counts.stack()))


def within_time_limit(
    batches: Iterable[dict],
    predictor: Predictor,
    num_pairs: int,
    deadline: float,
    clock: Callable[[], float] = time.time,
) -> Iterator[dict]:
    """Pass batches on and take views from the predictor whenever the rest would end too late.

    The predictor loses views at the end of its list, never the first. The speed is first measured
    by predicting the first batch once with a single view, then anew after every batch, reading and
    writing included. ``deadline`` is a reading of ``clock``, in seconds.
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
        view_s = (num_pairs - done) * (now - started) / pair_views
        affordable = int((deadline - now) * (1 - RESERVE) / max(view_s, 1e-9))
        affordable = max(1, min(len(wanted), affordable))
        if affordable < len(predictor.views):
            print0(f"{affordable} of {len(wanted)} views from pair {done} on, to end in time")
        predictor.views = wanted[:affordable]
        yield batch
        done += len(batch["name"])
        pair_views += len(batch["name"]) * affordable
