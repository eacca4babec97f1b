"""From uint8 batches to what a model reads, on the device."""

import functools
from collections.abc import Sequence

import torch

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, in 0..255
IMAGENET_STD = (58.395, 57.12, 57.375)


def normalize(
    images: torch.Tensor,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> torch.Tensor:
    """Return (images − mean) / std in float32, per channel, in channels-last memory.

    Args:
        images: (N, C, H, W) uint8, on any device.
        mean: C means in the images' own units.
        std: C standard deviations in the images' own units.
    """
    images = images.to(torch.float32, memory_format=torch.channels_last)
    return images.sub_(_constant(tuple(mean), images.device)).div_(
        _constant(tuple(std), images.device)
    )


@functools.lru_cache(maxsize=32)
def _constant(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    # Kept, since copying a Python list to a GPU waits for all its queued work.
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(1, -1, 1, 1)
