"""Checkpoints of the published implementation: what they are, and how they map onto our model.

They are bare state dicts with names ``backbone.*``, ``head.*`` (semantics) and ``head_bin.*``
(change), some with a ``module.`` prefix. Their change head predicts *unchanged*.
"""

from typing import Any

import timm
import torch

from models.change_detector import ModelConfig
from utils.errors import CheckpointError

_PREFIXES = {"backbone.": "encoder.body.", "head.": "semantic_head.", "head_bin.": "change_head."}


def is_published(tensors: dict[str, torch.Tensor]) -> bool:
    """Tell whether a state dict (``module.`` stripped) has the published naming."""
    return all(any(name.startswith(prefix) for name in tensors) for prefix in _PREFIXES)


def convert_published(
    tensors: dict[str, torch.Tensor], path: Any = "checkpoint"
) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """Return the configuration of a published checkpoint and its tensors under our names.

    Raises:
        CheckpointError: the tensors are not those of a network this project can build.
    """
    try:
        config = _infer_config(tensors)
    except KeyError as error:
        raise CheckpointError(
            f"{path}: looks like a published checkpoint, but {error.args[0]} is missing"
        ) from error
    converted = {_rename(name): value for name, value in tensors.items()}
    for name in _last_layer(converted, "change_head."):
        # sigmoid(−x) = 1 − sigmoid(x): the sign turns "unchanged" into "changed".
        converted[name] = -converted[name]
    return config, converted


def _infer_config(tensors: dict[str, torch.Tensor]) -> ModelConfig:
    model = "pspnet" if any(name.startswith("head_bin.conv5.") for name in tensors) else "fcn"
    return ModelConfig(
        model=model,
        backbone=_infer_backbone(tensors),
        lightweight="head.head.0.conv.0.weight" in tensors,
        num_classes=tensors["head.head.4.weight"].shape[0],
        in_channels=tensors["backbone.conv1.weight"].shape[1],
    )


def _infer_backbone(tensors: dict[str, torch.Tensor]) -> str:
    """Name the HRNet whose stage widths and depths these tensors have."""
    width = tensors["backbone.stage4.0.branches.0.0.conv1.weight"].shape[0]
    candidates = [name for name in timm.list_models("hrnet_*") if not name.endswith("_ssld")]
    for name in candidates:
        config = timm.models.hrnet.cfg_cls[name]
        if config["stage4"]["num_channels"][0] != width:
            continue
        depth_matches = all(
            f"backbone.layer1.{config['stage1']['num_blocks'][0] - 1}.conv1.weight" in tensors
            and f"backbone.{stage}.{config[stage]['num_modules'] - 1}.branches.0."
            f"{config[stage]['num_blocks'][0] - 1}.conv1.weight"
            in tensors
            and f"backbone.{stage}.{config[stage]['num_modules']}.branches.0.0.conv1.weight"
            not in tensors
            for stage in ("stage2", "stage3", "stage4")
        )
        if depth_matches:
            return name
    raise KeyError(f"an HRNet of width {width}")


def _rename(name: str) -> str:
    for old, new in _PREFIXES.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _last_layer(tensors: dict[str, torch.Tensor], prefix: str) -> list[str]:
    """Return weight and bias names of the 1×1 classifier: the only biased convolution there."""
    weights = [n for n, v in tensors.items() if n.startswith(prefix) and v.dim() == 4]
    return [n for w in weights for n in (w, w.replace(".weight", ".bias")) if _has_bias(w, tensors)]


def _has_bias(weight: str, tensors: dict[str, torch.Tensor]) -> bool:
    return weight.replace(".weight", ".bias") in tensors
