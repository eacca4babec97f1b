"""Full disks and folders that vanish: one clear line, and nothing lost."""

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import label
import test as predict
import train
from tests.helpers.faults import (
    assert_one_line,
    assert_only_whole_files,
    before_step,
    in_second_epoch,
    run_script,
)
from tests.helpers.processes import REPO, ended, start_script
from tests.helpers.runs import (
    STEPS,
    assert_same_run,
    assert_same_values,
    csv_rows,
    latest_file,
    options,
    resume,
    train_options,
)
from utils.tensor_files import read_checkpoint

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- full disk ------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["replace", "save"])
def test_a_full_disk_keeps_the_last_checkpoint(
    place, half_outdir, fcn_run, tmp_path, monkeypatch, capsys
):
    outdir = tmp_path / "out"
    shutil.copytree(half_outdir, outdir)
    before = {path: path.read_bytes() for path in (outdir / "models").iterdir()}
    argv = fcn_run.argv(outdir, "--resume")

    def fail(*_args: object, **_options: object) -> None:
        raise FULL

    with monkeypatch.context() as patch:
        before_step(patch, 1, lambda: patch.setattr(*target, fail))
        target = (os, "replace") if place == "replace" else (torch, "save")
        assert_one_line(
            *run_script(train, argv, patch, capsys), "cannot write", "No space left on device"
        )
    assert {path: path.read_bytes() for path in (outdir / "models").iterdir()} == before
    resume(fcn_run, outdir)
    assert_same_run(outdir, fcn_run.outdir)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 24 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"cannot mount a tmpfs: {error}")
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no byte of a file system free."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC
    return path


def test_a_disk_that_is_really_full(small_disk, half_outdir, fcn_run, monkeypatch, capsys):
    outdir = small_disk / "out"
    shutil.copytree(half_outdir, outdir)
    before = {path: path.read_bytes() for path in (outdir / "models").iterdir()}
    argv = fcn_run.argv(outdir, "--resume")
    with monkeypatch.context() as patch:
        before_step(patch, 1, lambda: fill_but(small_disk, 1 << 19))
        assert_one_line(*run_script(train, argv, patch, capsys), "cannot write")
    assert {path: path.read_bytes() for path in (outdir / "models").iterdir()} == before
    (small_disk / "filler").unlink()
    resume(fcn_run, outdir)
    assert_same_run(outdir, fcn_run.outdir)


def fill_but(folder: Path, free: int) -> None:
    path = fill(folder)
    os.truncate(path, path.stat().st_size - free)


def full_for_tensorboard() -> None:
    """Let TensorBoard alone find the disk full, from the first epoch's row on."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    def write(self, data: bytes) -> None:
        self.written = getattr(self, "written", 0) + 1
        if self.written > 1:  # the first is the header
            raise FULL
        first_write(self, data)

    first_write, RecordWriter.write = RecordWriter.write, write


def test_a_full_disk_under_tensorboard(sample_root, tmp_path):
    outdir = tmp_path / "out"
    argv = train_options(sample_root, outdir, "--tensorboard")
    child = start_script("train.py", argv, tmp_path / "printed", full_for_tensorboard)
    with ended(child):
        assert child.wait() == 2, child.err
    (line,) = child.error_lines  # and no traceback of the thread that writes
    (folder,) = (outdir / "logs").iterdir()
    assert line.startswith(f"error: cannot write {folder}: No space left on device; ")


def test_a_start_on_a_full_disk(small_disk, sample_root, monkeypatch, capsys):
    (small_disk / "out").mkdir()
    fill(small_disk)
    threads = []
    monkeypatch.setattr(threading, "excepthook", threads.append)
    argv = train_options(sample_root, small_disk / "out", "--tensorboard")
    assert_one_line(*run_script(train, argv, monkeypatch, capsys), "cannot write", "options.json")
    assert not threads


@pytest.mark.parametrize("script", [label, predict])
def test_masks_on_a_full_disk(script, small_disk, fcn_run, sample_root, monkeypatch, capsys):
    outdir = small_disk / "out"
    outdir.mkdir()
    fill(small_disk)
    argv = options(sample_root, outdir, "--checkpoints", fcn_run.best)
    assert_one_line(*run_script(script, argv, monkeypatch, capsys), "No space left on device")
    assert_only_whole_files(outdir)
    (small_disk / "filler").unlink()
    script.main(argv)
    assert len(list(outdir.rglob("*.png"))) == (24 if script is label else 8)


def test_a_read_only_outdir(small_disk, half_outdir, fcn_run, monkeypatch, capsys):
    outdir = small_disk / "out"
    shutil.copytree(half_outdir, outdir)
    before = latest_file(outdir).read_bytes()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    argv = fcn_run.argv(outdir, "--resume")
    assert_one_line(
        *run_script(train, argv, monkeypatch, capsys), "cannot write", "Read-only file system"
    )
    assert latest_file(outdir).read_bytes() == before
    read_checkpoint(latest_file(outdir))


# --- vanished folders -----------------------------------------------------------------------


def test_an_outdir_that_is_removed_is_made_again(fcn_run, tmp_path, monkeypatch):
    outdir = tmp_path / "out"
    with monkeypatch.context() as patch:
        in_second_epoch(patch, lambda: shutil.rmtree(outdir))
        train.main(fcn_run.argv(outdir))
    states = [read_checkpoint(latest_file(d))["model"] for d in (outdir, fcn_run.outdir)]
    assert_same_values(*states)
    assert csv_rows(outdir) == csv_rows(fcn_run.outdir)


def test_an_outdir_that_becomes_a_file(sample_root, tmp_path, monkeypatch, capsys):
    outdir, kept = tmp_path / "out", tmp_path / "kept"

    def replace() -> None:
        outdir.rename(kept)
        outdir.write_text("in the way")

    with monkeypatch.context() as patch:
        in_second_epoch(patch, replace)
        argv = train_options(sample_root, outdir, "--epochs", 2)
        assert_one_line(*run_script(train, argv, patch, capsys), "cannot write", str(outdir))
    assert outdir.read_text() == "in the way"
    assert read_checkpoint(latest_file(kept))["epoch"] == 1


def test_images_that_vanish(broken_root, tmp_path, monkeypatch, capsys):
    path = broken_root / "train" / "im2" / "00005.png"
    with monkeypatch.context() as patch:
        before_step(patch, STEPS, path.unlink)  # all files of the first epoch are read
        argv = train_options(broken_root, tmp_path, "--epochs", 2)
        assert_one_line(*run_script(train, argv, patch, capsys), f"{path}: no such file")
    assert read_checkpoint(latest_file(tmp_path))["epoch"] == 1


@pytest.mark.parametrize("more", [(), ("--debug",)])
def test_an_error_in_a_reader_process_ends_the_script(more, broken_root, tmp_path):
    # A real interpreter: at its end Python waits for reader processes, which ignore SIGTERM.
    path = broken_root / "train" / "im1" / "00005.png"
    os.truncate(path, path.stat().st_size // 2)
    argv = train_options(broken_root, tmp_path, "--workers", 1, "--batch-size", 2, *more)
    command = [sys.executable, "train.py", *argv]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=90, check=False, cwd=REPO
    )
    assert done.returncode == (1 if more else 2)
    assert f"{path}: cannot be decoded" in done.stderr
    assert ("Traceback" in done.stderr) == bool(more)
