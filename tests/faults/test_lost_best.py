"""A run whose best checkpoint is gone ends with one all the same."""

import shutil

import pytest
import torch

import train
from datasets.classes import SECOND_CLASSES
from datasets.task import Task
from engine.config import TrainConfig
from engine.run import Run
from tests.helpers.runs import best_files, latest_file, train_options
from utils import cli
from utils.errors import CheckpointError
from utils.tensor_files import read_checkpoint


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_next_epoch_takes_the_place_of_a_best_that_is_gone(
    elsewhere, half_outdir, fcn_run, tmp_path, capsys
):
    outdir, new = tmp_path / "out", tmp_path / "new"
    shutil.copytree(half_outdir, outdir)
    state = read_checkpoint(latest_file(outdir))
    state["training"]["best"]["score"] = state["metrics"]["score"] = 0.9  # no later epoch's
    torch.save(state, latest_file(outdir))
    for best in best_files(outdir):
        best.unlink()
    target, file = (new, (latest_file(outdir),)) if elsewhere else (outdir, ())
    metrics = train.main(fcn_run.argv(target, "--resume", *file, "--save-mask"))
    (found,) = best_files(target)
    assert read_checkpoint(found)["epoch"] == 2
    assert 0 < metrics.score < 0.9
    assert capsys.readouterr().out.count("warning: the best checkpoint so far") == 1
    assert read_checkpoint(latest_file(target))["best_file"] == found.name
    assert len(list((target / "masks" / "val").glob("im?/*.png"))) == 8


def test_a_finished_run_without_its_best_is_a_named_error(fcn_run, tmp_path):
    outdir = tmp_path / "out"
    shutil.copytree(fcn_run.outdir, outdir)
    (best,) = best_files(outdir)
    best.unlink()
    with pytest.raises(CheckpointError, match=r"finished .* its best checkpoint is not in"):
        train.main(fcn_run.argv(outdir, "--resume"))


def test_a_best_that_is_replaced_during_the_run_is_left_alone(sample_root, tmp_path, capsys):
    run = Run(
        cli.parse(TrainConfig, train_options(sample_root, tmp_path)), Task(SECOND_CLASSES), {}
    )
    assert not run.lost_best()
    run.save_best({}, 0.5)
    assert not run.lost_best()
    first = run.best
    first.write_bytes(b"of somebody else")
    assert run.lost_best()
    assert "removed or replaced; this epoch's takes its place" in capsys.readouterr().out
    run.save_best({}, 0.5)
    assert first.read_bytes() == b"of somebody else"
    assert run.best.name == f"{first.stem}-2.pth"
