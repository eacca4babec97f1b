"""The floor of a row: what no program can go below on this machine with this network."""

from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from bench.cases import Case
from bench.machine import measured_rates
from models.change_detector import ModelConfig, build_model

TRAINING_FACTOR = 3  # forward, gradient of the inputs, gradient of the weights
PAIRS = 2  # batch norm behind a global pooling refuses a single pair


class Work(NamedTuple):
    """What a pair costs in a forward pass; ``elements`` go in and out of its layers."""

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


def floor(case: Case) -> dict[str, Any]:
    """Return the floor in seconds of one round of a case.

    The larger of two times: arithmetic at the rate of a large matrix product, and activations
    (parameters once) at the bandwidth of a large copy, both measured here and now.
    """
    training, dtype = case.options.what == "train", case.precision.dtype or torch.float32
    passes = case.pairs * (TRAINING_FACTOR if training else case.options.views)
    works = [count_work(config, case.size, training) for config in case.configs]
    flops = passes * sum(work.flops for work in works)
    moved = sum(passes * work.elements + work.parameters for work in works) * dtype.itemsize
    rate, bandwidth = measured_rates(case.device, dtype)
    arithmetic, memory = flops / rate, moved / bandwidth
    return {
        "flops": flops,
        "bytes": moved,
        "flop_per_s": rate,
        "bytes_per_s": bandwidth,
        "arithmetic_s": arithmetic,
        "memory_s": memory,
        "bound": "arithmetic" if arithmetic >= memory else "memory",
        "seconds": max(arithmetic, memory),
    }
