"""Starting from another run's weights."""

from torch import nn

from models import Checkpoint
from utils.errors import CheckpointError

SEMANTIC_HEAD = "semantic_head"


def transfer_weights(model: nn.Module, checkpoint: Checkpoint) -> list[str]:
    """Load a checkpoint of the same architecture into a model.

    The semantic classifier starts anew where the number of classes differs, the whole semantic head
    where the checkpoint has none. A model without one takes encoder and change head alone.

    Returns:
        Names of the layers that start anew, or ``semantic_head``.

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
    unmatched = own.keys() ^ checkpoint.tensors.keys()
    without_head = not (model.config.num_classes and checkpoint.config.num_classes)
    if without_head:
        unmatched = {name for name in unmatched if not name.startswith(f"{SEMANTIC_HEAD}.")}
    if unmatched:
        name = min(unmatched)
        raise CheckpointError(f"{checkpoint.path}: tensors are missing or unknown, {name} first")
    fitting = {
        name: value
        for name, value in checkpoint.tensors.items()
        if name in own and own[name].shape == value.shape
    }
    model.load_state_dict(fitting, strict=False)
    if without_head:
        return [SEMANTIC_HEAD] if model.config.num_classes else []
    return sorted({name.rsplit(".", 1)[0] for name in own if name not in fitting})
