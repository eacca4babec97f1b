"""Work in several processes, and what becomes of a run one of whose processes is killed."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from tests.helpers.faults import assert_one_line, run_script
from tools import check_data, make_sample_data, report, score
from utils.errors import DataError, UserError
from utils.parallel import ParallelMap


def square(number: int) -> int:
    if number == 99:
        raise DataError("a.png: 99")
    return number**2


def end_by_force(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def killed_workers(monkeypatch) -> None:
    """Kill every other process that reads or has written a file."""
    parent = os.getpid()
    for owner, name in ((Image, "open"), (rasterio, "open"), (os, "replace")):
        work = getattr(owner, name)

        def killed(*args: object, work=work, **options: object):
            return work(*args, **options) if os.getpid() == parent else end_by_force()

        monkeypatch.setattr(owner, name, killed)


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


@pytest.fixture
def report_argv(many_masks, tmp_path) -> list[str]:
    """Arguments of report.py: a run that has predicted these masks, and their data set."""
    root, outdir = tmp_path / "root", tmp_path / "out"
    for date in ("1", "2"):
        for folder in (f"label{date}", f"im{date}"):
            shutil.copytree(many_masks / f"label{date}", root / "val" / folder)
        shutil.copytree(many_masks / f"label{date}", outdir / "masks/test" / f"im{date}")
    (outdir / "logs/a").mkdir(parents=True)
    (outdir / "logs/a/metrics.csv").write_text("epoch,score\n1,0.5\n")
    return [str(outdir), "--data-root", str(root)]


def test_no_tool_shows_a_traceback(
    killed_workers, sample_root, many_masks, report_argv, tmp_path, monkeypatch, capsys
):
    for tool, argv in (
        (check_data, [str(sample_root), "--outdir", str(tmp_path / "check")]),
        (make_sample_data, [str(tmp_path / "sample"), "--train-pairs", "16"]),
        (score, ["--prediction", str(many_masks), "--label", str(many_masks)]),
        (report, report_argv),
    ):
        ended = run_script(tool, [*argv, "--workers", "2"], monkeypatch, capsys)
        assert_one_line(*ended, "was killed", "--workers")
    assert not (tmp_path / "check").exists()


def test_the_report_of_masks_does_not_depend_on_the_number_of_processes(report_argv):
    pages = [report.main([*report_argv, "--workers", n]).read_text() for n in ("1", "2")]
    scores = [page[page.index('<section id="masks">') :] for page in pages]
    assert scores[0] == scores[1]
