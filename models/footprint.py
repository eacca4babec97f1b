"""How much memory a model takes in training and validation, told from tiny forward passes."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.change_detector import ChangeDetector

SIDE, PAIRS = 64, (2, 4)  # of the tiny passes: images large enough for every backbone
TRAINING_BYTES = 12  # per parameter: its gradient and Adam's two moments in float32
# What a pass takes beside its tensors: workspaces, and on CPUs copies in the layout of oneDNN.
# Measured on CPUs, 1.5 to 2.1 (`docs/performance.md`); a guess for GPUs.
OVERHEAD = {"cpu": 1.75, "cuda": 1.2}


@dataclass(frozen=True)
class Footprint:
    """Bytes beside the weights: of the parameters, and per pixel of the pairs in work at once."""

    fixed: float
    per_pixel: float
    per_predicted_pixel: float

    def training(self, pixels: float) -> float:
        """Return the peak of a training step of so many pixels, pairs × height × width."""
        return self.fixed + self.per_pixel * pixels

    def prediction(self, pixels: float) -> float:
        """Return the peak of a pass without gradients, between two training steps."""
        return self.fixed + self.per_predicted_pixel * pixels


def measure_footprint(
    model: ChangeDetector, criterion: nn.Module, autocast: Callable[[], Any]
) -> Footprint:
    """Run tiny passes and count their tensors; statistics and random states are restored.

    Every process must call it: losses and batch norms may be of all processes.
    """
    device = next(model.parameters()).device
    kept = [buffer.clone() for buffer in model.buffers()]

    def most(pairs: int, train: bool) -> int:
        shape = (pairs, model.config.in_channels, SIDE, SIDE)
        images = [torch.zeros(shape, dtype=torch.uint8, device=device)] * 2
        labels = [torch.zeros(pairs, SIDE, SIDE, dtype=torch.uint8, device=device)] * 3
        model.train(train)
        with torch.set_grad_enabled(train), _LiveBytes() as live:
            with autocast():
                output = model(*images)
            criterion(output, *labels)
        return live.peak

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        bytes_of = {train: [most(pairs, train) for pairs in PAIRS] for train in (True, False)}
    for buffer, value in zip(model.buffers(), kept, strict=True):
        buffer.copy_(value)
    pixels = SIDE**2 * (PAIRS[1] - PAIRS[0]) / OVERHEAD.get(device.type, 1.0)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    slopes = [(more - less) / pixels for less, more in bytes_of.values()]
    return Footprint(TRAINING_BYTES * parameters, *slopes)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside and live; ``peak`` is the most."""

    def __init__(self) -> None:
        super().__init__()
        self.peak, self._live = 0, 0
        self._storages: dict[int, weakref.ref] = {}

    def __torch_dispatch__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf.untyped_storage())
        self.peak = max(self.peak, self._live)
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        def free(_: object) -> None:
            del self._storages[key]
            self._live -= size

        self._storages[key] = weakref.ref(storage, free)
        self._live += size
