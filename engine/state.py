"""Everything that changes while a model trains, and its way to a checkpoint and back."""

import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from datasets.images import image_size
from datasets.statistics import find_imagery
from datasets.task import Task
from engine.config import DECODE, PUBLISHED, TrainConfig
from engine.data import TrainingData
from engine.ensemble import choose_decoding
from engine.metrics import AnyMetrics, metrics_from_dict
from engine.predictor import CPU_PIXELS_PER_PASS, IDENTITY, VIEWS, Predictor
from engine.run import Run
from engine.runtime import build_folded, choose_precision, conditions, describe
from models.change_detector import ChangeDetector, ModelConfig, build_model
from models.checkpoint import Checkpoint
from models.decoding import INDEPENDENT, Decoding
from models.fold import refold
from models.footprint import Footprint, measure_footprint
from models.losses import ChangeCriterion, balanced_change_weight, default_class_weights
from models.recompute import checkpoint_activations
from models.weights import start_model
from utils import dist
from utils.cli import WHY_THREADS
from utils.dist import gather, print0
from utils.errors import CheckpointError, NumericalError, OptionError, first_line
from utils.machine import available_memory, processes_here, usable_cores
from utils.text import plural

POLY_POWER = 0.9  # lr · (1 − step / steps)^0.9 after every step, as published
OVERFLOWS_TO_REPORT = 4  # halvings of the loss scale within one epoch
READ_EVERY = 20  # batches between two looks at the loss; each makes the host wait for the device


