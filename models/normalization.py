"""From uint8 and uint16 batches to what a model reads, on the device."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from datasets.bands import IMAGENET_MEAN, IMAGENET_STD, Bands, Imagery


def normalize(
    images: torch.Tensor,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> torch.Tensor:
    """Return (images − mean) / std in float32, per channel, in channels-last memory.

    Args:
        images: (N, C, H, W) uint8 or uint16, on any device.
        mean: C means in the images' own units.
        std: C standard deviations in the images' own units.
    """
    images = images.to(torch.float32, memory_format=torch.channels_last)
    return images.sub_(_constant(tuple(mean), images.device)).div_(
        _constant(tuple(std), images.device)
    )


@dataclass(frozen=True)
class Normalization:
    """What is done to a batch before a model reads it.

    Attributes:
        mean, std: per band that the model reads, in the images' own units.
        channels: which of the batch's bands these are; None takes all.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: tuple[int, ...] | None = None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the model's bands of (N, bands, H, W) uint8 or uint16, as `normalize` does."""
        if self.channels is not None:
            # A list as index would be copied to the GPU, which waits for all its queued work.
            chosen = [images[:, channel].to(torch.float32) for channel in self.channels]
            images = torch.stack(chosen, dim=-1).movedim(-1, 1)
        return normalize(images, self.mean, self.std)


IMAGENET = Normalization()


def normalization(imagery: Imagery, given: Bands) -> Normalization:
    """Return what turns a batch of the given bands into a model's input.

    Args:
        imagery: of the model.
        given: bands of the batch; all that the model reads are among them.
    """
    chosen = tuple(given.numbers.index(number) for number in imagery.bands.numbers)
    channels = None if chosen == tuple(range(len(given.numbers))) else chosen
    return Normalization(imagery.mean, imagery.std, channels)


@functools.lru_cache(maxsize=32)
def _constant(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    # Kept, since copying a Python list to a GPU waits for all its queued work.
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(1, -1, 1, 1)
