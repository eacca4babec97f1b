"""Scripts in two processes: they leave what one leaves, and a failure ends all of them."""

import dataclasses
import os
import signal
import time
from pathlib import Path

import pytest
import torch

import label
import test as predict
from datasets.classes import SECOND_CLASSES
from datasets.dataset import ChangeDetectionDataset
from datasets.loaders import training_loader
from datasets.pairs import split_pairs
from tests.helpers.processes import (
    SECONDS_TO_END,
    Child,
    ended,
    error_lines,
    eventually,
    processes_with,
    start_script,
    workers_of,
)
from tests.helpers.runs import PREFIX, best_files, csv_rows, latest_file, options, train_options
from utils.errors import OptionError
from utils.tensor_files import read_checkpoint

# --- scripts --------------------------------------------------------------------------------


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
        assert error_lines(child) == []
        return Trained(outdir, child.out)


def test_two_processes_train_validate_and_leave_one_of_each(trained):
    assert len(best_files(trained.outdir)) == 1
    names = {path.name for path in (trained.outdir / "models").iterdir()}
    assert names == {best_files(trained.outdir)[0].name, f"{PREFIX}_latest.pth"}
    rows = csv_rows(trained.outdir)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    state = read_checkpoint(latest_file(trained.outdir))
    assert state["epoch"] == 2
    assert len(state["training"]["rng"]) == 2  # of every process
    assert not torch.equal(*(rng["cpu"] for rng in state["training"]["rng"]))
    best = max(float(row["score"]) for row in rows)
    assert read_checkpoint(best_files(trained.outdir)[0])["metrics"]["score"] == best
    for date in ("im1", "im2"):
        masks = sorted(p.name for p in (trained.outdir / "masks" / "val" / date).iterdir())
        assert masks == [f"{i:05d}.png" for i in range(4)]


def test_only_the_leading_process_prints(trained):
    assert "2 × cpu" in trained.out
    for text in ("training and", "epoch 1/2", "epoch 2/2", "best: "):
        assert trained.out.count(text) == 1, trained.out


def masks_in(folder: Path) -> dict[str, bytes]:
    files = {f"{p.parent.name}/{p.name}": p.read_bytes() for p in folder.glob("im?/*.png")}
    assert files
    return files


@pytest.mark.parametrize(
    ("script", "size"),
    [
        ("label.py", 2),
        pytest.param("label.py", 3, marks=pytest.mark.slow),
        pytest.param("test.py", 2, marks=pytest.mark.slow),
        pytest.param("test.py", 3, marks=pytest.mark.slow),
    ],
)
def test_masks_do_not_depend_on_the_number_of_processes(
    script, size, trained, sample_root, tmp_path
):
    (best,) = best_files(trained.outdir)
    more = ("--checkpoints", best, "--test-batch-size", 2)
    folder = ("masks", "train") if script == "label.py" else ("masks", "test")
    alone = {"label.py": label, "test.py": predict}[script]
    alone.main(options(sample_root, tmp_path / "1", *more))
    argv = options(sample_root, tmp_path / "n", *more, "--nproc", size)
    with ended(start_script(script, argv, tmp_path / "printed")) as child:
        assert child.wait() == 0, child.err
        assert error_lines(child) == []
    assert masks_in(tmp_path.joinpath("n", *folder)) == masks_in(tmp_path.joinpath("1", *folder))


def test_a_batch_that_cannot_be_divided_is_an_error():
    from engine.run import batch_size_per_pass

    with pytest.raises(OptionError, match="--batch-size 5 cannot be divided among 2 processes"):
        batch_size_per_pass(5, 1, 2, 100)


def test_a_batch_that_cannot_be_divided_is_one_line(sample_root, tmp_path):
    argv = train_options(sample_root, tmp_path, "--batch-size", 5, "--nproc", 2)
    with ended(start_script("train.py", argv, tmp_path / "printed")) as child:
        assert child.wait() == 2
    (line,) = error_lines(child)
    assert line.startswith("error: --batch-size 5 cannot be divided among 2 processes")
    assert "use a multiple of 2" in line
    assert not (tmp_path / "models").exists()


