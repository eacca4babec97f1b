"""Mixed precision and the backend switches that speed depends on, chosen in one place."""

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from datasets.bands import union
from engine.predictor import IDENTITY, VIEWS, Predictor
from models.checkpoint import Checkpoint
from models.fold import fold_batch_norm
from models.normalization import normalization
from utils.dist import World
from utils.errors import OptionError, first_line
from utils.parallel import keep_freed_memory

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """The number format of forward passes; losses, softmax and scores are float32 anyway.

    Attributes:
        name: ``off``, ``bf16`` or ``fp16``.
        dtype: what convolutions compute in, or None for float32.
        scaler: scales the loss against underflow with fp16, and does nothing otherwise.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self._device_type = device.type
        self.dtype = DTYPES.get(name)
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> AbstractContextManager:
        """Return the context a forward pass runs in."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self._device_type, self.dtype)


def choose_precision(name: str, device: torch.device) -> Precision:
    """Return the precision of ``--amp``.

    ``auto`` takes bf16 where the hardware multiplies it (GPUs from compute capability 8.0, CPUs
    with AMX or AVX512-BF16), fp16 on older GPUs, and float32 elsewhere.

    Raises:
        OptionError: fp16 on a CPU, where it is slower than float32 and not tested.
    """
    if name == "auto":
        name = _best(device)
    if name == "fp16" and device.type == "cpu":
        raise OptionError("--amp fp16: for GPUs only; use --amp auto, bf16 or off")
    return Precision(name, device)


