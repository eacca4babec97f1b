"""Checkpoints: written atomically, read without running code that a file might carry."""

import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from utils.errors import CheckpointError, UserError
from utils.files import atomic_path

FORMAT = 1
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")  # of parallel and of compiled models


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint: on disk under a temporary name first, then renamed.

    ``state`` holds tensors and plain Python values only, so that it loads with ``weights_only``.
    A `UserError` where the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    with atomic_path(path, durable=True) as temporary:
        try:
            torch.save({"format": FORMAT, **state}, temporary)
        except RuntimeError as error:  # torch's zip writer does not raise OSError
            raise UserError(
                f"cannot write {path}: disk full or gone ({str(error).splitlines()[0]}); the "
                "checkpoint that was there is kept"
            ) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a ``.pth`` or ``.safetensors`` file onto the CPU, as tensors and plain values.

    Raises:
        CheckpointError: no such file, a damaged file, or a pickle that holds more than that.
    """
    path = Path(path)
    if not os.path.isfile(path):  # says no to impossible names as well
        raise CheckpointError(f"{path}: no such checkpoint; check the path")
    try:
        with open(path, "rb") as file:
            is_pickle = file.read(1) == pickle.PROTO
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        if path.suffix == ".safetensors":
            return load_file(path, device="cpu")
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if archive.testzip():  # torch looks at no checksum
                    raise ValueError("wrong checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported operand" not in str(error) or is_pickle:
            raise CheckpointError(
                f"{path}: refused, the file holds Python objects that could run code; export its "
                "tensors as a plain state dict or as .safetensors"
            ) from error
        raise CheckpointError(_damaged(path)) from error
    except Exception as error:  # damage surfaces as whatever the unpickler stumbles over
        raise CheckpointError(_damaged(path)) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not a state dict")
    return state


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of any checkpoint; errors as `read_checkpoint` and `unwrap_state_dict`."""
    return unwrap_state_dict(read_checkpoint(path), path)


def unwrap_state_dict(state: dict[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """Return a checkpoint's tensors by name: out of its wrapper, without prefixes of wrappers.

    A `CheckpointError` where there are none, or one is sparse, quantised or has no values.
    """
    for wrapper in _WRAPPERS:
        if isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    tensors = {
        _PREFIXES.sub("", str(name)): value
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise CheckpointError(f"{path}: no tensors in it; this is not a model checkpoint")
    for name, value in tensors.items():
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise CheckpointError(
                f"{path}: {name} is sparse, quantised or without values; save it as dense floats"
            )
    return tensors


def _damaged(path: Path) -> str:
    return f"{path}: damaged or no torch checkpoint; copy it again"
