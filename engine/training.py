"""One epoch of training, one evaluation. Models, loaders and devices come in as arguments."""

import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from engine.metrics import AnyMetrics, LabelCounts, metrics_from_dict, score_labels, summary
from engine.predictor import Predictor, decode
from engine.run import RunFiles, RunLog, epoch_row
from engine.runtime import Precision
from models.normalization import IMAGENET, Normalization
from utils.dist import World
from utils.errors import (
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    CheckpointError,
    InterruptionError,
    NumericalError,
)
from utils.signals import StopRequest
from utils.text import progress

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
        criterion: as `models.losses.ChangeCriterion`.
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


POLY_POWER = 0.9

OVERFLOWS_TO_REPORT = 4  # halvings of the loss scale within one epoch


class Trainer:
    """A model in training: Adam, poly schedule, position in the run, best scores, log rows.

    The recipe is the published one: Adam, heads at ten times the encoder's rate, and
    lr · (1 − step / steps)^0.9 after every step.

    Args:
        model: has ``parameter_groups(lr)``; already on the world's device.
        criterion: as `models.losses.ChangeCriterion`, on that device.
        lr: learning rate of the encoder.
        weight_decay: L2 penalty.
        steps: optimiser steps of the whole run.
        world: the processes that train together.
        precision: number format of the forward pass.
        accumulate: batches whose mean gradient makes one step.
        normalization: what the images go through on the device.

    Attributes:
        epoch: the epoch that runs or ran last, from 1.
        step: optimiser steps done in it.
        validated: whether its validation is done.
        best: the best scores so far.
        rows: one log row per validated epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        lr: float,
        weight_decay: float,
        steps: int,
        world: World,
        precision: Precision,
        accumulate: int = 1,
        normalization: Normalization = IMAGENET,
    ) -> None:
        self.model = model
        self.criterion = criterion
        self.world = world
        self.precision = precision
        self.accumulate = accumulate
        self.normalization = normalization
        self.optimizer = torch.optim.Adam(
            model.parameter_groups(lr),
            weight_decay=weight_decay,
            fused=world.device.type != "mps",
        )
        self.scheduler = torch.optim.lr_scheduler.PolynomialLR(
            self.optimizer, total_iters=steps, power=POLY_POWER
        )
        self._parallel = _distribute(model, world)
        self.epoch, self.step, self.validated = 0, 0, True
        self.best: AnyMetrics | None = None
        self.rows: list[dict[str, Any]] = []
        self._losses = LossReader(world)

    @property
    def lr(self) -> float:
        """Current learning rate of the encoder."""
        return self.optimizer.param_groups[0]["lr"]

    def begin_epoch(self) -> int:
        """Go to the next epoch, or stay in one that was interrupted; return the batches to skip."""
        if self.validated:
            self.epoch, self.step, self.validated = self.epoch + 1, 0, False
            self._losses = LossReader(self.world)
        return self.step * self.accumulate

    def train_epoch(self, loader: Iterable[dict], after_step: Callable[[], None]) -> dict:
        """Train over the rest of an epoch and return the mean of each loss term over all of it.

        Args:
            loader: the batches that `begin_epoch` left.
            after_step: called after each optimiser step, when `state_dict` may be taken.

        Raises:
            NumericalError: a loss or, in the end, a weight is no finite number.
        """

        def count() -> None:
            self.step += 1
            after_step()

        scale = self.precision.scaler.get_scale()
        train_one_epoch(
            self._parallel,
            loader,
            self.criterion,
            self.optimizer,
            self.scheduler,
            self.world,
            self.precision,
            self._losses,
            self.accumulate,
            count,
            self.normalization,
        )
        means = self._losses.means()
        self._require_finite_weights()
        self._report_overflow(scale)
        return means

    def _report_overflow(self, scale_before: float) -> None:
        # Each overflow halves the scale and skips a step; a few are how the scaler finds its level.
        scale = self.precision.scaler.get_scale()
        if scale < scale_before / 2**OVERFLOWS_TO_REPORT:
            self.world.say(
                f"warning: fp16 overflowed repeatedly in epoch {self.epoch} (loss scale "
                f"{scale_before:g} → {scale:g}); lower --lr, or use --amp bf16 or off"
            )

    def end_epoch(self, row: dict[str, Any], metrics: AnyMetrics) -> bool:
        """Remember an epoch's log row and scores; tell whether they rank best so far."""
        self.validated = True
        self.rows.append(row)
        if self.best is not None and metrics.rank <= self.best.rank:
            return False
        self.best = metrics
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return all but the weights, as tensors and plain values; every process must call it.

        Raises:
            NumericalError: a loss or a weight is no finite number; such a state is none to keep.
        """
        losses = self._losses.state_dict()
        self._require_finite_weights()
        rng = {"cpu": torch.get_rng_state()}
        if self.world.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.world.device)
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "validated": self.validated,
            "losses": losses,
            "best": self.best.to_dict() if self.best else None,
            "rows": self.rows,
            "rng": self.world.gather(rng),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; the weights are loaded by the caller.

        With more processes than before, the new ones keep the random state they have.
        """
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if state["scaler"]:  # empty where the run's first part needed no loss scaling
            self.precision.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.validated = state["validated"]
        self._losses.load_state_dict(state["losses"])
        self.best = metrics_from_dict(state["best"]) if state["best"] else None
        self.rows = list(state["rows"])
        if self.world.rank < len(state["rng"]):
            rng = state["rng"][self.world.rank]
            torch.set_rng_state(rng["cpu"])
            if "cuda" in rng and self.world.device.type == "cuda":
                torch.cuda.set_rng_state(rng["cuda"], self.world.device)

    def _require_finite_weights(self) -> None:
        # A finite loss may have an infinite gradient; only the next loss would tell.
        state = self.model.state_dict()
        names = [name for name, value in state.items() if value.is_floating_point()]
        finite = torch.stack([state[name].isfinite().all() for name in names]).tolist()
        if not all(finite):
            raise NumericalError(
                f"{names[finite.index(False)]} is no finite number after step {self.step} of epoch "
                f"{self.epoch}; lower --lr, or try --amp off; the last checkpoint is kept"
            )


