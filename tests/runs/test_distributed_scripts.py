"""Scripts in several processes: they leave what one leaves, agree, and a failure ends all."""

import dataclasses
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data.distributed import DistributedSampler

import label
import test as predict
from tests.helpers.processes import (
    SECONDS_TO_END,
    Child,
    ended,
    eventually,
    processes_with,
    start_script,
    started_ranks,
    workers_of,
)
from tests.helpers.runs import (
    PREFIX,
    TRAIN_NAMES,
    VAL_NAMES,
    best_files,
    csv_rows,
    latest_file,
    options,
    train_options,
)
from utils.tensor_files import read_checkpoint

slow = pytest.mark.slow

# --- what they leave ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Trained:
    outdir: Path
    out: str


@pytest.fixture(scope="module")
def trained(sample_root, tmp_path_factory) -> Trained:
    """Two epochs in two processes, with validation masks. Read only."""
    outdir = tmp_path_factory.mktemp("nproc2")
    more = ("--epochs", 2, "--nproc", 2, "--save-mask", "--workers", 1)
    argv = train_options(sample_root, outdir, *more)
    with ended(start_script("train.py", argv, outdir / "printed")) as child:
        assert child.wait() == 0, child.err
        assert child.error_lines == []
        return Trained(outdir, child.out)


def test_two_processes_train_validate_and_leave_one_of_each(trained):
    (best,) = best_files(trained.outdir)
    names = {path.name for path in (trained.outdir / "models").iterdir()}
    assert names == {best.name, f"{PREFIX}_latest.pth"}
    rows = csv_rows(trained.outdir)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    state = read_checkpoint(latest_file(trained.outdir))
    assert state["epoch"] == 2
    assert len(state["training"]["rng"]) == 2  # of every process
    assert not torch.equal(*(rng["cpu"] for rng in state["training"]["rng"]))
    assert read_checkpoint(best)["metrics"]["score"] == max(float(row["score"]) for row in rows)
    for date in ("im1", "im2"):
        masks = sorted(p.stem for p in (trained.outdir / "masks" / "val" / date).iterdir())
        assert masks == VAL_NAMES


def test_only_the_leading_process_prints(trained):
    assert "2 × cpu" in trained.out
    for text in ("training and", "epoch 1/2", "epoch 2/2", "best: "):
        assert trained.out.count(text) == 1, trained.out


def what_is_left(folder: Path) -> dict[str, bytes]:
    files = [*folder.glob("im?/*.png"), *folder.glob("metrics.json")]
    assert files
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("script", "size", "batch_size"),
    [
        ("label.py", 2, 2),
        ("test.py", 3, 1),  # uneven shares of four pairs
        pytest.param("label.py", 3, 2, marks=slow),
        pytest.param("test.py", 2, 2, marks=slow),
        pytest.param("test.py", 3, 2, marks=slow),  # and one without a pair
    ],
)
def test_masks_and_scores_do_not_depend_on_the_number_of_processes(
    script, size, batch_size, fcn_run, sample_root, tmp_path
):
    more = ("--checkpoints", fcn_run.best, "--test-batch-size", batch_size)
    alone, folder = {"label.py": (label, "train"), "test.py": (predict, "test")}[script]
    alone.main(options(sample_root, tmp_path / "1", *more))
    argv = options(sample_root, tmp_path / "n", *more)
    with started_ranks(script, [argv] * size, tmp_path / "printed") as children:
        assert [child.wait() for child in children] == [0] * size, [c.err for c in children]
    found, expected = (what_is_left(tmp_path / n / "masks" / folder) for n in ("n", "1"))
    assert found == expected


# --- what they agree on, though each may see another state of the file system ---------------


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ((True, False), ("lost contact with another process", "node1")),
        ((False, True), ()),
        ((True, "other"), ("not the same file on all nodes",) * 2),
    ],
)
def test_the_leading_process_decides_whether_there_is_something_to_resume(
    seen, said, half_outdir, sample_root, tmp_path
):
    argv = []
    for rank, sees in enumerate(seen):
        outdir = tmp_path / f"node{rank}"
        argv.append(train_options(sample_root, outdir, "--epochs", 2, "--resume"))
        if sees:
            shutil.copytree(half_outdir / "models", outdir / "models")
        if sees == "other":
            state = read_checkpoint(latest_file(outdir))
            state["training"] |= {"epoch": 2, "step": 1, "validated": False}
            torch.save(state, latest_file(outdir))
    with started_ranks("train.py", argv, tmp_path) as children:
        statuses = [child.wait() for child in children]
    assert all(statuses) == bool(said), [child.err for child in children]
    for child, text in zip(children, said, strict=False):
        (line,) = child.error_lines
        assert text in line
    if not said:
        assert "epoch 1/2" in children[0].out and "resuming" not in children[0].out


