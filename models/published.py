"""Checkpoints of the published implementation: bare state dicts, and our names for their parts.

Some names have a ``module.`` prefix. Their change head ``head_bin`` predicts *unchanged*.
"""

from pathlib import Path

import timm
import torch

from models.change_detector import ModelConfig
from utils.errors import CheckpointError

_PREFIXES = {"backbone.": "encoder.body.", "head.": "semantic_head.", "head_bin.": "change_head."}


def is_published(tensors: dict[str, torch.Tensor]) -> bool:
    """Tell whether a state dict (``module.`` stripped) has the published naming."""
    return all(any(name.startswith(prefix) for name in tensors) for prefix in _PREFIXES)


def convert_published(
    tensors: dict[str, torch.Tensor], path: Path
) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """Return configuration and tensors under our names; a CheckpointError for other networks."""
    is_psp = any(name.startswith("head_bin.conv5.") for name in tensors)
    try:
        config = ModelConfig(
            model="pspnet" if is_psp else "fcn",
            backbone=_infer_backbone(tensors),
            lightweight="head.head.0.conv.0.weight" in tensors,
            num_classes=tensors["head.head.4.weight"].shape[0],
            in_channels=tensors["backbone.conv1.weight"].shape[1],
        )
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"{path}: looks like a published checkpoint, but its tensors do not ({error.args[0]})"
        ) from error
    # sigmoid(−x) = 1 − sigmoid(x): the sign of the last layer turns "unchanged" into "changed".
    last_layer = "head_bin.conv5.5." if is_psp else "head_bin.head.4."
    return config, {
        _rename(name): -value if name.startswith(last_layer) else value
        for name, value in tensors.items()
    }


def _infer_backbone(tensors: dict[str, torch.Tensor]) -> str:
    """Name the HRNet whose stage widths and depths these tensors have."""
    width = tensors["backbone.stage4.0.branches.0.0.conv1.weight"].shape[0]
    candidates = [name for name in timm.list_models("hrnet_*") if not name.endswith("_ssld")]
    for name in candidates:
        config = timm.models.hrnet.cfg_cls[name]
        if config["stage4"]["num_channels"][0] != width:
            continue
        last = [f"layer1.{config['stage1']['num_blocks'][0] - 1}"]
        beyond = []
        for stage in ("stage2", "stage3", "stage4"):
            modules, blocks = config[stage]["num_modules"], config[stage]["num_blocks"][0]
            last.append(f"{stage}.{modules - 1}.branches.0.{blocks - 1}")
            beyond.append(f"{stage}.{modules}.branches.0.0")
        has = {block: f"backbone.{block}.conv1.weight" in tensors for block in last + beyond}
        if all(map(has.get, last)) and not any(map(has.get, beyond)):
            return name
    raise KeyError(f"an HRNet of width {width}")


def _rename(name: str) -> str:
    part, dot, rest = name.partition(".")
    return _PREFIXES.get(part + dot, part + dot) + rest
