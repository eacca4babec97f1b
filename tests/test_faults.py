"""Full disks, folders that vanish, kill -9, hostile files: one clear line, and nothing lost."""

import csv
import errno
import json
import os
import pickle
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from processes import LIMIT_S, REPO, ended, eventually, start_script
from runs import (
    assert_same_run,
    best_files,
    csv_rows,
    latest_file,
    options,
    train_options,
)

import label
import test as predict
import train
from datasets.change_detection import image_size
from datasets.classes import SECOND_CLASSES, read_label
from utils import cli
from utils.checkpoint import read_checkpoint
from utils.errors import CheckpointError, DataError, OptionError, UserError
from utils.masks import open_image, read_rgb
from utils.trainer import Trainer

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(scope="module")
def whole(sample_root, tmp_path_factory) -> Path:
    """Two uninterrupted epochs. Read only."""
    outdir = tmp_path_factory.mktemp("whole")
    train.main(train_options(sample_root, outdir, "--epochs", 2))
    return outdir


@pytest.fixture(scope="module")
def half(sample_root, tmp_path_factory) -> Path:
    """The same run, ended by force in its second epoch. Read only."""
    outdir = tmp_path_factory.mktemp("half")
    with pytest.MonkeyPatch.context() as patch:
        in_second_epoch(patch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train.main(train_options(sample_root, outdir, "--epochs", 2))
    return outdir


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


# --- full disk ------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["replace", "save"])
def test_a_full_disk_keeps_the_last_checkpoint(
    place, half, whole, sample_root, tmp_path, monkeypatch, capsys
):
    outdir = tmp_path / "out"
    shutil.copytree(half, outdir)
    before = {path: path.read_bytes() for path in (outdir / "models").iterdir()}
    argv = train_options(sample_root, outdir, "--epochs", 2, "--resume")

    def fail(*_args: object, **_options: object) -> None:
        raise FULL

    with monkeypatch.context() as patch:
        in_second_epoch(patch, lambda: patch.setattr(*target, fail))
        target = (os, "replace") if place == "replace" else (torch, "save")
        assert_one_line(
            *run_script(train, argv, patch, capsys), "cannot write", "No space left on device"
        )
    assert {path: path.read_bytes() for path in (outdir / "models").iterdir()} == before
    train.main(argv)
    assert_same_run(outdir, whole)


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


def test_a_disk_that_is_really_full(small_disk, half, whole, sample_root, monkeypatch, capsys):
    outdir = small_disk / "out"
    shutil.copytree(half, outdir)
    before = {path: path.read_bytes() for path in (outdir / "models").iterdir()}
    argv = train_options(sample_root, outdir, "--epochs", 2, "--resume")
    with monkeypatch.context() as patch:
        in_second_epoch(patch, lambda: fill_but(small_disk, 1 << 19))
        assert_one_line(*run_script(train, argv, patch, capsys), "cannot write")
    assert {path: path.read_bytes() for path in (outdir / "models").iterdir()} == before
    (small_disk / "filler").unlink()
    train.main(argv)
    assert_same_run(outdir, whole)


def fill_but(folder: Path, free: int) -> None:
    path = fill(folder)
    os.truncate(path, path.stat().st_size - free)


@pytest.mark.parametrize("script", [label, predict])
def test_masks_on_a_full_disk(script, small_disk, whole, sample_root, monkeypatch, capsys):
    (best,) = best_files(whole)
    outdir = small_disk / "out"
    outdir.mkdir()
    fill(small_disk)
    argv = options(sample_root, outdir, "--checkpoints", best)
    assert_one_line(*run_script(script, argv, monkeypatch, capsys), "No space left on device")
    assert_only_whole_files(outdir)
    (small_disk / "filler").unlink()
    script.main(argv)
    assert len(list(outdir.rglob("*.png"))) == (24 if script is label else 8)


def test_a_read_only_outdir(small_disk, half, sample_root, monkeypatch, capsys):
    outdir = small_disk / "out"
    shutil.copytree(half, outdir)
    before = latest_file(outdir).read_bytes()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    argv = train_options(sample_root, outdir, "--epochs", 2, "--resume")
    assert_one_line(
        *run_script(train, argv, monkeypatch, capsys), "cannot write", "Read-only file system"
    )
    assert latest_file(outdir).read_bytes() == before
    read_checkpoint(latest_file(outdir))


# --- vanished folders -----------------------------------------------------------------------


def test_an_outdir_that_is_removed_is_made_again(whole, sample_root, tmp_path, monkeypatch):
    outdir = tmp_path / "out"
    with monkeypatch.context() as patch:
        in_second_epoch(patch, lambda: shutil.rmtree(outdir))
        train.main(train_options(sample_root, outdir, "--epochs", 2))
    states = [read_checkpoint(latest_file(d)) for d in (outdir, whole)]
    for name, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][name])
    assert csv_rows(outdir) == csv_rows(whole)


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
        in_second_epoch(patch, path.unlink)
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