def _distribute(model: nn.Module, world: World) -> nn.Module:
    if world.size == 1:
        return model
    devices = [world.device] if world.device.type == "cuda" else None
    # Batch norm is synchronised, so its buffers are equal everywhere already.
    with warnings.catch_warnings():
        # torch 2.14 renames broadcast_buffers; the older versions know no other name.
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
        return DistributedDataParallel(
            model, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
        )


@dataclass(frozen=True)
class Record:
    """What a run writes down, and where.

    Attributes:
        identity: ``config``, ``classes``, ``split``, ``labelled_dates`` and ``run``, for every
            checkpoint.
        options: those that a resumed run must share.
        files: its checkpoints.
        log: its CSV and TensorBoard files; None where another process writes them.
        checkpoint_every: optimiser steps between two saves within an epoch; None for none.
    """

    identity: dict[str, Any]
    options: dict[str, Any]
    files: RunFiles
    log: RunLog | None
    checkpoint_every: int | None = None

    def save_latest(self, trainer: Trainer) -> None:
        """Save all that a resume needs; every process must call it, the leading one writes."""
        state = {
            **self.identity,
            "model": trainer.model.state_dict(),
            "epoch": trainer.epoch,
            "metrics": trainer.best.to_dict() if trainer.best else {},
            "training": trainer.state_dict(),
            "options": self.options,
        }
        if trainer.world.leads:
            self.files.save_latest(state)

    def forget_lost_best(self, trainer: Trainer) -> None:
        """Let the next epoch be the best where the best file is gone; all processes call it."""
        lost = trainer.world.from_leader(trainer.world.leads and self.files.forget_lost_best())
        if lost and trainer.best is not None:
            trainer.world.say(
                "warning: the best checkpoint so far is gone; the next epoch's takes its place"
            )
            trainer.best = None

    def save_epoch(self, trainer: Trainer, metrics: AnyMetrics, is_best: bool) -> None:
        """Write the log row, the best checkpoint if this epoch's is, and the latest."""
        if trainer.world.leads:
            self.log.write(trainer.rows)
            if is_best:
                state = {
                    **self.identity,
                    "model": trainer.model.state_dict(),
                    "epoch": trainer.epoch,
                    "metrics": metrics.to_dict(),
                }
                self.files.save_best(state, metrics.rank)
        self.save_latest(trainer)


