"""Choosing the device, once."""

import torch

from utils.errors import OptionError


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """Return the device of ``--device``; ``auto`` is CUDA where there is any, else the CPU.

    Args:
        name: of the option.
        local_rank: number of this process among those of its machine; it takes the GPU of this
            number and never touches another. None for a process that works alone.

    Raises:
        OptionError: no such device in this machine or in this build of torch, or more processes
            than GPUs.
    """
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        name = "cuda"
    try:
        device = torch.device(name)
        if device.type == "cuda" and local_rank is not None:
            device = _own_gpu(local_rank)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OptionError(
            f"--device {name}: not usable here ({str(error).splitlines()[0]}); try --device cpu"
        ) from error
    return device


def _own_gpu(local_rank: int) -> torch.device:
    visible = torch.cuda.device_count()
    if visible and local_rank >= visible:
        raise OptionError(
            f"process {local_rank} of this machine has no GPU, {visible} are visible; start fewer "
            "processes"
        )
    device = torch.device("cuda", local_rank)
    # Before anything is put on a GPU: the first use of one takes memory there until the end.
    torch.cuda.set_device(device)
    return device
