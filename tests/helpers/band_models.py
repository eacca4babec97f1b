"""Bands, statistics and untrained models of them, for the tests."""

from pathlib import Path

import torch

from datasets.bands import RGB_IMAGERY, Bands, Imagery
from models.change_detector import ModelConfig, build_model
from models.checkpoint import Checkpoint
from tests.helpers.runs import BACKBONE

FOUR = Bands((1, 2, 3, 4), 16)
STATISTICS = Imagery(FOUR, (1000.0, 1100.0, 900.0, 1500.0), (500.0, 400.0, 600.0, 700.0))


def checkpoint_of(imagery: Imagery = RGB_IMAGERY, path: str = "a.pth") -> Checkpoint:
    config = ModelConfig("fcn", BACKBONE, in_channels=len(imagery.bands.numbers), imagery=imagery)
    torch.manual_seed(0)
    return Checkpoint(Path(path), config, build_model(config).state_dict(), {})
