"""Checkpoints of small untrained models, for the tests."""

import copy
from pathlib import Path
from typing import Any

import torch

from models.change_detector import ModelConfig, build_model
from utils.tensor_files import save_checkpoint

CLASSES = {"names": ["unchanged", "water", "forest"], "colors": [[255] * 3, [0] * 3, [0, 255, 0]]}


def small_config(**changes) -> ModelConfig:
    return ModelConfig(**{"model": "fcn", "backbone": "test_convnext", "num_classes": 2, **changes})


def best_state(config: ModelConfig, run: str = "a", score: float = 0.5) -> dict[str, Any]:
    """What a run saves with its best epoch."""
    torch.manual_seed(0)
    return {
        "config": config.to_dict(),
        "model": build_model(config).state_dict(),
        "classes": copy.deepcopy(CLASSES),
        "split": {"protocol": "folders", "train": ["train/1"], "val": ["val/1"]},
        "labelled_dates": {"training": [1, 2], "validation": [1]},
        "pseudo_labels": False,
        "run": run,
        "epoch": 7,
        "metrics": {"score": score, "class_iou": [score, 1.0, 0.5]},
        "decoding": {
            **{"name": "joint", "evidence": 0.5, "threshold": 0.6},
            **{"same_class": 0, "by_chance": 0.2},
        },
    }


def latest_state() -> dict[str, Any]:
    """What it saves to be resumed from."""
    state = best_state(small_config())
    training = {
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3}]},
        **{"scheduler": {"last_epoch": 1}, "scaler": {}, "epoch": 7, "step": 1},
        **{"validated": False, "losses": {"sums": {"total": 1.5}, "batches": 1}},
        **{"best": state["metrics"], "rows": [{"epoch": 1, "lr": 1e-3}]},
        "rng": [{"cpu": torch.get_rng_state()}],
    }
    options = {"lr": 1e-3, "bands": [1, 2, 3], "class_weights": None, "tta": False, "amp": "off"}
    return state | {"training": training, "options": options, "best_file": "fcn_x_50.00.pth"}


def write_model(path: Path, run: str = "a", score: float = 0.5, **changes) -> torch.nn.Module:
    """Write a best checkpoint and return its model."""
    config = small_config(**changes)
    state = best_state(config, run, score)
    save_checkpoint(path, state)
    model = build_model(config)
    model.load_state_dict(state["model"])
    return model
