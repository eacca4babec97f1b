"""One epoch of training, one evaluation. Models, loaders and devices come in as arguments."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch
from torch import nn

from utils.distributed import World
from utils.errors import NumericalError
from utils.images import IMAGENET, Normalization
from utils.inference import Predictor, decode
from utils.label_counts import AnyMetrics, LabelCounts, score_labels
from utils.precision import Precision

# Steps between two looks at the loss; each look makes the host wait for the device.
READ_EVERY = 20

TARGETS = ("label1", "label2", "change_mask")
# Called with names and predicted maps, those of both dates or the one of change: (N, H, W) uint8 on
# the CPU.
OnBatch = Callable[..., None]


def train_one_epoch(
    model: nn.Module,
    loader: Iterable[dict],
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    world: World,
    precision: Precision,
    losses: "LossReader",
    accumulate: int = 1,
    after_step: Callable[[], None] = lambda: None,
    normalization: Normalization = IMAGENET,
) -> None:
    """Train over one loader.

    Nothing in a step waits for the device: losses are read every `READ_EVERY` batches.

    Args:
        model: maps two images to logits, on the world's device; may be distributed.
        loader: yields dicts with uint8 or uint16 ``image1/image2`` (N, bands, H, W), integer
            ``change_mask`` and, for each date with labels, ``label1/label2`` (N, H, W), and
            ``name``.
        criterion: as `utils.losses.ChangeCriterion`.
        optimizer: steps once per ``accumulate`` batches; batches left over at the end are dropped.
        scheduler: steps with the optimiser.
        world: this process's device and place among the others.
        precision: number format of the forward pass, and the loss scaler.
        losses: collects the loss terms.
        accumulate: batches whose mean gradient makes one step.
        after_step: called after each optimiser step, for checkpoints and signals.
        normalization: what the images go through on the device.

    Raises:
        NumericalError: a loss is NaN or infinite; names the step and the files of the batch.
    """
    model.train()
    optimizer.zero_grad(set_to_none=True)
    for number, batch in enumerate(loader, start=1):
        last_part = number % accumulate == 0
        image1 = normalization(batch["image1"].to(world.device, non_blocking=True))
        image2 = normalization(batch["image2"].to(world.device, non_blocking=True))
        targets = [
            batch[key].to(world.device, non_blocking=True) if key in batch else None
            for key in TARGETS
        ]
        with nullcontext() if last_part or world.size == 1 else model.no_sync():
            with precision.autocast():
                output = model(image1, image2)
            terms = criterion(output, *targets)
            precision.scaler.scale(terms["total"] / accumulate).backward()
        losses.add(terms, batch["name"])
        if last_part:
            precision.scaler.step(optimizer)
            precision.scaler.update()
            optimizer.zero_grad(set_to_none=True)
            scheduler.step()
            after_step()


class LossReader:
    """Collects loss terms on the device and reads them in bunches.

    Args:
        world: over whose processes the terms are averaged.
        read_every: batches between two reads; a bad value is noticed that late.
    """

    def __init__(self, world: World, read_every: int = READ_EVERY) -> None:
        self._world = world
        self._read_every = read_every
        self._waiting: list[tuple[torch.Tensor, list[str]]] = []
        self._sums: dict[str, float] = {}
        self.batches = 0

    def add(self, terms: dict[str, torch.Tensor], names: list[str]) -> None:
        """Remember the terms of one batch; ``names`` are its files.

        Raises:
            NumericalError: a term of this or an earlier batch is not finite.
        """
        self._keys = list(terms)
        self._waiting.append((torch.stack([value.detach() for value in terms.values()]), names))
        if len(self._waiting) >= self._read_every:
            self._read()

    def means(self) -> dict[str, float]:
        """Return the mean of each term over all batches; nothing without batches.

        Raises:
            NumericalError: as `add`.
        """
        self._read()
        return {name: value / self.batches for name, value in self._sums.items()}

    def state_dict(self) -> dict:
        """Return sums and counts, for a checkpoint in the middle of an epoch."""
        self._read()
        return {"sums": dict(self._sums), "batches": self.batches}

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state_dict`."""
        self._sums, self.batches = dict(state["sums"]), state["batches"]

    def _read(self) -> None:
        if not self._waiting:
            return
        # Not on the device: MPS has no float64.
        values = torch.stack([terms for terms, _ in self._waiting]).cpu().double()
        for row, (_, names) in zip(values, self._waiting, strict=True):
            self.batches += 1
            if not row.isfinite().all():
                found = ", ".join(f"{k} {v:g}" for k, v in zip(self._keys, row, strict=True))
                raise NumericalError(
                    f"loss is no finite number in batch {self.batches} of this epoch ({found}), "
                    f"files {', '.join(names)}; lower --lr, try --amp off, or check these files; "
                    "the last checkpoint is kept"
                )
        for row in self._world.mean(values).tolist():
            for key, value in zip(self._keys, row, strict=True):
                self._sums[key] = self._sums.get(key, 0.0) + value
        self._waiting.clear()


def evaluate(
    predictor: Predictor,
    loader: Iterable[dict],
    num_classes: int,
    world: World,
    on_batch: OnBatch | None = None,
    counts: LabelCounts | None = None,
) -> AnyMetrics | None:
    """Predict every pair of a loader and score it where labels exist.

    Each process brings its own share of the pairs; the counts are added up over all of them.

    Args:
        predictor: models and views.
        loader: yields dicts as for training; any labels may be absent.
        num_classes: classes C, *unchanged* not counted; 1 stands for change masks.
        world: the processes that share the work.
        on_batch: receives each batch's names and maps, to write them.
        counts: those of pairs that need no prediction any more.

    Returns:
        The scores, or None when the pairs have no labels.
    """
    counts = counts or LabelCounts(num_classes, predictor.device)
    for batch in loader:
        maps = decode(predictor(batch["image1"], batch["image2"]))
        counts.update(maps, batch)
        if on_batch is not None:
            on_batch(batch["name"], *(pred.cpu() for pred in maps))
    return score_labels(world.sum(counts.stack()))
