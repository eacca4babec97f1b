"""Work in several processes, and what becomes of a run one of whose processes is killed."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.faults import assert_one_line, run_script
from tools import check_data, make_sample_data, report, score
from tools.checking import inspection
from tools.scenes import sample
from tools.scoring.folders import MaskCounter
from utils.errors import DataError, UserError
from utils.parallel import ParallelMap


def square(number: int) -> int:
    if number == 99:
        raise DataError("a.png: 99")
    return number**2


def end_by_force(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_results_come_in_order_and_errors_as_they_are():
    for workers in (1, 4):
        assert list(ParallelMap(square, range(50), workers)) == [n**2 for n in range(50)]
        with pytest.raises(DataError, match=r"^a\.png: 99$"):
            list(ParallelMap(square, range(100), workers))


def test_a_killed_process_is_a_users_error():
    with pytest.raises(UserError, match=r"one of 2 worker processes was killed.*--workers"):
        list(ParallelMap(end_by_force, range(16), 2))


@pytest.fixture
def many_masks(tmp_path) -> Path:
    """16 pairs of label1 and label2."""
    for name in ("label1", "label2"):
        (tmp_path / "masks" / name).mkdir(parents=True)
        for i in range(16):
            Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "masks" / name / f"{i}.png")
    return tmp_path / "masks"


def test_no_tool_shows_a_traceback(sample_root, many_masks, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(inspection, "inspect_pair", end_by_force)
    monkeypatch.setattr(sample, "write_scene", end_by_force)
    monkeypatch.setattr(MaskCounter, "__call__", end_by_force)
    outdir = ["--outdir", str(tmp_path / "check")]
    for tool, argv in (
        (check_data, [str(sample_root), *outdir]),
        (make_sample_data, [str(tmp_path / "sample"), "--train-pairs", "16"]),
        (score, ["--prediction", str(many_masks), "--label", str(many_masks)]),
    ):
        ended = run_script(tool, [*argv, "--workers", "2"], monkeypatch, capsys)
        assert_one_line(*ended, "was killed", "--workers")
    assert not (tmp_path / "check").exists()


def test_the_report_of_masks_reads_in_processes_too(
    sample_root, many_masks, tmp_path, monkeypatch, capsys
):
    root, outdir = tmp_path / "root", tmp_path / "out"
    for date in ("1", "2"):
        shutil.copytree(many_masks / f"label{date}", root / "val" / f"label{date}")
        shutil.copytree(many_masks / f"label{date}", root / "val" / f"im{date}")
        shutil.copytree(many_masks / f"label{date}", outdir / "masks/test" / f"im{date}")
    (outdir / "logs/a").mkdir(parents=True)
    (outdir / "logs/a/metrics.csv").write_text("epoch,score\n1,0.5\n")
    argv = [str(outdir), "--data-root", str(root), "--workers"]
    pages = [report.main([*argv, workers]).read_text() for workers in ("1", "2")]
    scores = [page[page.index('<section id="masks">') :] for page in pages]
    assert scores[0] == scores[1]
    monkeypatch.setattr(MaskCounter, "__call__", end_by_force)
    assert_one_line(*run_script(report, [*argv, "2"], monkeypatch, capsys), "was killed")
