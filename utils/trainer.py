"""Everything that changes while a model trains, and its way to disk and back."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils.distributed import World
from utils.engine import LossReader, train_one_epoch
from utils.errors import NumericalError
from utils.images import IMAGENET, Normalization
from utils.label_counts import AnyMetrics, metrics_from_dict
from utils.precision import Precision

POLY_POWER = 0.9
OVERFLOWS_TO_REPORT = 4  # halvings of the loss scale within one epoch


class Trainer:
    """A model in training: Adam, poly schedule, position in the run, best scores, log rows.

    The recipe is the published one: Adam, heads at ten times the encoder's rate, and
    lr · (1 − step / steps)^0.9 after every step.

    Args:
        model: has ``parameter_groups(lr)``; already on the world's device.
        criterion: as `utils.losses.ChangeCriterion`, on that device.
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
