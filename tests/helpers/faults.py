"""Faults to put into runs at a given moment, and what must be left after them."""

import contextlib
import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import _get_current_dispatch_mode

from datasets.classes import SECOND_CLASSES
from datasets.labels import read_label
from models.change_detector import ChangeDetector
from tests.helpers.runs import STEPS
from utils import cli
from utils.tensor_files import read_checkpoint


class CrashError(Exception):
    """Stands for a process that ends without a chance to save."""


def crash() -> None:
    raise CrashError


def before_step(patch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> None:
    """Do something in the n-th step from now on, before its weights change."""
    step, count = torch.optim.Adam.step, 0

    def patched(self, *args, **kwargs):
        nonlocal count
        count += 1
        if count == number:
            act()
        return step(self, *args, **kwargs)

    patch.setattr(torch.optim.Adam, "step", patched)


def in_second_epoch(patch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    before_step(patch, STEPS + 1, act)


def only_estimated() -> bool:
    """Tell whether a model runs for the estimate of its memory alone."""
    return _get_current_dispatch_mode() is not None


@contextlib.contextmanager
def before_prediction(number: int, act: Callable[[], object]) -> Iterator[list[int]]:
    """Do something before the n-th batch that is predicted; yields the numbers of all of them."""
    predicted = []

    def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if not isinstance(module, ChangeDetector) or module.training or only_estimated():
            return
        if not inputs[0].is_floating_point():  # else folding looks at the model's flow
            predicted.append(len(predicted) + 1)
            if len(predicted) == number:
                act()

    handle = register_module_forward_pre_hook(hook)
    try:
        yield predicted
    finally:
        handle.remove()


def run_script(script: ModuleType, argv: list[str], patch, capsys) -> tuple[int, str]:
    """The exit status of a script run in this process, and what it says on stderr."""
    patch.setattr(sys, "argv", [f"{script.__name__}.py", *argv])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: script.main(argv))
    return stop.value.code, capsys.readouterr().err


def assert_one_line(status: int, err: str, *parts: str) -> None:
    assert status == 2
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    for part in parts:
        assert part in err


def assert_only_whole_files(outdir: Path) -> None:
    for path in outdir.rglob("*"):
        if path.suffix == ".pth":
            assert read_checkpoint(path)["model"]
        elif path.suffix == ".png":
            read_label(path, SECOND_CLASSES)
        elif path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            assert all(None not in row and None not in row.values() for row in rows)
            assert [int(row["epoch"]) for row in rows] == list(range(1, len(rows) + 1))
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        else:
            assert path.is_dir() or path.name.startswith("."), path
