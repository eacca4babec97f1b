"""Checkpoints that are hostile or damaged are named errors, and run nothing."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import label
import test as predict
import train
from tests.helpers.runs import latest_file, options, train_options
from utils.errors import CheckpointError, UserError
from utils.tensor_files import read_checkpoint


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
def test_checkpoints_that_would_run_code_are_refused(use, form, fcn_run, sample_root, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "evil.pth"
    payload = Payload(f"touch {marker}")
    if form == "zip":
        torch.save({"model": payload}, path)
    elif form == "pickle":
        path.write_bytes(pickle.dumps({"model": payload}))
    else:  # a checkpoint of this project with one thing more in it
        torch.save({**read_checkpoint(latest_file(fcn_run.outdir)), "extra": payload}, path)
    more = ("--checkpoints", path) if use in ("label", "test") else (use, path)
    make = train_options if USES[use] is train else options
    with pytest.raises(CheckpointError, match=r"evil\.pth: refused, .*could run code"):
        USES[use].main(make(sample_root, tmp_path / "out", *more))
    assert not marker.exists()


def test_the_payload_would_run(tmp_path):
    pickle.loads(pickle.dumps(Payload(f"touch {tmp_path / 'marker'}")))
    assert (tmp_path / "marker").exists()


@pytest.fixture
def resume_changed(half_outdir, fcn_run, tmp_path) -> Callable[[Callable], None]:
    """Resume a run in ``out`` from a latest file that somebody has changed."""

    def resume(change: Callable[[Path, dict], object]) -> None:
        outdir = Path(shutil.copytree(half_outdir, tmp_path / "out"))
        state = read_checkpoint(latest_file(outdir))
        change(latest_file(outdir), state)
        train.main(fcn_run.argv(outdir, "--resume"))

    return resume


def test_a_checkpoint_cannot_name_a_file_to_remove(resume_changed, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious")

    def change(path: Path, state: dict) -> None:
        state["best_file"] = "../../precious"
        state["training"]["best"]["score"] = -1.0
        torch.save(state, path)

    with pytest.raises(CheckpointError):
        resume_changed(change)
    assert precious.read_text() == "precious"


def test_a_checkpoint_cannot_name_a_folder_to_write_to(resume_changed, tmp_path):
    with pytest.raises(CheckpointError):
        resume_changed(lambda path, state: torch.save(state | {"run": "../../escape"}, path))
    assert not (tmp_path / "escape").exists()


@pytest.mark.parametrize("key", ["classes", "split", "options", "best_file"])
def test_a_latest_file_without_a_part_is_a_named_error(key, resume_changed):
    with pytest.raises(UserError):
        resume_changed(
            lambda path, state: torch.save({k: v for k, v in state.items() if k != key}, path)
        )


@pytest.mark.parametrize("part", [0, 1e-6, 0.5, 0.99])
def test_a_latest_file_cut_off_is_a_named_error(part, resume_changed):
    with pytest.raises(CheckpointError, match="damaged or no torch checkpoint"):
        resume_changed(lambda path, _: os.truncate(path, int(part * path.stat().st_size)))
