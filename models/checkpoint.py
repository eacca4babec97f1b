"""Checkpoints: what one of ours holds, checked once when it is read, and the model in it."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from models.change_detector import ChangeDetector, ModelConfig, build_model
from models.decoding import NAMES
from models.published import convert_published, is_published
from utils.errors import CheckpointError, OptionError
from utils.tensor_files import read_checkpoint, unwrap_state_dict


class Checkpoint(NamedTuple):
    """A checkpoint that was read but not built: its state dict under our names.

    ``info`` is what `OF_RUN` and `TO_RESUME` list; empty for foreign files.
    """

    path: Path
    config: ModelConfig
    tensors: dict[str, torch.Tensor]
    info: dict[str, Any]

    def build(self, device: torch.device | str = "cpu") -> ChangeDetector:
        """Build the model on a device, in eval mode; a CheckpointError where that is impossible."""
        try:
            model = build_model(self.config)
        except OptionError as error:
            raise CheckpointError(f"{self.path}: {error}") from error
        self.fill(model)
        return model.to(device=device, memory_format=torch.channels_last).eval()

    def fill(self, model: ChangeDetector) -> None:
        """Load the weights into a model of this very configuration, or raise a CheckpointError."""
        try:
            model.load_state_dict(self.tensors)
        except RuntimeError as error:
            config, reason = self.config, str(error).splitlines()[-1].strip()[:200]
            raise CheckpointError(
                f"{self.path}: does not fit {config.model} of {config.backbone} for "
                f"{config.num_classes} classes: {reason}"
            ) from error


def load_model(path: Path | str, device: torch.device | str = "cpu") -> ChangeDetector:
    """Rebuild the model of a checkpoint; errors as `open_checkpoint` and `Checkpoint.build`."""
    return open_checkpoint(path).build(device)


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Read a checkpoint of this project or of the published implementation, without building it.

    A CheckpointError if the file is missing, damaged, unsafe, or of another program.
    """
    path = Path(path)
    state = read_checkpoint(path)
    tensors = unwrap_state_dict(state, path)
    if "format" in state:
        form = WEIGHTS | OF_RUN | (TO_RESUME if "training" in state else {})
        fault = _fault(state, form)
        try:
            if fault:
                raise ValueError(f"{fault} is missing or no such value")
            config = ModelConfig(**state["config"])
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path}: of another version of this project, or changed ({error})"
            ) from error
        return Checkpoint(path, config, tensors, {k: state[k] for k in state if k not in WEIGHTS})
    if is_published(tensors):
        config, tensors = convert_published(tensors, path)
        return Checkpoint(path, config, tensors, {})
    raise CheckpointError(
        f"{path}: neither a checkpoint of this project nor of the published implementation; "
        "use --pretrained for backbone weights"
    )


NUMBER = (int, float)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _are_scores(value: Any) -> bool:
    return isinstance(value, dict) and not any(
        _fault(score, [NUMBER] if str(name).startswith("class_iou") else NUMBER, "score")
        for name, score in value.items()
    )


def _is_share(value: Any) -> bool:
    return isinstance(value, NUMBER) and not isinstance(value, bool) and 0 <= value <= 1


def _is_file_name(value: Any) -> bool:
    # It becomes a path; a file from elsewhere must not lead out of the folders of a run.
    return isinstance(value, str) and bool(re.fullmatch(r"\w[\w.+-]{,200}", value))


# What a checkpoint of ours holds. [form] is a list, {str: form} a dict of any names, a tuple gives
# alternatives, a function tells; ABSENT is what older checkpoints, or those of no run, lack.
ABSENT = object()
IMAGERY = {"bands": {"numbers": [int], "bits": int}, "mean": [NUMBER], "std": [NUMBER]}
WEIGHTS = {
    "format": int,
    "config": {
        **{"model": str, "backbone": str, "lightweight": bool},
        **{"num_classes": _is_count, "in_channels": _is_count},
        "imagery": (ABSENT, IMAGERY),
    },
    "model": {str: torch.Tensor},
}
OF_RUN = {
    "classes": (ABSENT, {"names": [str], "colors": [[int]]}),
    "split": (ABSENT, {"protocol": str, "train": [str], "val": [str]}),
    "labelled_dates": (ABSENT, {str: [int]}),
    "mask_set": (ABSENT, str),
    "pseudo_labels": (ABSENT, bool),
    "run": (ABSENT, _is_file_name),
    "name": (ABSENT, None, _is_file_name),
    "epoch": (ABSENT, _is_count),
    "metrics": (ABSENT, _are_scores),
    "scored_with": (ABSENT, {str: (int, str)}),
    "decoding": (
        ABSENT,
        {"name": NAMES.__contains__}
        | dict.fromkeys(("evidence", "threshold", "same_class", "by_chance"), _is_share),
    ),
}
TO_RESUME = {
    **{key: OF_RUN[key][1] for key in ("classes", "split", "run", "epoch", "metrics")},
    "training": {
        "optimizer": {"state": dict, "param_groups": [dict]},
        **{"scheduler": dict, "scaler": dict},
        **{"epoch": _is_count, "step": _is_count, "validated": bool},
        "losses": {"sums": {str: NUMBER}, "batches": _is_count},
        "best": (None, _are_scores),
        "rows": [{"epoch": int}],
        "rng": [{"cpu": torch.Tensor}],
        "threads": (ABSENT, _is_count),
        "change_weight": (ABSENT, NUMBER),
    },
    "options": {str: (None, bool, int, float, str, [(int, float, str)])},
    "best_file": (None, _is_file_name),
}


def _fault(value: Any, form: Any, name: str = "") -> str:
    """Return the name of the first part of a value that is not of its form; "" where all are."""
    if isinstance(form, tuple):
        faults = [_fault(value, each, name) for each in form]
        return "" if "" in faults else faults[-1]
    if isinstance(form, dict) and isinstance(value, dict):
        forms = dict.fromkeys(value, form[str]) if str in form else form
        parts = [(value.get(k, ABSENT), f, f"{name}.{k}".strip(".")) for k, f in forms.items()]
    elif isinstance(form, list) and isinstance(value, list | tuple):
        parts = [(part, form[0], f"{name}[{i}]") for i, part in enumerate(value)]
    else:
        if isinstance(form, type):
            fits = isinstance(value, form) and (form is bool or not isinstance(value, bool))
        else:
            fits = form(value) if callable(form) else value is form
        return "" if fits else name
    return next(filter(None, (_fault(*part) for part in parts)), "")
