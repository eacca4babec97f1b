"""The model: one shared encoder, a semantic head for each date, a change head on |f1 − f2|."""

from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from datasets.bands import MAX_BANDS, RGB_IMAGERY, Bands, Imagery
from datasets.classes import MAX_CLASSES
from models.encoder import Encoder, build_encoder
from models.heads import HEADS
from utils.errors import OptionError

# Strides go down to 32 in every supported backbone; a multiple of it keeps all maps aligned.
SIZE_MULTIPLE = 32


class ChangeOutput(NamedTuple):
    """Logits at the size of N pairs: classes (N, C, H, W) of each date, change (N, H, W).

    Without classes the semantic ones are None. Positive change logits mean *changed*.
    """

    semantic_logits1: torch.Tensor | None
    semantic_logits2: torch.Tensor | None
    change_logits: torch.Tensor


@dataclass(frozen=True)
class ModelConfig:
    """All that is needed to rebuild a model and its input; stored in each checkpoint.

    With ``num_classes`` 0 there is no semantic head; ``imagery`` may be a dict of its attributes.
    Values that make no sense are a TypeError or ValueError.
    """

    model: str = "pspnet"
    backbone: str = "hrnet_w18"
    lightweight: bool = False
    num_classes: int = 6
    in_channels: int = 3
    imagery: Imagery = RGB_IMAGERY

    def __post_init__(self) -> None:
        if isinstance(self.imagery, dict):
            object.__setattr__(self, "imagery", Imagery(**self.imagery))
        if not isinstance(self.imagery, Imagery):
            raise TypeError(f"imagery {self.imagery!r} is not bands, mean and std")
        if not (0 <= self.num_classes < MAX_CLASSES and 1 <= self.in_channels <= MAX_BANDS):
            raise ValueError(f"{self.num_classes} classes of {self.in_channels} bands")

    def to_dict(self) -> dict:
        """Return plain values, as checkpoints store them."""
        return asdict(self)


class ChangeDetector(nn.Module):
    """Semantic change detector for bi-temporal image pairs."""

    def __init__(self, encoder: Encoder, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        semantic_head, change_head = HEADS[config.model]
        channels = encoder.out_channels
        self.encoder = encoder
        self.semantic_head = None
        if config.num_classes:
            self.semantic_head = semantic_head(channels, config.num_classes, config.lightweight)
        self.change_head = change_head(channels, 1, config.lightweight)
        for name in ("mean", "std"):
            values = torch.tensor(getattr(config.imagery, name)).view(1, -1, 1, 1)
            self.register_buffer(name, values, persistent=False)
        self._channels: tuple[int, ...] | None = None

    def read_from(self, bands: Bands) -> None:
        """Take batches of these bands, the model's among them, instead of its very own."""
        chosen = tuple(bands.numbers.index(n) for n in self.config.imagery.bands.numbers)
        self._channels = None if chosen == tuple(range(len(bands.numbers))) else chosen

    def forward(self, image1: torch.Tensor, image2: torch.Tensor) -> ChangeOutput:
        """Predict the classes of both dates and the change between them.

        Images are (N, bands, H, W) uint8 or uint16, or float normalised already; any H, W.
        """
        # Both dates as one batch: larger kernels, and batch norm sees both seasons at once.
        images = torch.cat([self._normalize(image1), self._normalize(image2)])
        images = pad_to_multiple(images, SIZE_MULTIPLE)
        features = self.encoder(images)
        features1, features2 = features.chunk(2)
        semantic_logits1 = semantic_logits2 = None
        if self.semantic_head is not None:
            semantic_logits = _to_size(self.semantic_head(features), images, image1)
            semantic_logits1, semantic_logits2 = semantic_logits.chunk(2)
        change_logits = _to_size(self.change_head((features1 - features2).abs()), images, image1)
        return ChangeOutput(semantic_logits1, semantic_logits2, change_logits.squeeze(1))

    def _normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Return (images − mean) / std of the model's bands in float32, in channels-last memory."""
        if images.is_floating_point():
            return images
        if self._channels is not None:
            # A list as index would be copied to the GPU, which waits for all its queued work.
            chosen = [images[:, channel].to(torch.float32) for channel in self._channels]
            images = torch.stack(chosen, dim=-1).movedim(-1, 1)
        images = images.to(torch.float32, memory_format=torch.channels_last)
        return images.sub_(self.mean).div_(self.std)

    def parameter_groups(self, lr: float, head_factor: float = 10.0) -> list[dict]:
        """Return optimiser groups: the backbone at ``lr``, the rest at ``head_factor`` × it."""
        backbone = list(self.encoder.body.parameters())
        known = {id(parameter) for parameter in backbone}
        new = [parameter for parameter in self.parameters() if id(parameter) not in known]
        return [{"params": backbone, "lr": lr}, {"params": new, "lr": lr * head_factor}]


def build_model(
    config: ModelConfig, weights: dict[str, torch.Tensor] | None = None
) -> ChangeDetector:
    """Build a model with random heads; ``weights`` and errors are those of `build_encoder`."""
    if config.model not in HEADS:
        raise OptionError(f"unknown model {config.model!r}; choose from {sorted(HEADS)}")
    encoder = build_encoder(config.backbone, config.in_channels, weights)
    return ChangeDetector(encoder, config)


def pad_to_multiple(images: torch.Tensor, multiple: int) -> torch.Tensor:
    """Repeat the last row and column until both sides of (N, C, H, W) are multiples."""
    bottom, right = -images.shape[-2] % multiple, -images.shape[-1] % multiple
    if not (bottom or right):
        return images
    return F.pad(images, (0, right, 0, bottom), mode="replicate")


def _to_size(logits: torch.Tensor, padded: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Interpolate head logits to the padded images' size, then cut the padding off."""
    # Class borders are decided here: in float32 whatever the encoder computed in.
    logits = F.interpolate(logits.float(), padded.shape[-2:], mode="bilinear", align_corners=False)
    return logits[..., : image.shape[-2], : image.shape[-1]]
