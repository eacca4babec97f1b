"""Starting from another run's weights."""

from torch import nn

from models import Checkpoint
from utils.errors import CheckpointError


def transfer_weights(model: nn.Module, checkpoint: Checkpoint) -> list[str]:
    """Load a checkpoint of the same architecture into a model.

    The semantic classifier starts anew where the number of classes differs.

    Returns:
        Names of the layers that start anew.

    Raises:
        CheckpointError: the architecture differs.
    """
    for name in ("model", "backbone", "lightweight", "in_channels"):
        there, here = getattr(checkpoint.config, name), getattr(model.config, name)
        if there != here:
            raise CheckpointError(
                f"{checkpoint.path}: has {name} {there}, this run {here}; use the same options"
            )
    own = model.state_dict()
    if own.keys() != checkpoint.tensors.keys():
        name = min(own.keys() ^ checkpoint.tensors.keys())
        raise CheckpointError(f"{checkpoint.path}: tensors are missing or unknown, {name} first")
    fitting = {
        name: value for name, value in checkpoint.tensors.items() if own[name].shape == value.shape
    }
    model.load_state_dict(fitting, strict=False)
    return sorted({name.rsplit(".", 1)[0] for name in own if name not in fitting})
