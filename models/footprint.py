"""How much memory a model takes in training and validation, told from tiny forward passes."""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.change_detector import ChangeDetector

SIDE, PAIRS = 64, (2, 4)  # of the tiny passes: images large enough for every backbone
TRAINING_BYTES = 12  # per parameter: its gradient and Adam's two moments in float32
# What a pass takes beside its tensors: workspaces, and on CPUs copies in the layout of oneDNN.
# Fitted to a few cases on a CPU (`docs/performance.md`); a guess for GPUs.
OVERHEAD = {"cpu": 1.4, "cuda": 1.2}


class Footprint(NamedTuple):
    """Bytes beside the weights: of the parameters, and per pixel of the pairs in work at once."""

    fixed: float
    per_pixel: float
    per_predicted_pixel: float


def measure_footprint(
    model: ChangeDetector, criterion: nn.Module, autocast: Callable[[], Any]
) -> Footprint:
    """Run tiny passes and count their tensors; statistics and random states are restored.

    Every process must call it: losses and batch norms may be of all processes.
    """
    device = next(model.parameters()).device
    kept = [buffer.clone() for buffer in model.buffers()]

    def peak(pairs: int, train: bool) -> int:
        shape = (pairs, model.config.in_channels, SIDE, SIDE)
        images = [torch.zeros(shape, dtype=torch.uint8, device=device)] * 2
        labels = [torch.zeros(pairs, SIDE, SIDE, dtype=torch.uint8, device=device)] * 3
        with torch.set_grad_enabled(train), _LiveBytes() as live:
            with autocast():
                output = model.train(train)(*images)
            criterion(output, *labels)
        return live.peak

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        few, many = ([peak(pairs, train) for train in (True, False)] for pairs in PAIRS)
    for buffer, value in zip(model.buffers(), kept, strict=True):
        buffer.copy_(value)
    factor = OVERHEAD.get(device.type, 1.0) / (SIDE**2 * (PAIRS[1] - PAIRS[0]))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    slopes = [(more - less) * factor for less, more in zip(few, many, strict=True)]
    return Footprint(TRAINING_BYTES * parameters, *slopes)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside and live; ``peak`` is the most."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._live = 0
        self._known = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage() not in self._known:
                storage = leaf.untyped_storage()
                self._known.add(storage)
                self._grow(storage.nbytes())
                weakref.finalize(storage, self._grow, -storage.nbytes())
        return result

    def _grow(self, size: int) -> None:
        self._live += size
        self.peak = max(self.peak, self._live)
