"""The published execution pattern, as an honest baseline and as the correctness oracle.

float32, NCHW, one encoder pass per date, six sequential views, files decoded at each access, the
framework's defaults. It computes with the very weights of the model it is given.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from datasets.bands import IMAGENET_MEAN, IMAGENET_STD
from engine.ensemble import choose_decoding
from engine.predictor import VIEWS, Probabilities, View, apply_view, undo_view
from models.change_detector import ChangeDetector, ChangeOutput
from models.checkpoint import load_model, open_checkpoint


class Detector(nn.Module):
    """A `ChangeDetector` executed as published, each date by itself; its memory becomes NCHW."""

    def __init__(self, detector: ChangeDetector) -> None:
        super().__init__()
        self.detector = detector.to(memory_format=torch.contiguous_format)

    def forward(self, image1: torch.Tensor, image2: torch.Tensor) -> ChangeOutput:
        """Map normalised images (N, bands, H, W), sides multiples of 32, to logits."""
        features1, features2 = self.detector.encoder(image1), self.detector.encoder(image2)
        logits = [self.detector.semantic_head(features) for features in (features1, features2)]
        logits.append(self.detector.change_head((features1 - features2).abs()))
        logits1, logits2, change = (
            F.interpolate(x, image1.shape[-2:], mode="bilinear", align_corners=False)
            for x in logits
        )
        return ChangeOutput(logits1, logits2, change.squeeze(1))


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Normalise (…, 3, H, W) uint8 to float32 in NCHW memory."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(3, 1, 1)
    return (images.float().contiguous() - mean) / std


class Predictor:
    """Runs models under all views, one after the other; called as `engine.predictor.Predictor`.

    Args:
        paths: checkpoints.
        device: of models and images.
        views: all six as published.
    """

    def __init__(self, paths: Sequence[Path], device: torch.device, views: Sequence[View]) -> None:
        # No way of execution but a choice of what is computed, which both sides have to make alike.
        self.decoding = choose_decoding(None, [open_checkpoint(path) for path in paths])
        self.models = [Detector(load_model(path, device)) for path in paths]
        self.views = views

    def __call__(self, image1: torch.Tensor, image2: torch.Tensor) -> Probabilities:
        """Return the models' mean probabilities; arguments as `each_model`."""
        return _mean(self.each_model(image1, image2))

    @torch.no_grad()
    def each_model(self, image1: torch.Tensor, image2: torch.Tensor) -> list[Probabilities]:
        """Return each model's mean probabilities over the views; images are (N, 3, H, W) uint8."""
        image1, image2 = normalize(image1), normalize(image2)
        means = []
        for model in self.models:
            seen = []
            for view in self.views:
                images = (apply_view(image, view).contiguous() for image in (image1, image2))
                logits1, logits2, change = model(*images)
                probs = (logits1.softmax(1), logits2.softmax(1), change.sigmoid())
                seen.append([undo_view(p, view) for p in probs])
            means.append(_mean(seen))
        return means


def _mean(probabilities: Iterable[Sequence[torch.Tensor]]) -> Probabilities:
    stacks = map(torch.stack, zip(*probabilities, strict=True))
    return Probabilities(*(stack.mean(0) for stack in stacks))


def train_step(
    model: Detector, criterion: nn.Module, optimizer: torch.optim.Optimizer, batch: dict
) -> float:
    """Do one optimiser step on a batch on the device, and read the loss."""
    output = model(normalize(batch["image1"]), normalize(batch["image2"]))
    loss = criterion(output, batch["label1"], batch["label2"], batch["change_mask"])["total"]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def read(paths: Iterable[Path]) -> list[np.ndarray]:
    """Decode files with PIL, as each access of the published data set does."""
    return [np.array(Image.open(path)) for path in paths]


def read_sample(paths: Sequence[Path], generator: np.random.Generator) -> tuple:
    """Read image 1, image 2 and index labels 1 and 2, turn and normalise them; add what changed."""
    flip, turns = VIEWS[generator.integers(len(VIEWS))]
    arrays = (np.rot90(a[:, ::-1] if flip else a, turns).copy() for a in read(paths))
    image1, image2, label1, label2 = map(torch.from_numpy, arrays)
    images = [normalize(image.permute(2, 0, 1)) for image in (image1, image2)]
    return *images, label1.long(), label2.long(), (label1 > 0).float()