def _best(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "off"
    return "off"


def set_backend_options() -> None:
    """Allow TF32, let cuDNN time its algorithms, keep freed memory; call once, before any model.

    Shapes hardly vary in training and testing, so the timing pays; TF32 rounds float32 inputs of
    matrix products to 10 bits of mantissa, which is still four times finer than bf16.
    """
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    keep_freed_memory()


# Sides of the example that folding watches; large enough for every backbone.
EXAMPLE_SIDE = 64

# Compiling one model, measured for hrnet_w18 on two CPU cores, and the share of time that it saved
# there (2 to 19 %, `docs/performance.md`). They only decide what `auto` does; no GPU was measured.
COMPILE_S = 60.0

COMPILE_SAVES = 0.07


def prepare_predictor(
    checkpoints: Sequence[Checkpoint],
    precision: Precision,
    tta: bool,
    compile_mode: str,
    loader: DataLoader,
    one_size: bool,
    world: World,
    deadline: float | None = None,
) -> Predictor:
    """Build an ensemble's predictor for the batches of a loader, compiled where that is wanted.

    Arguments as `build_predictor` and `compile_predictor` take them; ``deadline`` is the reading of
    `time.perf_counter` at which all must be done, if there is any.
    """
    predictor = build_predictor(checkpoints, world.device, precision, tta)
    if world.any(len(loader) > 0):
        batch_size = max((len(batch) for batch in loader.batch_sampler.batches), default=1)
        own_pairs = sum(len(batch) for batch in loader.batch_sampler.batches)
        compile_predictor(
            predictor,
            compile_mode,
            loader.dataset[0],
            own_pairs,
            batch_size,
            one_size,
            world.say,
            world.from_leader,
            math.inf if deadline is None else deadline - time.perf_counter(),
        )
    return predictor


def build_predictor(
    checkpoints: Sequence[Checkpoint], device: torch.device, precision: Precision, tta: bool
) -> Predictor:
    """Build every model of an ensemble, prepared for inference.

    Args:
        checkpoints: of one class list and one depth; the batches hold the bands of all of them, as
            `engine.ensemble.bands_to_read` tells.
        device: where they run.
        precision: number format of the forward passes.
        tta: average the six views instead of one.

    Raises:
        CheckpointError: tensors do not fill their model.
    """
    models = []
    for checkpoint in checkpoints:
        model = checkpoint.build(device)
        shape = (1, checkpoint.config.in_channels, EXAMPLE_SIDE, EXAMPLE_SIDE)
        fold_batch_norm(model, *(torch.rand(shape, device=device) for _ in range(2)))
        _store_as_computed(model, precision.dtype)
        models.append(model)
    imageries = [checkpoint.config.imagery for checkpoint in checkpoints]
    given = union([imagery.bands for imagery in imageries])
    return Predictor(
        models,
        VIEWS if tta else IDENTITY,
        precision.autocast,
        normalizations=[normalization(imagery, given) for imagery in imageries],
    )


def _store_as_computed(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Convert weights of convolutions once, instead of at every pass; the result is the same."""
    if dtype is None:
        return
    for module in model.modules():
        if type(module) is nn.Conv2d:  # others may compute their weights, which float32 is for
            module.to(dtype)


def compile_predictor(
    predictor: Predictor,
    mode: str,
    sample: Mapping[str, Any],
    pairs: int,
    batch_size: int,
    one_size: bool,
    say: Callable[[str], None] = print,
    from_leader: Callable[[float], float] = lambda value: value,
    remaining_s: float = math.inf,
) -> None:
    """Compile a predictor's models if asked to, or if ``auto`` finds that it pays.

    ``auto`` predicts one pair as it is, and compiles where the saving over all pairs exceeds the
    time that compiling takes. Where compiling fails, it goes on without.

    Args:
        predictor: compiled in place; warmed up when this returns.
        mode: ``auto``, ``on`` or ``off``.
        sample: ``image1`` and ``image2`` of a pair, (bands, H, W).
        pairs: that this process is going to predict.
        batch_size: pairs per batch.
        one_size: whether all pairs have the same height and width; each further size would be
            compiled anew.
        say: told what was decided, and what the warm-up took.
        from_leader: gives all processes the leading one's value, so that they decide alike.
        remaining_s: seconds until a time limit, in which views will be left out.

    Raises:
        OptionError: ``on`` without a compiler, or with pairs of several sizes.
        TorchDynamoException: ``on``, and compiling failed.
    """
    if mode == "off":
        return
    obstacle = _obstacle(predictor.device, one_size)
    if obstacle:
        if mode == "on":
            raise OptionError(f"--compile on: {obstacle}")
        return
    image1, image2 = (sample[key][None] for key in ("image1", "image2"))
    if mode == "auto":
        # A first pass takes too long rather than too short: most work is too little even by that.
        for _ in range(2):
            expected_s = pairs * _seconds(predictor, image1, image2)
            total_s = from_leader(min(expected_s, remaining_s))
            if COMPILE_SAVES * total_s <= COMPILE_S * len(predictor.models):
                return
        say(f"compiling: saves about {COMPILE_SAVES * total_s:.0f} s of {total_s:.0f} s")
    started = time.perf_counter()
    predictor.compile()
    batch = min(batch_size, max(1, pairs))
    try:
        predictor(image1.expand(batch, -1, -1, -1), image2.expand(batch, -1, -1, -1))
    except torch._dynamo.exc.TorchDynamoException as error:
        if mode == "on":
            raise
        predictor.run_uncompiled()
        say(f"compiling failed ({first_line(error)}); going on without (--compile off)")
        return
    _wait(predictor.device)
    say(f"compiled {len(predictor.models)} models in {time.perf_counter() - started:.0f} s")


def _obstacle(device: torch.device, one_size: bool) -> str:
    if not one_size:
        return "the pairs have several sizes, and each would be compiled anew"
    compilers = (os.environ.get("CXX", ""), "g++", "clang++", "cl")
    if device.type == "cpu" and not any(map(shutil.which, compilers)):
        return "no C++ compiler found; install g++"
    if device.type == "mps":
        return "not supported on mps"
    return ""


def _seconds(predictor: Predictor, image1: torch.Tensor, image2: torch.Tensor) -> float:
    started = time.perf_counter()
    predictor(image1, image2)
    _wait(predictor.device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