# --- kill -9 --------------------------------------------------------------------------------


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


def test_labelling_killed_at_3_moments(whole, sample_root, tmp_path):
    label_under_fire(3, sample_root, tmp_path, best_files(whole)[0])


@pytest.mark.slow
def test_training_killed_at_30_moments(sample_root, tmp_path):
    train_under_fire(30, sample_root, tmp_path)


@pytest.mark.slow
def test_labelling_killed_at_30_moments(whole, sample_root, tmp_path):
    label_under_fire(30, sample_root, tmp_path, best_files(whole)[0])


# --- hostile images -------------------------------------------------------------------------


def png_chunk(kind: bytes, data: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc


def write_bomb(path: Path, side: int) -> Path:
    """A PNG of a hundred bytes that says it has side × side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = png_chunk(b"IDAT", zlib.compress(bytes(1000))) + png_chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + body)
    return path


READERS = [image_size, open_image, read_rgb, lambda path: read_label(path, SECOND_CLASSES)]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("side", [20_000, 100_000, 2**31 - 1])
def test_decompression_bombs_are_refused(reader, side, tmp_path):
    path = write_bomb(tmp_path / "bomb.png", side)
    with pytest.raises(DataError, match=f"^{path}: ") as caught:
        reader(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("folder", ["im1", "label2"])
def test_training_on_a_bomb_is_one_line(folder, broken_root, tmp_path, monkeypatch, capsys):
    path = write_bomb(broken_root / "train" / folder / "00003.png", 100_000)
    status, err = run_script(train, train_options(broken_root, tmp_path), monkeypatch, capsys)
    assert_one_line(status, err, f"{path}: ")


# --- names ----------------------------------------------------------------------------------

ODD_NAMES = ("a..b", "...", "~root", "%2e%2e%2fescape", "-rf", "a\nb", "$(touch x)", "c:\\d", "..x")


def tree(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_names_of_a_data_set_stay_inside_outdir(whole, sample_root, tmp_path):
    place = tmp_path / "place"
    root, outdir, outside = place / "data", place / "deep" / "out", place / "outside"
    shutil.copytree(sample_root, root)
    shutil.rmtree(root / "val")
    outside.mkdir()
    for folder in (root / "train").iterdir():
        for source, name in zip(sorted(folder.iterdir()), ODD_NAMES, strict=False):
            source.rename(folder / f"{name}.png")
        # A link out of the data set is a way to share files, and it is only read.
        linked = sorted(folder.glob("000*.png"))[-1]
        target = outside / f"{folder.name}.png"
        linked.rename(target)
        linked.symlink_to(target)
    before = tree(place)
    (best,) = best_files(whole)
    shutil.copy(best, outdir.parent if outdir.parent.mkdir() else place)
    label.main(options(root, outdir, "--checkpoints", best))
    argv = train_options(root, outdir, "--use-pseudo-label", "--save-mask", "--batch-size", 2)
    train.main(argv)
    after = tree(place)
    written = set(after) - set(before) - {place / best.name}
    assert written and all(path.is_relative_to(outdir) for path in written)
    assert {path: after[path] for path in before} == before
    # Names that begin with a dot are hidden files, not images.
    masks = {
        path.stem
        for path in (outdir / "masks" / "train" / "im1").iterdir()
        if path.suffix == ".png"
    }
    assert masks == {
        path.stem for path in (root / "train" / "im1").iterdir() if path.name[0] != "."
    }


@pytest.mark.parametrize(
    "line", ["../../../etc/passwd", "/etc/passwd", "..", "/", "train/../../x.png"]
)
def test_lists_name_pairs_of_the_data_set_alone(line, sample_root, tmp_path):
    names = tmp_path / "val.txt"
    names.write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match="is no pair of the training folder"):
        train.main(train_options(sample_root, tmp_path / "out", "--val-list", names))
    assert not (tmp_path / "out").exists()


def test_a_list_that_names_the_folder_itself(sample_root, tmp_path):
    names = tmp_path / "val.txt"
    names.write_text(".\n", encoding="utf-8")
    with pytest.raises(DataError):
        train.main(train_options(sample_root, tmp_path / "out", "--val-list", names))


def test_a_list_with_paths_is_a_list_of_names(whole, sample_root, tmp_path):
    names = tmp_path / "val.txt"
    names.write_text("../../outside/00003.png\n/etc/00005.png\n", encoding="utf-8")
    (best,) = best_files(whole)
    more = ("--split", "val", "--val-list", names, "--checkpoints", best)
    predict.main(options(sample_root, tmp_path / "out", *more))
    masks = {p.relative_to(tmp_path) for p in tmp_path.rglob("*.png")}
    folder = Path("out/masks/val")
    assert masks == {
        folder / date / f"{name}.png" for date in ("im1", "im2") for name in ("00003", "00005")
    }


def test_a_mask_that_is_a_link_is_replaced_not_followed(whole, sample_root, tmp_path):
    target = tmp_path / "precious.png"
    target.write_bytes(b"precious")
    mask = tmp_path / "out" / "masks" / "train" / "im1" / "00000.png"
    mask.parent.mkdir(parents=True)
    mask.symlink_to(target)
    label.main(options(sample_root, tmp_path / "out", "--checkpoints", best_files(whole)[0]))
    assert target.read_bytes() == b"precious"
    assert not mask.is_symlink()


# --- hostile checkpoints --------------------------------------------------------------------


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


USES = {
    "--load-from": train,
    "--resume": train,
    "--pretrain-from": train,
    "label": label,
    "test": predict,
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("form", ["zip", "pickle", "hidden"])
def test_checkpoints_that_would_run_code_are_refused(use, form, whole, sample_root, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "evil.pth"
    payload = Payload(f"touch {marker}")
    if form == "zip":
        torch.save({"model": payload}, path)
    elif form == "pickle":
        path.write_bytes(pickle.dumps({"model": payload}))
    else:  # a checkpoint of this project with one thing more in it
        torch.save({**read_checkpoint(latest_file(whole)), "extra": payload}, path)
    more = ("--checkpoints", path) if use in ("label", "test") else (use, path)
    make = train_options if USES[use] is train else options
    with pytest.raises(CheckpointError, match=r"evil\.pth: refused, .*could run code"):
        USES[use].main(make(sample_root, tmp_path / "out", *more))
    assert not marker.exists()


def test_the_payload_would_run(tmp_path):
    pickle.loads(pickle.dumps(Payload(f"touch {tmp_path / 'marker'}")))
    assert (tmp_path / "marker").exists()


def resume_changed(half: Path, data: Path, outdir: Path, change: Callable[[dict], None]) -> None:
    """Resume a run from a latest file that somebody has changed."""
    shutil.copytree(half, outdir)
    state = read_checkpoint(latest_file(outdir))
    change(state)
    torch.save(state, latest_file(outdir))
    train.main(train_options(data, outdir, "--epochs", 2, "--resume"))


def test_a_checkpoint_cannot_name_a_file_to_remove(half, sample_root, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious")

    def change(state: dict) -> None:
        state["best_file"] = "../../precious"
        state["training"]["best"]["score"] = -1.0

    with pytest.raises(CheckpointError):
        resume_changed(half, sample_root, tmp_path / "out", change)
    assert precious.read_text() == "precious"


def test_a_checkpoint_cannot_name_a_folder_to_write_to(half, sample_root, tmp_path):
    with pytest.raises(CheckpointError):
        resume_changed(
            half, sample_root, tmp_path / "out", lambda state: state.update(run="../../escape")
        )
    assert not (tmp_path / "escape").exists()


@pytest.mark.parametrize("key", ["classes", "split", "options", "best_file"])
def test_a_latest_file_without_a_part_is_a_named_error(key, half, sample_root, tmp_path):
    with pytest.raises(UserError):
        resume_changed(half, sample_root, tmp_path / "out", lambda state: state.pop(key))


@pytest.mark.parametrize("cut", [0, 1, 100, 0.5, 0.99])
def test_a_latest_file_cut_off_is_a_named_error(cut, half, sample_root, tmp_path):
    outdir = tmp_path / "out"
    shutil.copytree(half, outdir)
    size = latest_file(outdir).stat().st_size
    os.truncate(latest_file(outdir), int(cut * size) if isinstance(cut, float) else cut)
    with pytest.raises(CheckpointError, match="damaged or no torch checkpoint"):
        train.main(train_options(sample_root, outdir, "--epochs", 2, "--resume"))


def test_a_seed_too_large_is_a_named_error(sample_root, tmp_path):
    with pytest.raises((OptionError, SystemExit)):
        train.main(train_options(sample_root, tmp_path, "--seed", 2**70))
