"""The published execution pattern, as an honest baseline and as the correctness oracle.

float32, NCHW, one encoder pass per date, six sequential views, files decoded at each access, the
framework's defaults. It computes with the very weights of the model it is given.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from datasets.bands import IMAGENET_MEAN, IMAGENET_STD
from engine.predictor import VIEWS, Probabilities, View, apply_view, undo_view
from models.change_detector import ChangeDetector, ChangeOutput


class ReferenceDetector(nn.Module):
    """A `ChangeDetector` executed as published: each date by itself.

    Args:
        detector: whose modules and weights are used; brought to NCHW memory.
    """

    def __init__(self, detector: ChangeDetector) -> None:
        super().__init__()
        self.detector = detector.to(memory_format=torch.contiguous_format)

    def forward(self, image1: torch.Tensor, image2: torch.Tensor) -> ChangeOutput:
        """Map normalised images (N, bands, H, W), sides multiples of 32, to logits."""
        size = image1.shape[-2:]
        features1 = self.detector.encoder(image1)
        features2 = self.detector.encoder(image2)
        logits1 = self.detector.semantic_head(features1)
        logits2 = self.detector.semantic_head(features2)
        change = self.detector.change_head((features1 - features2).abs())
        logits1, logits2, change = (
            F.interpolate(x, size, mode="bilinear", align_corners=False)
            for x in (logits1, logits2, change)
        )
        return ChangeOutput(logits1, logits2, change.squeeze(1))


def reference_normalize(images: torch.Tensor) -> torch.Tensor:
    """Normalise (N, 3, H, W) uint8 to float32 in NCHW memory."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(1, 3, 1, 1)
    return (images.float().contiguous() - mean) / std


@torch.no_grad()
def reference_predict(
    models: Sequence[ReferenceDetector],
    image1: torch.Tensor,
    image2: torch.Tensor,
    views: Sequence[View] = VIEWS,
) -> list[Probabilities]:
    """Return each model's mean probabilities over the views, one view after the other.

    Args:
        models: in eval mode.
        image1: (N, 3, H, W) uint8, on the models' device.
        image2: the same shape.
        views: all six as published.
    """
    image1, image2 = reference_normalize(image1), reference_normalize(image2)
    means = []
    for model in models:
        seen = []
        for view in views:
            output = model(
                apply_view(image1, view).contiguous(), apply_view(image2, view).contiguous()
            )
            probs = (
                output.semantic_logits1.softmax(1),
                output.semantic_logits2.softmax(1),
                output.change_logits.sigmoid(),
            )
            seen.append([undo_view(p, view) for p in probs])
        means.append(Probabilities(*(torch.stack(p).mean(0) for p in zip(*seen, strict=True))))
    return means


def reference_train_step(
    model: ReferenceDetector,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, torch.Tensor],
) -> float:
    """Do one optimiser step on a batch on the device, and read the loss."""
    output = model(reference_normalize(batch["image1"]), reference_normalize(batch["image2"]))
    loss = criterion(output, batch["label1"], batch["label2"], batch["change_mask"])["total"]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def reference_read(paths: Iterable[str]) -> list[np.ndarray]:
    """Decode files with PIL, as each access of the published data set does."""
    return [np.array(Image.open(path)) for path in paths]


def reference_sample(paths: Sequence[str], generator: np.random.Generator) -> dict:
    """Read one training pair (images and index labels), augment it, normalise it on the CPU.

    Args:
        paths: image 1, image 2, label 1, label 2.
        generator: draws one of the six published geometries.
    """
    arrays = reference_read(paths)
    flip, turns = VIEWS[generator.integers(len(VIEWS))]
    arrays = [np.rot90(a[:, ::-1] if flip else a, turns).copy() for a in arrays]
    mean = np.array(IMAGENET_MEAN, dtype=np.float32) / 255
    std = np.array(IMAGENET_STD, dtype=np.float32) / 255
    images = [
        torch.from_numpy(((a.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1).copy())
        for a in arrays[:2]
    ]
    labels = [torch.from_numpy(a.astype(np.int64)) for a in arrays[2:]]
    return {
        "image1": images[0],
        "image2": images[1],
        "label1": labels[0],
        "label2": labels[1],
        "change_mask": (labels[0] > 0).float(),
    }
