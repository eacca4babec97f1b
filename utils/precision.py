"""Mixed precision and the backend switches that speed depends on, chosen in one place."""

from contextlib import AbstractContextManager, nullcontext

import torch

from utils.errors import OptionError
from utils.memory import keep_freed_memory

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
