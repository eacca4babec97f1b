"""Choosing the device, once."""

import torch

from utils.errors import OptionError


def choose_device(name: str) -> torch.device:
    """Return the device of ``--device``; ``auto`` prefers CUDA, then MPS, then the CPU.

    Raises:
        OptionError: no such device in this machine or in this build of torch.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OptionError(
            f"--device {name}: not usable here ({str(error).splitlines()[0]}); try --device cpu"
        ) from error
    return device
