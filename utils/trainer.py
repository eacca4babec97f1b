"""Everything that changes while a model trains, and its way to disk and back."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from utils.engine import train_one_epoch
from utils.metrics import Metrics
from utils.precision import Precision

POLY_POWER = 0.9


class Trainer:
    """A model in training: Adam, poly schedule, epoch counter, best scores, log rows.

    The recipe is the published one: Adam, heads at ten times the encoder's rate, and
    lr · (1 − step / steps)^0.9 after every step.

    Args:
        model: has ``parameter_groups(lr)``; already on ``device``.
        criterion: as `utils.losses.ChangeCriterion`, on ``device``.
        lr: learning rate of the encoder.
        weight_decay: L2 penalty.
        steps: optimiser steps of the whole run.
        device: where batches go.
        precision: number format of the forward pass.
        accumulate: batches whose mean gradient makes one step.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        lr: float,
        weight_decay: float,
        steps: int,
        device: torch.device,
        precision: Precision,
        accumulate: int = 1,
    ) -> None:
        self.model = model
        self.criterion = criterion
        self.device = device
        self.precision = precision
        self.accumulate = accumulate
        self.optimizer = torch.optim.Adam(
            model.parameter_groups(lr), weight_decay=weight_decay, fused=device.type != "mps"
        )
        self.scheduler = torch.optim.lr_scheduler.PolynomialLR(
            self.optimizer, total_iters=steps, power=POLY_POWER
        )
        self.epoch = 0
        self.best: Metrics | None = None
        self.rows: list[dict[str, Any]] = []

    @property
    def lr(self) -> float:
        """Current learning rate of the encoder."""
        return self.optimizer.param_groups[0]["lr"]

    def train_epoch(self, loader: Iterable[dict]) -> dict[str, float]:
        """Train over one loader and return the mean of each loss term."""
        losses = train_one_epoch(
            self.model,
            loader,
            self.criterion,
            self.optimizer,
            self.scheduler,
            self.device,
            self.precision,
            self.accumulate,
        )
        self.epoch += 1
        return losses

    def is_best(self, metrics: Metrics) -> bool:
        """Remember these scores if their Score is the highest so far, and tell whether it is."""
        if self.best is not None and metrics.score <= self.best.score:
            return False
        self.best = metrics
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return all but the weights, as tensors and plain values."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "epoch": self.epoch,
            "best": self.best.to_dict() if self.best else None,
            "rows": self.rows,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; the weights are loaded by the caller."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.precision.scaler.load_state_dict(state["scaler"])
        self.epoch = state["epoch"]
        self.best = Metrics(**state["best"]) if state["best"] else None
        self.rows = state["rows"]
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] and self.device.type == "cuda":
            torch.cuda.set_rng_state_all(state["cuda_rng"])