# --- failures -------------------------------------------------------------------------------


def pair_of_rank(data: Path, rank: int, size: int, step: int = 0, epoch: int = 1) -> str:
    """The name of a pair that only one process reads, in a step of an epoch."""
    _, pairs, _ = split_pairs(data)
    dataset = ChangeDetectionDataset(pairs, SECOND_CLASSES)
    loader = training_loader(dataset, 4 // size, 0, 0, False, rank, size)
    loader.sampler.set_epoch(epoch)
    return pairs[list(loader.sampler)[4 // size * step]].name


def truncate(path: Path) -> Path:
    """Cut an image off behind its header, so that it fails when it is decoded."""
    os.truncate(path, path.stat().st_size // 2)
    return path


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_an_error_of_one_process_ends_all_with_one_line(rank, workers, broken_root, tmp_path):
    path = truncate(broken_root / "train" / "im1" / f"{pair_of_rank(broken_root, rank, 2)}.png")
    argv = train_options(broken_root, tmp_path, "--nproc", 2, "--workers", workers)
    with ended(start_script("train.py", argv, tmp_path / "printed")) as child:
        eventually(lambda: "2 × cpu" in child.out, 120)
        started = time.monotonic()
        assert child.wait() == 2
        assert time.monotonic() - started < SECONDS_TO_END
    (line,) = error_lines(child)
    assert line.startswith(f"error: {path}: cannot be decoded")
    assert "Traceback" not in child.err
    eventually(lambda: processes_with(str(tmp_path)) == [], SECONDS_TO_END)


@pytest.mark.slow
def test_debug_shows_the_traceback_of_the_failed_process(broken_root, tmp_path):
    path = truncate(broken_root / "train" / "im1" / f"{pair_of_rank(broken_root, 1, 2)}.png")
    argv = train_options(broken_root, tmp_path, "--nproc", 2, "--debug")
    with ended(start_script("train.py", argv, tmp_path / "printed")) as child:
        assert child.wait() not in (0, None)
    assert "Traceback" in child.err
    assert f"DataError: {path}: cannot be decoded" in child.err
    eventually(lambda: processes_with(str(tmp_path)) == [], SECONDS_TO_END)


def start_long_run(data: Path, outdir: Path, *more: object) -> Child:
    argv = train_options(data, outdir, "--epochs", 500, "--nproc", 2, *more)
    return start_script("train.py", argv, outdir / "printed")


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_process_ends_all(rank, sample_root, tmp_path):
    with ended(start_long_run(sample_root, tmp_path)) as child:
        eventually(lambda: "epoch 1/" in child.out, 120)
        started = time.monotonic()
        os.kill(workers_of(child)[rank], signal.SIGKILL)
        assert child.wait() == 128 + signal.SIGKILL
        assert time.monotonic() - started < SECONDS_TO_END
    (line,) = error_lines(child)
    assert line.startswith(f"error: process {rank} was killed by SIGKILL")
    assert read_checkpoint(latest_file(tmp_path))["epoch"] >= 1
    eventually(lambda: processes_with(str(tmp_path)) == [], SECONDS_TO_END)


@pytest.mark.slow
def test_processes_end_with_a_killed_launcher(sample_root, tmp_path):
    # Else they would go on writing to a folder in which the next start resumes.
    with ended(start_long_run(sample_root, tmp_path)) as child:
        eventually(lambda: "epoch 1/" in child.out, 120)
        assert len(workers_of(child)) == 2
        child.send(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        eventually(lambda: processes_with(str(tmp_path)) == [], SECONDS_TO_END)
    assert read_checkpoint(latest_file(tmp_path))["epoch"] >= 1
