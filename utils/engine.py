"""One epoch of training, one evaluation. Models, loaders and devices come in as arguments."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from utils.errors import NumericalError
from utils.images import normalize
from utils.inference import Predictor, decode
from utils.metrics import ConfusionMatrix, Metrics, compute_metrics
from utils.precision import Precision

# Steps between two looks at the loss; each look makes the host wait for the device.
READ_EVERY = 20

# Called with (names, pred1, pred2), maps (N, H, W) uint8 on the CPU.
OnBatch = Callable[[list[str], torch.Tensor, torch.Tensor], None]


def train_one_epoch(
    model: nn.Module,
    loader: Iterable[dict],
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    device: torch.device,
    precision: Precision,
    accumulate: int = 1,
) -> dict[str, float]:
    """Train over one loader and return the mean of each loss term.

    Nothing in a step waits for the device: losses are read every `READ_EVERY` steps.

    Args:
        model: maps two images to logits, on ``device``.
        loader: yields dicts with uint8 ``image1/image2`` (N, bands, H, W), integer
            ``label1/label2`` and ``change_mask`` (N, H, W), and ``name``.
        criterion: as `utils.losses.ChangeCriterion`.
        optimizer: steps once per ``accumulate`` batches; batches left over at the end are dropped.
        scheduler: steps with the optimiser.
        device: where the batches go.
        precision: number format of the forward pass, and the loss scaler.
        accumulate: batches whose mean gradient makes one step.

    Raises:
        NumericalError: a loss is NaN or infinite; names the step and the files of the batch.
    """
    model.train()
    losses = LossReader()
    optimizer.zero_grad(set_to_none=True)
    for number, batch in enumerate(loader, start=1):
        image1 = normalize(batch["image1"].to(device, non_blocking=True))
        image2 = normalize(batch["image2"].to(device, non_blocking=True))
        targets = [
            batch[key].to(device, non_blocking=True) for key in ("label1", "label2", "change_mask")
        ]
        with precision.autocast():
            output = model(image1, image2)
        terms = criterion(output, *targets)
        precision.scaler.scale(terms["total"] / accumulate).backward()
        if number % accumulate == 0:
            precision.scaler.step(optimizer)
            precision.scaler.update()
            optimizer.zero_grad(set_to_none=True)
            scheduler.step()
        losses.add(terms, batch["name"])
    return losses.means()


class LossReader:
    """Collects loss terms on the device and reads them in bunches.

    Args:
        read_every: steps between two reads; a bad value is noticed that late.
    """

    def __init__(self, read_every: int = READ_EVERY) -> None:
        self._read_every = read_every
        self._waiting: list[tuple[torch.Tensor, list[str]]] = []
        self._keys: list[str] = []
        self._sums = torch.zeros(0)
        self.steps = 0

    def add(self, terms: dict[str, torch.Tensor], names: list[str]) -> None:
        """Remember the terms of one step; ``names`` are the files of its batch.

        Raises:
            NumericalError: a term of this or an earlier step is not finite.
        """
        self._keys = list(terms)
        self._waiting.append((torch.stack([value.detach() for value in terms.values()]), names))
        if len(self._waiting) >= self._read_every:
            self._read()

    def means(self) -> dict[str, float]:
        """Return the mean of each term over all steps; none without steps.

        Raises:
            NumericalError: as `add`.
        """
        self._read()
        return {k: s / self.steps for k, s in zip(self._keys, self._sums.tolist(), strict=True)}

    def _read(self) -> None:
        if not self._waiting:
            return
        values = torch.stack([terms for terms, _ in self._waiting]).double().cpu()
        for row, (_, names) in zip(values, self._waiting, strict=True):
            self.steps += 1
            if not row.isfinite().all():
                found = ", ".join(f"{k} {v:g}" for k, v in zip(self._keys, row, strict=True))
                raise NumericalError(
                    f"loss is no finite number in step {self.steps} of this epoch ({found}), files "
                    f"{', '.join(names)}; lower --lr, try --amp off, or check these files; the "
                    "last checkpoint is kept"
                )
        self._sums = values.sum(0) + (self._sums if len(self._sums) else 0)
        self._waiting.clear()


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
