"""With which weights a new run starts: random ones, ImageNet's, or another run's."""

from collections.abc import Callable
from pathlib import Path

from models import ChangeDetector, ModelConfig, build_model, open_checkpoint
from models.pretrained import find_pretrained
from models.transfer import transfer_weights


def start_model(
    config: ModelConfig,
    pretrain_from: Path | None,
    pretrained: bool,
    pretrained_dir: Path | None,
    say: Callable[[str], None] = print,
) -> ChangeDetector:
    """Build the model of a new run.

    Args:
        config: what to build.
        pretrain_from: checkpoint of another run to start from.
        pretrained: start the backbone from ImageNet weights, without ``pretrain_from``.
        pretrained_dir: as `models.pretrained.find_pretrained` takes it.
        say: told what of another run's weights is used.

    Raises:
        CheckpointError: the weights cannot be read, or do not fit.
        OptionError: an unknown model or backbone, or no ImageNet weights for it.
    """
    if pretrain_from is not None:
        model = build_model(config)
        checkpoint = open_checkpoint(pretrain_from)
        skipped = transfer_weights(model, checkpoint)
        say(f"starting from {pretrain_from}{_changes(config, checkpoint.config, skipped)}")
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
