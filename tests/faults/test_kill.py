"""Scripts killed at random moments leave whole files, and go on."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import label
from tests.helpers.faults import assert_only_whole_files
from tests.helpers.processes import LIMIT_S, ended, eventually, start_script
from tests.helpers.runs import best_files, latest_file, options, train_options
from utils.tensor_files import read_checkpoint


def kill_at_random(
    script: str,
    argv: list[str],
    outdir: Path,
    folder: Path,
    moments: int,
    longest_s: float,
    prepare: Callable | None = None,
) -> int:
    """Kill a script at random moments; return how often it was still running."""
    draw, killed = random.Random(0), 0
    for moment in range(moments):
        with ended(start_script(script, argv, folder / f"{script}{moment}", prepare)) as child:
            eventually(lambda child=child: child.out, LIMIT_S, 0.01)  # it has begun its work
            time.sleep(draw.uniform(0, longest_s))
            if child.poll() is None:
                child.send(signal.SIGKILL)
            status = child.wait()
            killed += status == -signal.SIGKILL
            assert status in (0, -signal.SIGKILL), child.err
        assert_only_whole_files(outdir)
    return killed


def train_under_fire(moments: int, data: Path, tmp_path: Path) -> None:
    outdir = tmp_path / "out"
    argv = train_options(
        data, outdir, "--epochs", 1000, "--checkpoint-every", 1, "--workers", 1, "--resume"
    )
    assert kill_at_random("train.py", argv, outdir, tmp_path, moments, 2) == moments

    def position() -> tuple[int, int]:
        if not latest_file(outdir).exists():
            return 0, 0
        state = read_checkpoint(latest_file(outdir))["training"]
        return state["epoch"], state["step"]

    before = position()
    with ended(start_script("train.py", argv, tmp_path / "last")) as child:
        eventually(lambda: position() > before, LIMIT_S)
        assert ("resuming" in child.out) == (before > (0, 0))
        child.send(signal.SIGKILL)
    assert_only_whole_files(outdir)


def slow_masks() -> None:
    """Leave time to kill a process between two masks."""
    from utils import files

    replace = files.os.replace

    def slow(*paths: object) -> None:
        time.sleep(0.2)
        replace(*paths)

    files.os.replace = slow


def label_under_fire(moments: int, data: Path, tmp_path: Path, checkpoint: Path) -> None:
    whole, outdir = tmp_path / "whole", tmp_path / "out"
    argv = options(data, outdir, "--checkpoints", checkpoint, "--test-batch-size", 1)
    label.main(options(data, whole, "--checkpoints", checkpoint, "--test-batch-size", 1))
    assert kill_at_random("label.py", argv, outdir, tmp_path, moments, 1, slow_masks) > 0
    label.main(argv)
    masks = [
        {path.relative_to(d): path.read_bytes() for path in d.rglob("*.png")}
        for d in (outdir, whole)
    ]
    assert len(masks[0]) == 24
    assert masks[0] == masks[1]


def test_training_killed_at_3_moments(sample_root, tmp_path):
    train_under_fire(3, sample_root, tmp_path)


def test_labelling_killed_at_3_moments(whole_outdir, sample_root, tmp_path):
    label_under_fire(3, sample_root, tmp_path, best_files(whole_outdir)[0])


@pytest.mark.slow
def test_training_killed_at_30_moments(sample_root, tmp_path):
    train_under_fire(30, sample_root, tmp_path)


@pytest.mark.slow
def test_labelling_killed_at_30_moments(whole_outdir, sample_root, tmp_path):
    label_under_fire(30, sample_root, tmp_path, best_files(whole_outdir)[0])
