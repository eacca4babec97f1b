"""Ways to interrupt a run, and to go on with it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

import train
from engine.training import Trainer
from tests.helpers.processes import Child, start_script

EPOCHS, STEPS = 2, 3  # 12 pairs in batches of 4
VARIANTS = {
    "plain": (),
    "worker": ("--workers", 1),
    "accumulate": ("--accumulate", 2),
    "leftovers": ("--batch-size", 8, "--accumulate", 2),  # of three passes two make a step
    "cache": ("--cache", "disk"),
}


class CrashError(Exception):
    """Stands for a process that ends without a chance to save."""


@dataclasses.dataclass(frozen=True)
class Whole:
    """An uninterrupted run."""

    outdir: Path
    argv: Callable[..., list[str]]


def after_step(monkeypatch, number: int, act: Callable[[], None]) -> None:
    """Do something after the run's n-th step, behind the program's own work there."""
    train_epoch = Trainer.train_epoch

    def patched(self, loader, after):
        def and_act() -> None:
            after()
            if (self.epoch - 1) * STEPS + self.step == number:
                act()

        return train_epoch(self, loader, and_act)

    monkeypatch.setattr(Trainer, "train_epoch", patched)


def before_step(monkeypatch, number: int, act: Callable[[], None]) -> None:
    """Do something in the run's n-th step, before its weights change."""
    step = torch.optim.Adam.step
    count = 0

    def patched(self, *args, **kwargs):
        nonlocal count
        count += 1
        if count == number:
            act()
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", patched)


def crash() -> None:
    raise CrashError


def resume(run: Whole, outdir: Path, *more: object) -> None:
    torch.manual_seed(4321)  # what a fresh process draws must not matter
    train.main(run.argv(outdir, "--resume", *more))


def start(argv: list[str], folder: Path, prepare: Callable | None = None) -> Child:
    return start_script("train.py", argv, folder, prepare)
