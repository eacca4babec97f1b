"""With which weights a new run starts: random ones, ImageNet's, or another run's."""

from pathlib import Path

import torch
from timm.models import adapt_input_conv
from torch import nn

from models.change_detector import ChangeDetector, ModelConfig, build_model
from models.checkpoint import Checkpoint, open_checkpoint
from models.pretrained import find_pretrained
from utils.dist import print0
from utils.errors import CheckpointError

SEMANTIC_HEAD = "semantic_head"
RGB_CHANNELS = 3


def start_model(
    config: ModelConfig, pretrain_from: Path | None, pretrained: bool, pretrained_dir: Path | None
) -> ChangeDetector:
    """Build the model of a new run: from another run's checkpoint, or else a random one.

    ``pretrained`` starts the backbone from `find_pretrained`. A CheckpointError where weights
    cannot be read or do not fit, an OptionError for an unknown model or backbone.
    """
    if pretrain_from is not None:
        model = build_model(config)
        checkpoint = open_checkpoint(pretrain_from)
        skipped = transfer_weights(model, checkpoint)
        print0(f"starting from {pretrain_from}{_changes(config, checkpoint.config, skipped)}")
        return model
    weights = find_pretrained(config.backbone, pretrained_dir) if pretrained else None
    return build_model(config, weights)


def _changes(config: ModelConfig, source: ModelConfig, skipped: list[str]) -> str:
    text = f"; {', '.join(skipped)} starts anew (other classes)" if skipped else ""
    if source.num_classes and not config.num_classes:
        text = "; its semantic_head is left out (no classes)"
    if source.in_channels != config.in_channels:
        text += f"; first convolution adapted to {config.in_channels} bands"
    return text


def transfer_weights(model: nn.Module, checkpoint: Checkpoint) -> list[str]:
    """Load a checkpoint of the same architecture; return the names of the layers that start anew.

    Those are the semantic classifier where the number of classes differs, or ``semantic_head``
    where the checkpoint has none. A model without one takes encoder and change head alone. The
    first convolution of a model of three bands is adapted to others as timm adapts ImageNet's:
    summed for one, else repeated and scaled. A CheckpointError for any other difference.
    """
    for name in ("model", "backbone", "lightweight"):
        there, here = getattr(checkpoint.config, name), getattr(model.config, name)
        if there != here:
            raise CheckpointError(
                f"{checkpoint.path}: has {name} {there}, this run {here}; use the same options"
            )
    own = model.state_dict()
    unmatched = own.keys() ^ checkpoint.tensors.keys()
    without_head = not (model.config.num_classes and checkpoint.config.num_classes)
    if without_head:
        unmatched = {name for name in unmatched if not name.startswith(f"{SEMANTIC_HEAD}.")}
    if unmatched:
        name = min(unmatched)
        raise CheckpointError(f"{checkpoint.path}: tensors are missing or unknown, {name} first")
    tensors = _adapted(checkpoint, model.config.in_channels, own)
    tensors = {n: value for n, value in tensors.items() if own[n].shape == value.shape}
    model.load_state_dict(tensors, strict=False)
    if without_head:
        return [SEMANTIC_HEAD] if model.config.num_classes else []
    return sorted({name.rsplit(".", 1)[0] for name in own if name not in tensors})


def _adapted(
    checkpoint: Checkpoint, bands: int, own: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the tensors of the model's names, input convolutions for its number of bands."""
    tensors = {name: value for name, value in checkpoint.tensors.items() if name in own}
    if checkpoint.config.in_channels == bands:
        return tensors
    if checkpoint.config.in_channels != RGB_CHANNELS:
        raise CheckpointError(
            f"{checkpoint.path}: takes {checkpoint.config.in_channels} bands, this run {bands}; "
            "only models of three bands are adapted to others: use as many --bands"
        )
    for name, value in tensors.items():
        channels = [tensor.shape[1:2] for tensor in (value, own[name]) if tensor.dim() == 4]
        if name.startswith("encoder.body.") and channels == [(RGB_CHANNELS,), (bands,)]:
            tensors[name] = adapt_input_conv(bands, value)
    return tensors
