"""Models: `build_model` from a configuration, `load_model` from a checkpoint."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from models.change_detector import ChangeDetector, ModelConfig, build_model
from models.published import convert_published, is_published
from utils.errors import CheckpointError
from utils.tensor_files import read_checkpoint, unwrap_state_dict


class Checkpoint(NamedTuple):
    """A checkpoint that was read but not built.

    Attributes:
        path: the file.
        config: how to build the model.
        tensors: its state dict, under our names.
        info: the rest: classes, split, epoch, metrics, training state; empty for foreign files.
    """

    path: Path
    config: ModelConfig
    tensors: dict[str, torch.Tensor]
    info: dict[str, Any]

    def build(self, device: torch.device | str = "cpu") -> ChangeDetector:
        """Build the model on a device, in eval mode.

        Raises:
            CheckpointError: the tensors do not fill the model.
        """
        model = build_model(self.config)
        try:
            model.load_state_dict(self.tensors)
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()[:200]
            raise CheckpointError(f"{self.path}: does not fit {self.config}: {reason}") from error
        return model.to(device=device, memory_format=torch.channels_last).eval()


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Read a checkpoint of this project or of the published implementation, without building it.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, or of another program.
    """
    path = Path(path)
    state = read_checkpoint(path)
    tensors = unwrap_state_dict(state, path)
    if isinstance(state.get("config"), dict) and "format" in state:
        info = {key: value for key, value in state.items() if key not in ("config", "model")}
        try:
            config = ModelConfig(**state["config"])
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path}: of another version of this project ({error})"
            ) from error
        return Checkpoint(path, config, tensors, info)
    if is_published(tensors):
        config, tensors = convert_published(tensors, path)
        return Checkpoint(path, config, tensors, {})
    raise CheckpointError(
        f"{path}: neither a checkpoint of this project nor of the published implementation; "
        "use --pretrained for backbone weights"
    )


def load_model(path: Path | str, device: torch.device | str = "cpu") -> ChangeDetector:
    """Rebuild the model of a checkpoint on a device, in eval mode.

    Raises:
        CheckpointError: as `open_checkpoint`, or the tensors do not fill the model.
    """
    return open_checkpoint(path).build(device)
