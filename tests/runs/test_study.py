"""tools/study.py as a whole: killed, resumed, not run again, failing, and on the report's page."""

import csv
import json
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.processes import LIMIT_S, ended, eventually, processes_with, start_script
from tools import study
from tools.scoring.statistics import pooled_scores
from utils.errors import EXIT_PREEMPTED, UserError

STUDY = """
question = "Do six views beat one?"
seeds = "0"
confirm = ["views"]
validation = "--split random --val-fraction 0.25"
train = "--model fcn --backbone mobilenetv3_small_050 --batch-size 3 --epochs 1 --amp off"
test = "--amp off"
[data]
scenes = "{data}"
[arms]
plain = [{{ train = "" }}]
views = [
  {{ name = "same", train = "" }},
  {{ test = "--tta --checkpoints {{same}}" }},
]
broken = [{{ train = "--pretrain-from none.pth" }}]
[compare]
views = "plain"
"""


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def records(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.glob("stages/*/stage.json")}


@pytest.fixture
def argv(sample_root, tmp_path) -> list[str]:
    file = tmp_path / "small.toml"
    file.write_text(STUDY.format(data=sample_root), encoding="utf-8")
    return [str(file), "--out", str(tmp_path / "out"), "--jobs", "2"]


def test_a_killed_study_goes_on_and_a_finished_one_runs_nothing(argv, tmp_path, capsys):
    argv, folder = [*argv, "--arms", "plain"], tmp_path / "out" / "small"
    with ended(start_script("tools/study.py", argv, tmp_path / "killed")) as child:
        eventually(lambda: list(folder.glob("stages/*/log.txt")), LIMIT_S)
        child.send(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    eventually(lambda: not processes_with(str(folder)), LIMIT_S)  # stages end with the study
    assert study.main(argv) == folder
    rows = rows_of(folder)
    assert [(row["subset"], row["epoch"]) for row in rows] == [
        (subset, epoch) for subset in ("screen", "confirm") for epoch in ("best", "last")
    ]
    assert all(row["pairs"] == "2" and float(row["train_s"]) > 0 for row in rows)
    # Counts of both halves together are what test.py has scored.
    counts = [np.load(folder / "counts" / s / "scenes.plain.0.npz") for s in ("screen", "confirm")]
    masks = folder / "stages" / rows[1]["stage"] / "masks" / "test"
    scored = json.loads((masks / "metrics.json").read_text(encoding="utf-8"))
    both = np.concatenate([each["last"] for each in counts], axis=1)
    assert pooled_scores(both)["score"] == pytest.approx(scored["score"], abs=1e-12)
    assert scored["epoch_choice"] == "last epoch, not chosen"
    done = records(folder)
    capsys.readouterr()
    assert study.main(argv) == folder
    assert "1 cell, 0 stages to do" in capsys.readouterr().out
    assert records(folder) == done and len(done) == 3


@pytest.mark.slow
def test_an_ended_study_goes_on_and_a_failed_stage_leaves_the_others(argv, tmp_path, capsys):
    folder = tmp_path / "out" / "small"
    with ended(start_script("tools/study.py", argv, tmp_path / "ended")) as child:
        eventually(lambda: records(folder), LIMIT_S)
        child.send(signal.SIGTERM)
        assert child.wait() == EXIT_PREEMPTED
        assert not processes_with(str(folder))
        assert "the same command goes on" in child.error_lines[-1]
    before = records(folder)
    with pytest.raises(UserError, match=r"3 stages failed .*none\.pth.*log\.txt\); the same"):
        study.main(argv)
    assert "failed: scenes, broken, seed 0: train 1: " in capsys.readouterr().out
    assert records(folder).items() >= before.items() and len(records(folder)) == 5
    assert {row["arm"] for row in rows_of(folder)} == {"plain", "views"}
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    (found,) = summary["comparisons"]
    assert (found["subset"], found["verdict"]) == ("confirm", "not shown")
