"""Mixed precision, the backend switches that speed depends on, and predictors made for speed."""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.utils.data import DataLoader

from datasets.bands import union
from datasets.loaders import is_one_size
from engine.predictor import IDENTITY, VIEWS, Predictor
from models.change_detector import ChangeDetector
from models.checkpoint import Checkpoint
from models.decoding import INDEPENDENT
from models.fold import fold_batch_norm
from utils import dist
from utils.cli import WHY_THREADS
from utils.dist import gather, print0
from utils.errors import OptionError, first_line
from utils.parallel import keep_freed_memory
from utils.text import plural

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
EXAMPLE_SIDE = 64  # of the images that folding watches; large enough for every backbone
MIN_PAIRS_TO_COMPILE = 500  # of a process; compiling takes minutes (`docs/performance.md`)


class Precision:
    """The number format of forward passes; losses, softmax and scores are float32 anyway.

    ``dtype`` is what convolutions compute in, None for float32; ``scaler`` scales the loss against
    underflow with fp16, and does nothing otherwise.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.dtype, self._device_type = name, DTYPES.get(name), device.type
        self.title = name if self.dtype else "float32"
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> AbstractContextManager:
        """Return the context a forward pass runs in."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self._device_type, self.dtype)


def choose_precision(name: str, device: torch.device) -> Precision:
    """Return the precision of ``--amp``.

    ``auto`` takes bf16 where the hardware multiplies it (GPUs from compute capability 8.0, CPUs
    with AMX or AVX512-BF16), fp16 on older GPUs, and float32 elsewhere. An `OptionError` for fp16
    on a CPU, where it is slower than float32 and not tested.
    """
    if name == "auto" and device.type == "cuda":
        name = "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    elif name == "auto":
        able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        name = "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "off"
    if name == "fp16" and device.type == "cpu":
        raise OptionError("--amp fp16: for GPUs only; use --amp auto, bf16 or off")
    return Precision(name, device)


def set_backend_options() -> None:
    """Allow TF32, let cuDNN time its algorithms, keep freed memory; call once, before any model.

    Shapes hardly vary in training and testing, so the timing pays; TF32 rounds float32 inputs of
    matrix products to 10 bits of mantissa, which is still four times finer than bf16.
    """
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    keep_freed_memory()


def build_predictor(
    checkpoints: Sequence[Checkpoint], device: torch.device, precision: Precision, tta: bool
) -> Predictor:
    """Build every model of an ensemble, prepared for inference; errors as `Checkpoint.build`.

    They are of one class list and one depth; batches hold the bands of all of them, as
    `engine.ensemble.bands_to_read` tells. ``tta`` averages the six views instead of one.
    """
    bands = union([checkpoint.config.imagery.bands for checkpoint in checkpoints])
    models = [build_folded(checkpoint, device, precision)[0] for checkpoint in checkpoints]
    for model in models:
        model.read_from(bands)
    return Predictor(models, VIEWS if tta else IDENTITY, precision.autocast)


def build_folded(
    checkpoint: Checkpoint, device: torch.device, precision: Precision
) -> tuple[ChangeDetector, list[tuple[str, str]]]:
    """Build a model as all scores and masks are made with it; return also what `refold` takes."""
    model = checkpoint.build(device)
    example = torch.zeros(1, checkpoint.config.in_channels, EXAMPLE_SIDE, EXAMPLE_SIDE)
    folded = fold_batch_norm(model, *[example.to(device)] * 2)
    for module in model.modules():
        # Stored as computed, instead of converted at every pass. Only plain convolutions:
        # others may compute their weights, which float32 is for.
        if precision.dtype and type(module) is nn.Conv2d:
            module.to(precision.dtype)
    return model, folded


def describe(models: Sequence[nn.Module], precision: Precision, readers: int) -> str:
    """Return how large models are and what each process works with, for a script's start."""
    parameters = sum(p.numel() for model in models for p in model.parameters())
    why = os.environ.get(WHY_THREADS)
    threads = plural(torch.get_num_threads(), "thread") + (f" ({why})" if why else "")
    each = " each" if dist.size() > 1 else ""
    return (
        f"{parameters / 1e6:.1f} M parameters, {precision.title}, {threads}, "
        f"{plural(readers, 'reader')}{each}"
    )


def conditions(predictor: Predictor, precision: Precision) -> dict[str, str | int]:
    """Return what scores depend on, beside weights and pairs."""
    return {
        "number_format": precision.title,
        "views": len(predictor.views),
        "threads": torch.get_num_threads(),
        "device": predictor.device.type,
        "decoding": predictor.decoding.title,
    }


def in_words(values: Mapping[str, str | int]) -> str:
    """Return `conditions` for a line of text."""
    counted = [plural(values[f"{name}s"], name) for name in ("view", "thread")]
    decoding = f"decoding {values.get('decoding', INDEPENDENT.title)}"
    return ", ".join([values["number_format"], *counted, values["device"], decoding])


def compile_if_asked(predictor: Predictor, mode: str, loader: DataLoader) -> None:
    """Compile a predictor for a loader's batches, and warm it up; every process must call it.

    ``mode`` is ``on``, ``off``, or ``auto``: on a GPU, for many pairs of one size. Where compiling
    fails, ``auto`` goes on without, and ``on`` raises an `OptionError`, as for several sizes.
    """
    if mode == "off":
        return
    sizes = [len(batch) for batch in loader.batch_sampler.batches]
    pairs = gather(sum(sizes))
    if not any(pairs):
        return
    one_size = is_one_size(loader)
    if mode == "on" and not one_size:
        raise OptionError(
            "--compile on: the pairs have several sizes, and each would be compiled anew"
        )
    on_gpu = predictor.device.type == "cuda"
    if mode == "auto" and not (on_gpu and one_size and min(pairs) >= MIN_PAIRS_TO_COMPILE):
        return
    print0(f"compiling {len(predictor.models)} models, which takes minutes")
    predictor.compile()
    sample = loader.dataset[0]
    images = [sample[key].expand(max([1, *sizes]), -1, -1, -1) for key in ("image1", "image2")]
    try:
        predictor(*images)
    except torch._dynamo.exc.TorchDynamoException as error:
        if mode == "on":
            raise OptionError(f"--compile on: compiling failed ({first_line(error)})") from error
        predictor.run_uncompiled()
        print0(f"compiling failed ({first_line(error)}); going on without (--compile off)")
