"""The floor of a row: what no program can go below on this machine with this network."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from bench.machine import copy_bandwidth, matrix_rate
from models.change_detector import ModelConfig, build_model

TRAINING_FACTOR = 3  # forward, gradient of the inputs, gradient of the weights
PAIRS = 2  # batch norm behind a global pooling refuses a single pair


@dataclass(frozen=True)
class Work:
    """What one pair costs in one forward pass of one network.

    Attributes:
        flops: multiplications and additions of convolutions and matrix products.
        elements: activations read and written by convolutions, batch norms and interpolations.
        parameters: of the network.
    """

    flops: float
    elements: float
    parameters: int


def count_work(config: ModelConfig, size: int, training: bool) -> Work:
    """Count the work of a pair of ``size`` × ``size`` pixels, without computing anything.

    Batch norms count in training only: at inference they are folded into the convolutions.
    """
    with torch.device("meta"):
        model = build_model(config).train(training)
        images = torch.empty(PAIRS, config.in_channels, size, size)
        flops, elements = FlopCounterMode(display=False), _Elements(training)
        with torch.set_grad_enabled(training), elements, flops:
            model(images, images)
    parameters = sum(p.numel() for p in model.parameters())
    return Work(flops.get_total_flops() / PAIRS, elements.count / PAIRS, parameters)


class _Elements(TorchDispatchMode):
    """Adds up the elements that go in and out of the layers that have to touch memory."""

    def __init__(self, norms: bool) -> None:
        super().__init__()
        self.count = 0
        self._kinds = ("convolution", "upsample_bilinear2d", *(("batch_norm",) if norms else ()))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(kind in func.overloadpacket.__name__ for kind in self._kinds):
            output = result[0] if isinstance(result, tuple) else result
            self.count += args[0].numel() + output.numel()
        return result


def floor(
    works: list[Work], pairs: int, views: int, training: bool, device: torch.device, amp: str
) -> dict:
    """Return the floor in seconds of running each network over ``pairs`` × ``views`` items.

    The larger of two times: arithmetic at the rate of a large matrix product, and activations
    (parameters once) at the bandwidth of a large copy, both measured here and now.
    """
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp, torch.float32)
    factor = TRAINING_FACTOR if training else 1
    items = pairs * views
    flops = factor * items * sum(work.flops for work in works)
    elements = sum(factor * items * work.elements + work.parameters for work in works)
    rate, bandwidth = matrix_rate(device, dtype), copy_bandwidth(device)
    times = {"arithmetic": flops / rate, "memory": elements * dtype.itemsize / bandwidth}
    bound = max(times, key=times.get)
    return {
        "flops": flops,
        "bytes": elements * dtype.itemsize,
        "flop_per_s": rate,
        "bytes_per_s": bandwidth,
        "arithmetic_s": times["arithmetic"],
        "memory_s": times["memory"],
        "bound": bound,
        "seconds": times[bound],
    }
