"""One epoch of training, one evaluation. Models, loaders and devices come in as arguments."""

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch
from torch import nn

from utils.errors import NumericalError
from utils.images import normalize
from utils.inference import Predictor, decode
from utils.metrics import ConfusionMatrix, Metrics, compute_metrics

# Called with (names, pred1, pred2), maps (N, H, W) uint8 on the CPU.
OnBatch = Callable[[list[str], torch.Tensor, torch.Tensor], None]


def train_one_epoch(
    model: nn.Module,
    loader: Iterable[dict],
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    device: torch.device,
    autocast: Callable[[], object] = nullcontext,
) -> dict[str, float]:
    """Train over one loader and return the mean of each loss term.

    Args:
        model: maps two images to logits, on ``device``.
        loader: yields dicts with uint8 ``image1/image2`` (N, bands, H, W), integer
            ``label1/label2`` and ``change_mask`` (N, H, W), and ``name``.
        criterion: as `utils.losses.ChangeCriterion`.
        optimizer: steps once per batch.
        scheduler: steps once per batch.
        device: where the batches go.
        autocast: makes a context for the forward pass.

    Raises:
        NumericalError: the loss is NaN or infinite; names the files of the batch.
    """
    model.train()
    sums: dict[str, float] = {}
    steps = 0
    for batch in loader:
        image1 = normalize(batch["image1"].to(device, non_blocking=True))
        image2 = normalize(batch["image2"].to(device, non_blocking=True))
        targets = [
            batch[key].to(device, non_blocking=True) for key in ("label1", "label2", "change_mask")
        ]
        with autocast():
            output = model(image1, image2)
        losses = criterion(output, *targets)
        optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        values = {name: value.item() for name, value in losses.items()}
        if not all(math.isfinite(value) for value in values.values()):
            raise NumericalError(
                f"loss is {values} in step {steps} of this epoch, files {', '.join(batch['name'])};"
                " lower --lr or check these files; the last checkpoint is kept"
            )
        optimizer.step()
        scheduler.step()
        steps += 1
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value
    return {name: value / steps for name, value in sums.items()}


def evaluate(
    predictor: Predictor, loader: Iterable[dict], num_classes: int, on_batch: OnBatch | None = None
) -> Metrics | None:
    """Predict every pair of a loader and score it where labels exist.

    Args:
        predictor: models and views.
        loader: yields dicts as for training; ``label1/label2`` may be absent.
        num_classes: semantic classes C.
        on_batch: receives each batch's names and maps, to write them.

    Returns:
        The scores, or None when the loader has no labels.
    """
    confusion = ConfusionMatrix(num_classes + 1, predictor.device)
    labelled = False
    for batch in loader:
        pred1, pred2 = decode(predictor(batch["image1"], batch["image2"]))
        if "label1" in batch:
            labelled = True
            confusion.update(pred1, batch["label1"])
            confusion.update(pred2, batch["label2"])
        if on_batch is not None:
            on_batch(batch["name"], pred1.cpu(), pred2.cpu())
    return compute_metrics(confusion.counts) if labelled else None