class TrainState:
    """Model, optimiser, schedule, and how far they are, from the options to a checkpoint and back.

    The recipe is the published one: Adam, heads at ten times the encoder's rate, poly schedule over
    ``steps`` of the optimiser.
    """

    def __init__(
        self, config: TrainConfig, model: ChangeDetector, criterion: nn.Module, steps: int
    ) -> None:
        self.model, self.criterion, self.accumulate = model, criterion, config.accumulate
        self.device = next(model.parameters()).device
        self.precision = choose_precision(config.amp, self.device)
        self.optimizer = torch.optim.Adam(
            model.parameter_groups(config.lr),
            weight_decay=config.weight_decay,
            fused=self.device.type != "mps",
        )
        self.scheduler = torch.optim.lr_scheduler.PolynomialLR(
            self.optimizer, total_iters=steps, power=POLY_POWER
        )
        gpu = [self.device] if self.device.type == "cuda" else None
        self.parallel = (
            DistributedDataParallel(model, device_ids=gpu, gradient_as_bucket_view=True)
            if dist.size() > 1
            else model
        )
        self.epoch, self.validated = 0, True  # that runs or ran last; whether it is at its end
        self.step, self.part = 0, 0  # optimiser steps done in it, and batches of the next step
        self.best: AnyMetrics | None = None
        self.rows: list[dict[str, Any]] = []  # of metrics.csv, one per epoch
        self.losses = LossReader()
        self.scored_with: dict[str, str | int] = {}
        self.footprint: Footprint | None = None
        self.decoding = INDEPENDENT
        self._predictor: Predictor | None = None

    @classmethod
    def build(
        cls, config: TrainConfig, data: TrainingData, run: Run, device: torch.device
    ) -> "TrainState":
        """Return a new state, or the one where the run to resume was left."""
        saved, run.saved = run.saved, None  # forgotten: it is as large as the model
        weights = _class_weights(config, data.task)
        model_config = _model_config(config, data, saved)
        run.identity["config"] = model_config.to_dict()
        own = saved or Checkpoint(Path(), model_config, {}, run.identity)
        decoding = _decoding(config, data, own)
        run.identity["decoding"] = asdict(decoding)
        torch.manual_seed(config.seed)
        start = (config.pretrain_from, config.pretrained, config.pretrained_dir)
        model = build_model(model_config) if saved else start_model(model_config, *start)
        torch.manual_seed(config.seed + dist.rank())  # dropout differs between processes
        if dist.size() > 1 and device.type == "cuda":
            model = convert_sync_batchnorm(model)
        model.to(device=device, memory_format=torch.channels_last)
        if config.checkpoint_activations:
            checkpoint_activations(model)
        more = (weights, _change_weight(config, data, saved))
        criterion = ChangeCriterion(model_config.num_classes, *more).to(device)
        autocast = choose_precision(config.amp, device).autocast
        footprint = measure_footprint(model, criterion, autocast)
        if config.compile:
            model.compile(dynamic=False)
        steps = config.epochs * (len(data.train_loader) // config.accumulate)
        state = cls(config, model, criterion, steps)
        state.footprint, state.decoding = footprint, decoding
        if saved:
            saved.fill(model)
            try:
                state.load_dict(saved.info["training"])
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                raise CheckpointError(
                    f"{saved.path}: its training state does not fit this run "
                    f"({first_line(error)}); start anew or resume from another file"
                ) from error
            state.scored_with = saved.info.get("scored_with", {})
            if device.type == "cpu":
                _keep_threads(saved.info["training"].get("threads"), config.threads)
            place = f"in epoch {state.epoch} of {config.epochs}, after step {state.step}"
            finished = state.validated and state.epoch >= config.epochs
            print0(f"resuming {run.name} {'(finished already)' if finished else place}")
            if run.best is None:
                state.best = None
        return state

    def announce(self, config: TrainConfig, data: TrainingData) -> None:
        """Say what is trained with what and how long, and warn where memory will not do."""
        loader, accumulate = data.train_loader, config.accumulate
        size = f"{config.model} {config.backbone}{' lightweight' * config.lightweight}"
        work = describe([self.model], self.precision, loader.num_workers)
        pairs = loader.batch_size * accumulate * dist.size()
        steps = f"{config.epochs} × {len(loader) // accumulate} steps of {pairs} pairs"
        print0(f"{size}, {work}; {steps}")
        self._check_memory(config, data)

    def _check_memory(self, config: TrainConfig, data: TrainingData) -> None:
        """Say how much memory the run will take, and warn where that is more than is free."""
        loader, (fixed, per_pixel, per_predicted_pixel) = data.train_loader, self.footprint
        side, pairs = config.crop_size, loader.batch_size
        area = side**2 if side else math.prod(image_size(loader.dataset.pairs[0].image1))
        training, validation = fixed + per_pixel * pairs * area, 0.0
        if self.device.type == "cuda":  # where passes of validation are as large as memory allows
            free, _ = torch.cuda.mem_get_info(self.device)
        else:
            known = available_memory()
            free = (math.inf if known is None else known) / processes_here()
            largest = max(map(math.prod, data.val_loader.batch_sampler.sizes))
            at_once = max(largest, min(CPU_PIXELS_PER_PASS, largest * config.val_batch_size))
            validation = fixed + per_predicted_pixel * at_once
        need = f"about {max(training, validation) / 1e9:.1f} GB of memory"
        need += " each" if dist.size() > 1 else ""
        need += f", {free / 1e9:.1f} GB free" if free < math.inf else ""
        if max(training, validation) <= free:
            print0(need)
            return
        remedies = "smaller validation images"
        if training > free:
            fitting = max(0, int((free - fixed) / (per_pixel * area)))
            remedies = f"{fitting} of {pairs} pairs at once: --accumulate, a smaller --batch-size "
            remedies += "or --crop-size, or with --checkpoint-activations"
        print0(f"warning: {need}; it would fit with {remedies}")

    def begin_epoch(self) -> tuple[int, int]:
        """Go to the next epoch, or stay in a begun one; return it and its batches that are done."""
        if self.validated:
            self.epoch, self.step, self.validated = self.epoch + 1, 0, False
            self.losses = LossReader()
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        self.part = 0
        self._scale = self.precision.scaler.get_scale()
        return self.epoch, self.step * self.accumulate

    def end_training(self) -> dict[str, float]:
        """Make the model ready for validation; return each loss term's mean over the epoch.

        A `NumericalError` where a loss or a weight is no finite number.
        """
        means = self.losses.means()
        self._require_finite_weights()
        # Each overflow halves the scale and skips a step; a few are how the scaler finds its level.
        scale = self.precision.scaler.get_scale()
        if scale < self._scale / 2**OVERFLOWS_TO_REPORT:
            print0(
                f"warning: fp16 overflowed repeatedly in epoch {self.epoch} (loss scale "
                f"{self._scale:g} → {scale:g}); lower --lr, or use --amp bf16 or off"
            )
        if dist.size() > 1:  # all validate with the running statistics that process 0 saves
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, src=0)
        return means

    def predictor(self, tta: bool) -> Predictor:
        """Return what predicts with the weights as they are, folded as in label.py and test.py."""
        if self._predictor is None:
            weights = Checkpoint(Path(), self.model.config, self.model.state_dict(), {})
            with torch.random.fork_rng(devices=[]):  # training draws from it as well
                folded, self._names = build_folded(weights, self.device, self.precision)
            views = VIEWS if tta else IDENTITY
            self._predictor = Predictor([folded], views, self.precision.autocast)
            self._predictor.decoding = self.decoding
        else:
            refold(*self._predictor.models, self._names, self.model)
        return self._predictor

    def end_epoch(
        self,
        scores: AnyMetrics | None,
        losses: dict[str, float],
        class_names: Sequence[str],
        seconds: dict[str, float],
    ) -> bool:
        """Add an epoch's row of metrics.csv; tell whether its scores, if any, rank best so far."""
        row = {"epoch": self.epoch} | {f"loss_{name}": value for name, value in losses.items()}
        row |= scores.to_row(class_names) if scores else {}
        self.rows.append(row | {"lr": self.optimizer.param_groups[0]["lr"]} | seconds)
        self.validated = True
        if not scores or (self.best is not None and scores.rank <= self.best.rank):
            return False
        self.best = scores
        self.scored_with = conditions(self._predictor, self.precision)
        return True

    def weights_and_scores(self) -> dict[str, Any]:
        """Return what every checkpoint holds of the state: weights, epoch and best scores."""
        return {
            "model": self.model.state_dict(),
            "epoch": self.epoch,
            "metrics": self.best.to_dict() if self.best else {},
            "scored_with": self.scored_with,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return all that a resume needs, as tensors and plain values; every process must call it.

        A `NumericalError` where a loss or a weight is no finite number: such a state is not kept.
        """
        losses = self.losses.to_dict()
        self._require_finite_weights()
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        training = {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "validated": self.validated,
            "losses": losses,
            "best": self.best.to_dict() if self.best else None,
            "rows": self.rows,
            "rng": gather(rng),
            "threads": torch.get_num_threads(),
            "change_weight": self.criterion.change_weight,
        }
        return self.weights_and_scores() | {"training": training}

    def load_dict(self, training: dict[str, Any]) -> None:
        """Continue where `to_dict` was taken; the weights are loaded by the caller.

        With more processes than before, the new ones keep the random state they have.
        """
        self.optimizer.load_state_dict(training["optimizer"])
        self.scheduler.load_state_dict(training["scheduler"])
        if training["scaler"]:  # empty where the run's first part needed no loss scaling
            self.precision.scaler.load_state_dict(training["scaler"])
        self.epoch, self.step = training["epoch"], training["step"]
        self.validated = training["validated"]
        self.losses.load_dict(training["losses"])
        self.best = metrics_from_dict(training["best"]) if training["best"] else None
        self.rows = list(training["rows"])
        if dist.rank() < len(training["rng"]):
            rng = training["rng"][dist.rank()]
            torch.set_rng_state(rng["cpu"])
            if "cuda" in rng and self.device.type == "cuda":
                torch.cuda.set_rng_state(rng["cuda"], self.device)

    def _require_finite_weights(self) -> None:
        # A finite loss may have an infinite gradient; only the next loss would tell.
        weights = self.model.state_dict()
        names = [name for name, value in weights.items() if value.is_floating_point()]
        finite = torch.stack([weights[name].isfinite().all() for name in names]).tolist()
        if not all(finite):
            raise NumericalError(
                f"{names[finite.index(False)]} is no finite number after step {self.step} of epoch "
                f"{self.epoch}; lower --lr, or try --amp off; the last checkpoint is kept"
            )


class LossReader:
    """Collects loss terms on the device and reads them in bunches, since a look makes it wait."""

    def __init__(self) -> None:
        self._waiting: list[tuple[dict[str, torch.Tensor], list[str]]] = []
        self._sums: dict[str, float] = {}
        self._batches = 0

    def add(self, terms: dict[str, torch.Tensor], names: list[str]) -> None:
        """Remember the terms of one batch; ``names`` are its files.

        A `NumericalError` where a term of this or an earlier batch is not finite.
        """
        self._waiting.append(({key: value.detach() for key, value in terms.items()}, names))
        if len(self._waiting) >= READ_EVERY:
            self._read()

    def means(self) -> dict[str, float]:
        """Return the mean of each term over all batches and processes; errors as `add`."""
        self._read()
        return {name: value / self._batches for name, value in self._sums.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return sums and counts, for a checkpoint in the middle of an epoch."""
        self._read()
        return {"sums": dict(self._sums), "batches": self._batches}

    def load_dict(self, state: dict[str, Any]) -> None:
        """Go on from `to_dict`."""
        self._sums, self._batches = dict(state["sums"]), state["batches"]

    def _read(self) -> None:
        if not self._waiting:
            return
        keys = list(self._waiting[0][0])
        rows = torch.stack([torch.stack(list(terms.values())) for terms, _ in self._waiting])
        values = rows.cpu().double()  # not on the device: MPS has no float64
        for row, (_, names) in zip(values, self._waiting, strict=True):
            self._batches += 1
            if not row.isfinite().all():
                found = ", ".join(f"{k} {v:g}" for k, v in zip(keys, row, strict=True))
                raise NumericalError(
                    f"loss is no finite number in batch {self._batches} of this epoch ({found}), "
                    f"files {', '.join(names)}; lower --lr, try --amp off, or check these files; "
                    "the last checkpoint is kept"
                )
        for row in dist.all_mean(values).tolist():
            for key, value in zip(keys, row, strict=True):
                self._sums[key] = self._sums.get(key, 0.0) + value
        self._waiting.clear()


def _keep_threads(threads: int | None, asked: int | None) -> None:
    """Take the threads of the run to resume, or say that last digits will differ."""
    if threads in (None, torch.get_num_threads()):
        return
    told = asked or os.environ.get("OMP_NUM_THREADS") or os.environ.get(WHY_THREADS)
    if told or usable_cores(most=threads) < threads:
        print0(f"note: the run to resume had {plural(threads, 'thread')}; last digits differ")
    else:
        torch.set_num_threads(threads)
        os.environ[WHY_THREADS] = "as the run to resume had"


def _class_weights(config: TrainConfig, task: Task) -> tuple[float, ...] | None:
    names = task.classes.names[1:]
    weights = config.class_weights or default_class_weights(names, config.use_pseudo_label)
    if weights and len(weights) != task.semantic_classes:
        raise OptionError(
            f"--class-weights: {len(weights)} weights for {task.semantic_classes} classes "
            f"({', '.join(names)})"
        )
    return weights


def _decoding(config: TrainConfig, data: TrainingData, checkpoint: Checkpoint) -> Decoding:
    """Return how to validate; ``checkpoint`` is the one to resume, or what a new run's will tell.

    A resumed run keeps to what it did, which was independent before there was a choice.
    """
    info = checkpoint.info
    resumed = "training" in info
    if "decoding" not in info:
        name = PUBLISHED["decode"] if resumed else DECODE
        _, same_class, by_chance = data.changes
        new = Decoding(name, same_class=same_class, by_chance=by_chance)
        checkpoint = checkpoint._replace(info=info | {"decoding": asdict(new)})
    decoding = choose_decoding(config.decode, [checkpoint])
    before = checkpoint.info["decoding"]["name"]
    if resumed and decoding.name != before:
        raise OptionError(
            f"{checkpoint.path}: the run to resume had decode {before}; use the same option, "
            "another --outdir, or no --resume"
        )
    return decoding


def _change_weight(config: TrainConfig, data: TrainingData, saved: Checkpoint | None) -> float:
    """Return the weight of changed pixels; a resumed run keeps the one that it measured."""
    if config.change_weight != "auto":
        return config.change_weight
    if saved and "change_weight" in saved.info["training"]:
        return saved.info["training"]["change_weight"]
    weight = balanced_change_weight(data.changes.share)
    print0(f"about {data.changes.share:.2%} of the pixels changed: --change-weight {weight:.1f}")
    return weight


def _model_config(config: TrainConfig, data: TrainingData, saved: Checkpoint | None) -> ModelConfig:
    """Return what to build; a resumed run keeps its bands and statistics."""
    bands, classes = data.bands, data.task.semantic_classes
    if saved:
        # A class list of two entries was a model of one class before it was one of change alone.
        if saved.config.num_classes != classes:
            raise OptionError(
                f"{saved.path}: its number of semantic classes is {saved.config.num_classes}, that "
                f"of these data {classes}; start anew, with --pretrain-from for its weights"
            )
        if saved.config.imagery.bands != bands:
            raise OptionError(
                f"the run to resume reads {saved.config.imagery.bands}, this one {bands}; use the "
                "same --bands and data, another --outdir, or no --resume"
            )
        if data.statistics:
            print0("--band-statistics is left alone: the run to resume has statistics of its own")
        imagery = saved.config.imagery
    else:
        pairs = list(dict.fromkeys(data.train_loader.dataset.pairs))
        imagery = find_imagery(bands, data.statistics, pairs)
    return ModelConfig(
        config.model, config.backbone, config.lightweight, classes, len(bands.numbers), imagery
    )
