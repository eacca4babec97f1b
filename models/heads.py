"""Heads that turn encoder features into per-pixel logits at the encoder's stride.

The parameter layout follows the published checkpoints of the SenseEarth 2020 winner, so that they
load without renaming anything below the head.
"""

import torch
import torch.nn.functional as F
from torch import nn

PYRAMID_BINS = (1, 2, 3, 6)  # PSPNet (Zhao et al., CVPR 2017), section 3.2
DROPOUT = 0.1


class DepthwiseSeparableConv(nn.Module):
    """3×3 depthwise convolution, batch norm, ReLU, then a 1×1 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H, W)."""
        return self.conv(x)


def _conv3x3(in_channels: int, out_channels: int, lightweight: bool) -> nn.Module:
    if lightweight:
        return DepthwiseSeparableConv(in_channels, out_channels)
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)


def _classifier(in_channels: int, width: int, outputs: int, lightweight: bool) -> list[nn.Module]:
    return [
        _conv3x3(in_channels, width, lightweight),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Dropout2d(DROPOUT),
        nn.Conv2d(width, outputs, 1),
    ]


class FCNHead(nn.Module):
    """3×3 convolution to a quarter of the channels, then a 1×1 classifier (Long et al., 2015)."""

    def __init__(self, in_channels: int, outputs: int, lightweight: bool = False) -> None:
        super().__init__()
        self.head = nn.Sequential(*_classifier(in_channels, in_channels // 4, outputs, lightweight))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, in_channels, H, W) to logits (N, outputs, H, W)."""
        return self.head(x)


class PyramidPooling(nn.Module):
    """Append the features pooled to 1×1, 2×2, 3×3 and 6×6 bins, each at a quarter of the width."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        width = in_channels // 4
        for position in range(1, len(PYRAMID_BINS) + 1):
            branch = nn.Sequential(
                nn.Conv2d(in_channels, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            )
            self.add_module(f"conv{position}", branch)
        self.out_channels = in_channels + len(PYRAMID_BINS) * width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H, W)."""
        maps = [x]
        for position, bins in enumerate(PYRAMID_BINS, start=1):
            pooled = self.get_submodule(f"conv{position}")(F.adaptive_avg_pool2d(x, bins))
            maps.append(F.interpolate(pooled, x.shape[-2:], mode="bilinear", align_corners=False))
        # One bin's map comes out in plain layout, and `cat` of mixed layouts would too.
        channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        layout = torch.channels_last if channels_last else torch.contiguous_format
        maps[1] = maps[1].contiguous(memory_format=layout)
        return torch.cat(maps, dim=1)


class PSPHead(nn.Module):
    """Pyramid pooling, then the same classifier as `FCNHead` (Zhao et al., CVPR 2017)."""

    def __init__(self, in_channels: int, outputs: int, lightweight: bool = False) -> None:
        super().__init__()
        pooling = PyramidPooling(in_channels)
        classifier = _classifier(pooling.out_channels, in_channels // 4, outputs, lightweight)
        self.conv5 = nn.Sequential(pooling, *classifier)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, in_channels, H, W) to logits (N, outputs, H, W)."""
        return self.conv5(x)


# model name → (semantic head, change head)
HEADS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "fcn": (FCNHead, FCNHead),
    "pspnet": (FCNHead, PSPHead),
}
