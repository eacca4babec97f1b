"""Faults to put into runs, and what must be left after them."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from datasets.classes import SECOND_CLASSES
from datasets.labels import read_label
from engine.training import Trainer
from utils import cli
from utils.tensor_files import read_checkpoint


def interrupt() -> None:
    raise KeyboardInterrupt


def in_second_epoch(patch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    train_epoch = Trainer.train_epoch

    def patched(self, *args):
        if self.epoch == 2:
            act()
        return train_epoch(self, *args)

    patch.setattr(Trainer, "train_epoch", patched)


def run_script(script, argv: list[str], monkeypatch, capsys) -> tuple[int, str]:
    """The exit status of a script run in this process, and what it says on stderr."""
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *argv])
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
        elif path.suffix == ".jsonl":  # written line by line; the last one may be cut off
            for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
                json.loads(line)
        else:
            assert path.is_dir() or path.suffix == ".tmp", path
