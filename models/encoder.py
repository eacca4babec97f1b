"""Encoders: any timm backbone behind one contract, one feature map at stride 4."""

import difflib

import timm
import torch
import torch.nn.functional as F
from timm.layers.format import Format
from torch import nn

from models.pretrained import load_timm_backbone
from utils.errors import OptionError

OUTPUT_STRIDE = 4
# Above this sum the maps are projected before they are concatenated. It leaves every HRNet as
# published (W64: 960) and keeps the heads of wide backbones (ResNet-50: 3,840) affordable.
MAX_CHANNELS = 1024


class Encoder(nn.Module):
    """Multi-scale features of a timm backbone, concatenated at stride 4 to ``out_channels``."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.align_corners = is_hrnet(body)
        # Window transformers hand their maps over as (N, H, W, C); HRNet does not say.
        self.channels_last = getattr(body, "output_fmt", Format.NCHW) == Format.NHWC
        channels, strides = body.feature_info.channels(), body.feature_info.reduction()
        self.levels = [i for i, stride in enumerate(strides) if stride >= OUTPUT_STRIDE]
        self.level_channels = [channels[i] for i in self.levels]
        width = max(self.level_channels)
        if sum(self.level_channels) > MAX_CHANNELS:
            width = MAX_CHANNELS // len(self.levels)
        self.projections = nn.ModuleList(_projection(c, width) for c in self.level_channels)
        self.out_channels = sum(min(c, width) for c in self.level_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map normalised images (N, bands, H, W) to features (N, out_channels, ~H/4, ~W/4)."""
        features = self.body(x)
        size = (-(-x.shape[-2] // OUTPUT_STRIDE), -(-x.shape[-1] // OUTPUT_STRIDE))
        options = {"mode": "bilinear", "align_corners": self.align_corners}
        maps = []
        for level, projection in zip(self.levels, self.projections, strict=True):
            of_level = features[level]
            of_level = projection(of_level.permute(0, 3, 1, 2) if self.channels_last else of_level)
            same = tuple(of_level.shape[-2:]) == size
            maps.append(of_level if same else F.interpolate(of_level, size, **options))
        return torch.cat(maps, dim=1)


def build_encoder(
    backbone: str, in_channels: int = 3, weights: dict[str, torch.Tensor] | None = None
) -> Encoder:
    """Build an encoder by its timm name, with ImageNet's weights of `find_pretrained` or random.

    An OptionError if timm has none, or none with feature maps at any image size; a CheckpointError
    if ``weights`` do not fill it.
    """
    if not timm.is_model(backbone):
        close = difflib.get_close_matches(backbone, timm.list_models(), n=4)
        hint = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()"
        raise OptionError(f"--backbone {backbone}: timm has no such model; {hint}")
    options = {"feature_location": ""} if backbone.startswith("hrnet") else {}
    options["features_only"] = True
    if backbone.startswith("swin"):
        options["strict_img_size"] = False  # else timm takes the size of its training images alone
    try:
        if weights is None:
            body = timm.create_model(backbone, in_chans=in_channels, **options)
        else:
            body = load_timm_backbone(backbone, weights, in_channels, **options)
        if not is_hrnet(body):
            # Plain vision transformers are built without complaint, then refuse most image sizes.
            with torch.no_grad():
                body.eval()(torch.zeros(1, in_channels, 96, 160))
            body.train()
    except (RuntimeError, AttributeError, AssertionError, TypeError) as error:
        raise OptionError(
            f"--backbone {backbone}: timm gives no feature maps for it ({error}); choose a "
            "convolutional or hierarchical backbone"
        ) from error
    if is_hrnet(body):
        # The published network interpolates bilinearly where timm repeats the nearest value.
        for module in body.modules():
            if isinstance(module, nn.Upsample):
                module.mode, module.align_corners = "bilinear", True
    return Encoder(body)


def is_hrnet(body: nn.Module) -> bool:
    """Tell whether a timm backbone is a high-resolution network."""
    return isinstance(body, timm.models.hrnet.HighResolutionNet)


def _projection(channels: int, width: int) -> nn.Module:
    if channels <= width:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    )
