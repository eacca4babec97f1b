"""Change masks and models of change alone, for the tests."""

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datasets.classes import SECOND_CLASSES
from models.change_detector import ModelConfig, build_model

SIDE = 64
OF_CLASSES = re.compile(r"score|sek|f_scd|class_iou|iou_(?!changed|unchanged)|semantic")


def masks_in_both(root: Path, high: int = 255) -> None:
    """Turn a semantic set's labels into change masks, equal in label1 and label2."""
    for path in root.glob("*/label[12]/*.png"):
        changed = SECOND_CLASSES.to_index(np.asarray(Image.open(path))) > 0
        Image.fromarray(changed.astype(np.uint8) * np.uint8(high)).save(path)


def leave_unchanged(root: Path, *stems: str) -> None:
    """Take all change out of the labels of some of a semantic set's training pairs."""
    for path in (root / f"train/label{date}/{stem}.png" for date in (1, 2) for stem in stems):
        shape = (*np.asarray(Image.open(path)).shape[:2], 3)
        Image.fromarray(np.full(shape, 255, np.uint8)).save(path)


def small_model(num_classes: int = 0) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(ModelConfig("fcn", "test_convnext", num_classes=num_classes)).eval()
