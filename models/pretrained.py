"""ImageNet weights for a backbone: from a local file, else from timm, never silently none."""

import logging
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants
from huggingface_hub.utils import get_session
from torch import nn

from utils.errors import CheckpointError, first_line
from utils.tensor_files import read_state_dict

SUFFIXES = (".pth", ".safetensors")
HUB_LIMIT_S = 10


def find_pretrained(backbone: str, folder: Path) -> dict[str, torch.Tensor]:
    """Return a backbone's ImageNet weights: ``FOLDER/<backbone>.pth`` or .safetensors, or timm's.

    A CheckpointError if the file holds no weights, or none is there and timm's cannot be fetched.
    """
    for path in (Path(folder) / f"{backbone}{suffix}" for suffix in SUFFIXES):
        if path.exists():
            return read_state_dict(path)
    unreachable, offline = _why_unreachable(), constants.HF_HUB_OFFLINE
    try:
        # The client would try for a minute; what it fetched earlier it finds without a network.
        constants.HF_HUB_OFFLINE = bool(unreachable)
        return timm.create_model(backbone, pretrained=True).state_dict()
    except Exception as error:  # the hub client's errors share no base class
        raise CheckpointError(
            f"--pretrained: no file {Path(folder) / backbone}.pth (or .safetensors), and timm's "
            f"weights could not be fetched ({unreachable or first_line(error)}); put the ImageNet "
            f"weights of {backbone} at that path, or train without --pretrained"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = offline


def _why_unreachable() -> str:
    """Ask the hub for a sign of life; return why there is none, or nothing."""
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_LIMIT_S)
    except Exception as error:
        return f"{constants.ENDPOINT}: {first_line(error)}"
    return ""


def load_timm_backbone(
    backbone: str, weights: dict[str, torch.Tensor], in_channels: int = 3, **options: Any
) -> nn.Module:
    """Return a timm backbone filled with ``weights``, checked tensor by tensor.

    timm does the loading, since it knows how each family's files are laid out (classifier
    dropped, official names translated, first convolution adapted to other band counts).
    A CheckpointError if a tensor stays untrained, or the weights are of a larger backbone.
    """
    # timm warns of the classifier that a feature extractor leaves out; our own check is stricter.
    logging.getLogger("timm.models._builder").setLevel(logging.ERROR)
    _check_names(backbone, weights)
    try:
        body = timm.create_model(
            backbone,
            pretrained=True,
            pretrained_cfg_overlay={"state_dict": weights, "custom_load": False},
            in_chans=in_channels,
            **options,
        )
    except (RuntimeError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"pretrained weights do not fit {backbone} ({first_line(error)}); use weights of this "
            "very backbone"
        ) from error
    # timm sums or repeats the bands of the first convolution where their number differs.
    first = next(n for n, p in body.named_parameters() if p.dim() == 4)
    _check_filled(body, weights, backbone, skip=set() if in_channels == 3 else {first})
    return body


def _check_names(backbone: str, weights: dict[str, torch.Tensor]) -> None:
    """Refuse files of a deeper network, which hold all that a shallower one asks for."""
    with torch.device("meta"):
        known = timm.create_model(backbone).state_dict().keys()
    unknown = [name for name in weights if name not in known]
    if unknown and len(unknown) < len(weights) / 2:
        raise CheckpointError(
            f"pretrained weights for {backbone}: {len(unknown)} tensors of the file are not in "
            f"this backbone, {unknown[0]} first; use weights of this very backbone"
        )


def _check_filled(
    body: nn.Module, weights: dict[str, torch.Tensor], backbone: str, skip: set[str]
) -> None:
    """Raise unless every tensor of the backbone comes from the file.

    timm fills without complaint about missing names, and it renames and reshapes on the way, so
    tensors are recognised by content: size, lowest and highest value.
    """
    known = {_fingerprint(value) for value in weights.values() if value.is_floating_point()}
    missing = [
        name
        for name, value in body.state_dict().items()
        if value.is_floating_point() and name not in skip and _fingerprint(value) not in known
    ]
    if missing:
        raise CheckpointError(
            f"pretrained weights for {backbone}: {len(missing)} tensors of the backbone are not in "
            f"the file, {missing[0]} first; use weights of this very backbone"
        )


def _fingerprint(value: torch.Tensor) -> tuple[int, float, float]:
    value = value.detach().float()
    return (value.numel(), value.min().item(), value.max().item()) if value.numel() else (0, 0, 0)