def hide_a_mask() -> None:
    """Hide an old mask from the leading process, as a slow network file system may."""
    stat, replace = os.stat, os.replace
    hidden = os.environ["RANK"] == "0"

    def stat_others(path: object, *args: object, **more: object) -> os.stat_result:
        if hidden and str(path).endswith("masks/test/im1/00000.png"):
            raise FileNotFoundError(path)
        return stat(path, *args, **more)

    def show(source: object, target: object) -> None:
        nonlocal hidden
        replace(source, target)
        hidden = hidden and not str(target).endswith(".png")

    os.stat, os.replace = stat_others, show


def test_the_leading_process_decides_what_is_finished(fcn_run, sample_root, tmp_path):
    more = ("--checkpoints", fcn_run.best, "--test-batch-size", 1)
    argv = options(sample_root, tmp_path / "out", *more)
    predict.main(argv)
    before = what_is_left(tmp_path / "out/masks/test")
    with started_ranks("test.py", [argv] * 2, tmp_path, hide_a_mask) as children:
        assert [child.wait() for child in children] == [0, 0], [c.err for c in children]
    assert re.search(r"[23] pairs were finished already", children[0].out)  # of all, or its own
    assert what_is_left(tmp_path / "out/masks/test") == before


# --- failures -------------------------------------------------------------------------------


@pytest.fixture
def broken_image(broken_root) -> Callable[[int], Path]:
    """Cut an image off behind its header that only one of two processes decodes, in its first step.

    Returns its path.
    """

    def cut(rank: int) -> Path:
        sampler = DistributedSampler(TRAIN_NAMES, 2, rank, seed=0)
        sampler.set_epoch(1)
        path = broken_root / "train" / "im1" / f"{TRAIN_NAMES[next(iter(sampler))]}.png"
        os.truncate(path, path.stat().st_size // 2)
        return path

    return cut


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=slow)])
@pytest.mark.parametrize("rank", [pytest.param(0, marks=slow), 1])
def test_an_error_of_one_process_ends_all_with_one_line(
    rank, workers, broken_image, broken_root, tmp_path
):
    path = broken_image(rank)
    argv = train_options(broken_root, tmp_path, "--nproc", 2, "--workers", workers)
    with ended(start_script("train.py", argv, tmp_path / "printed")) as child:
        eventually(lambda: "2 × cpu" in child.out, 120)
        started = time.monotonic()
        assert child.wait() == 2
        assert time.monotonic() - started < SECONDS_TO_END
    (line,) = [line for line in child.error_lines if not line.startswith("warning: ")]
    assert line.startswith(f"error: {path}: cannot be decoded")
    eventually(lambda: processes_with(str(tmp_path)) == [], SECONDS_TO_END)


@slow
def test_debug_shows_the_traceback_of_the_failed_process(broken_image, broken_root, tmp_path):
    path = broken_image(1)
    argv = train_options(broken_root, tmp_path, "--nproc", 2, "--debug")
    with ended(start_script("train.py", argv, tmp_path / "printed")) as child:
        assert child.wait() not in (0, None)
    assert "Traceback" in child.err
    assert f"DataError: {path}: cannot be decoded" in child.err
    eventually(lambda: processes_with(str(tmp_path)) == [], SECONDS_TO_END)


def start_long_run(data: Path, outdir: Path) -> Child:
    argv = train_options(data, outdir, "--epochs", 500, "--nproc", 2)
    return start_script("train.py", argv, outdir / "printed")


@pytest.mark.parametrize("rank", [pytest.param(0, marks=slow), 1])
def test_a_killed_process_ends_all(rank, sample_root, tmp_path):
    with ended(start_long_run(sample_root, tmp_path)) as child:
        eventually(lambda: "epoch 1/" in child.out, 120)
        started = time.monotonic()
        os.kill(workers_of(child)[rank], signal.SIGKILL)
        assert child.wait() == 128 + signal.SIGKILL
        assert time.monotonic() - started < SECONDS_TO_END
    (line,) = child.error_lines
    assert line.startswith(f"error: process {rank} was killed by SIGKILL")
    assert read_checkpoint(latest_file(tmp_path))["epoch"] >= 1
    eventually(lambda: processes_with(str(tmp_path)) == [], SECONDS_TO_END)


@slow
def test_processes_end_with_a_killed_launcher(sample_root, tmp_path):
    # Else they would go on writing to a folder in which the next start resumes.
    with ended(start_long_run(sample_root, tmp_path)) as child:
        eventually(lambda: "epoch 1/" in child.out, 120)
        assert len(workers_of(child)) == 2
        child.send(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        eventually(lambda: processes_with(str(tmp_path)) == [], SECONDS_TO_END)
    assert read_checkpoint(latest_file(tmp_path))["epoch"] >= 1