def fit(
    trainer: Trainer,
    predictor: Predictor,
    train_loader: Sized,
    val_loader: Sized,
    start_epoch: Callable[[int, int], None],
    epochs: int,
    class_names: Sequence[str],
    record: Record,
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> AnyMetrics:
    """Train up to the last epoch and return the best scores.

    Args:
        trainer: a fresh or resumed one.
        predictor: of the trainer's model, for validation.
        train_loader: this process's training batches.
        val_loader: this process's validation batches.
        start_epoch: told the epoch and the batches of it that are done, before each iteration.
        epochs: the last one's number.
        class_names: unchanged first.
        record: what is written.
        after_epoch: told the number of each epoch whose results are written.

    Raises:
        CheckpointError: the run is finished already, and its best checkpoint is gone.
        InterruptionError: a signal or Ctrl-C asked the run to end; its state is saved.
        NumericalError: a loss is no finite number.
    """
    world = trainer.world
    record.forget_lost_best(trainer)
    with StopRequest() as stop:

        def after_step() -> None:
            ended = world.any(stop.signal is not None)
            due = record.checkpoint_every and trainer.step % record.checkpoint_every == 0
            if ended or due:
                record.save_latest(trainer)
            if ended:
                raise _interruption(stop, trainer, record)

        while trainer.epoch < epochs or not trainer.validated:
            started = time.perf_counter()
            done = trainer.begin_epoch()
            start_epoch(trainer.epoch, done)
            place = f"{trainer.epoch}/{epochs}"
            losses = trainer.train_epoch(
                progress(train_loader, f"train {place}", world.leads), after_step
            )
            train_s = time.perf_counter() - started
            trainer.model.eval()
            metrics = evaluate(
                predictor,
                _until(stop, progress(val_loader, f"val {place}", world.leads)),
                len(class_names) - 1,
                world,
            )
            if world.any(stop.signal is not None):
                # The scores are of a part of the pairs; a resumed run validates this epoch anew.
                record.save_latest(trainer)
                raise _interruption(stop, trainer, record)
            total_s = time.perf_counter() - started
            row = epoch_row(
                trainer.epoch, losses, metrics, class_names, trainer.lr, train_s, total_s - train_s
            )
            record.forget_lost_best(trainer)
            record.save_epoch(trainer, metrics, is_best=trainer.end_epoch(row, metrics))
            after_epoch(trainer.epoch)
            world.say(
                f"epoch {place}  loss {losses['total']:.4f}  {summary(metrics)}  ({total_s:.1f} s)"
            )
            if world.any(stop.signal is not None) and trainer.epoch < epochs:
                raise _interruption(stop, trainer, record)
    if trainer.best is None:
        raise CheckpointError(
            "the run to resume is finished and its best checkpoint is gone; put it back beside the "
            "latest, or evaluate the latest with --load-from"
        )
    return trainer.best


def _until(stop: StopRequest, batches: Iterable[dict]) -> Iterator[dict]:
    """Yield batches until a signal asks the run to end."""
    for batch in batches:
        if stop.signal is not None:
            return
        yield batch


def _interruption(stop: StopRequest, trainer: Trainer, record: Record) -> InterruptionError:
    # The signal may have reached one process alone; all end with the same status.
    by_user = signal.SIGINT in trainer.world.gather(stop.signal)
    status = EXIT_INTERRUPTED if by_user else EXIT_PREEMPTED
    return InterruptionError(
        f"asked to end in epoch {trainer.epoch}, after step {trainer.step}; the state is in "
        f"{record.files.latest}, --resume goes on",
        status,
    )
