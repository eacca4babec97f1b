"""A run whose best checkpoint lies elsewhere, or nowhere any more, ends with one all the same."""

import dataclasses
import shutil
from pathlib import Path

import pytest

import train
from engine import training
from engine.run import RunFiles
from tests.helpers.faults import in_second_epoch
from tests.helpers.runs import best_files, latest_file, train_options
from utils.errors import CheckpointError
from utils.tensor_files import read_checkpoint

WARNING = "warning: the best checkpoint so far is gone"


@pytest.fixture
def no_better_epoch(monkeypatch) -> None:
    """Epochs that score less than any before."""
    evaluate = training.evaluate
    monkeypatch.setattr(
        training, "evaluate", lambda *args: dataclasses.replace(evaluate(*args), score=-0.5)
    )


@pytest.fixture
def backup(half_outdir, tmp_path) -> Path:
    """The checkpoints of a run that ended in its second epoch, in a folder of their own."""
    return Path(shutil.copytree(half_outdir / "models", tmp_path / "backup"))


def test_a_best_beside_the_resumed_file_is_brought_along(
    no_better_epoch, backup, half_outdir, sample_root, tmp_path, capsys
):
    (best,) = best_files(half_outdir)
    resume = ("--resume", backup / latest_file(half_outdir).name)
    for _ in range(2):  # as a scheduler starts it again with the same command
        train.main(train_options(sample_root, tmp_path / "new", "--epochs", 2, *resume))
        (found,) = best_files(tmp_path / "new")
        assert found.name == best.name and found.read_bytes() == best.read_bytes()
    printed = capsys.readouterr().out
    assert printed.count("brought along") == 1 and WARNING not in printed
    latest = read_checkpoint(latest_file(tmp_path / "new"))
    assert (latest["epoch"], latest["best_file"]) == (2, best.name)


def test_a_best_that_is_nowhere_is_forgotten(
    no_better_epoch, backup, half_outdir, sample_root, tmp_path, capsys
):
    (best,) = best_files(half_outdir)
    (backup / best.name).unlink()
    resume = ("--resume", backup / latest_file(half_outdir).name, "--save-mask")
    metrics = train.main(train_options(sample_root, tmp_path / "new", "--epochs", 2, *resume))
    (found,) = best_files(tmp_path / "new")
    assert metrics.score == -0.5 and read_checkpoint(found)["epoch"] == 2
    assert capsys.readouterr().out.count(WARNING) == 1
    assert len(list((tmp_path / "new" / "masks" / "val").glob("im?/*.png"))) == 8


def test_a_best_that_was_replaced_since_is_forgotten(
    no_better_epoch, backup, half_outdir, sample_root, tmp_path
):
    # An older copy of the latest, in the folder where the run went on.
    models = tmp_path / "out" / "models"
    shutil.copytree(backup, models)
    (best,) = best_files(tmp_path / "out")
    best.unlink()
    copy = latest_file(tmp_path / "out").rename(models / "older.pth")
    train.main(train_options(sample_root, tmp_path / "out", "--epochs", 2, "--resume", copy))
    (models / "older.pth").unlink()
    (found,) = best_files(tmp_path / "out")
    assert read_checkpoint(found)["epoch"] == 2


def test_an_outdir_that_is_removed_gets_a_best(sample_root, tmp_path, monkeypatch, capsys):
    outdir, evaluate = tmp_path / "out", training.evaluate
    scores = iter([0.5, 0.25])
    monkeypatch.setattr(
        training, "evaluate", lambda *args: dataclasses.replace(evaluate(*args), score=next(scores))
    )
    in_second_epoch(monkeypatch, lambda: shutil.rmtree(outdir))
    assert train.main(train_options(sample_root, outdir, "--epochs", 2)).score == 0.25
    (best,) = best_files(outdir)
    assert read_checkpoint(best)["metrics"]["score"] == 0.25
    assert capsys.readouterr().out.count(WARNING) == 1


def test_a_finished_run_without_its_best_is_a_named_error(whole_outdir, sample_root, tmp_path):
    outdir = tmp_path / "out"
    shutil.copytree(whole_outdir, outdir)
    (best,) = best_files(outdir)
    best.unlink()
    with pytest.raises(CheckpointError, match=r"finished .* its best checkpoint is gone; put it"):
        train.main(train_options(sample_root, outdir, "--epochs", 2, "--resume"))


def test_a_file_of_another_run_is_not_brought_along(half_outdir, tmp_path):
    saved = read_checkpoint(latest_file(half_outdir))
    files = RunFiles(tmp_path, "fcn_x")
    files.copy_best({**saved, "run": "another"}, str(latest_file(half_outdir)), print)
    assert files.best is None and not list(tmp_path.iterdir())


def test_a_copy_takes_no_name_of_another_run(half_outdir, tmp_path):
    saved = read_checkpoint(latest_file(half_outdir))
    taken = tmp_path / saved["best_file"]
    taken.write_bytes(b"of another run")
    files = RunFiles(tmp_path, "fcn_x")
    files.copy_best(saved, str(latest_file(half_outdir)), print)
    assert taken.read_bytes() == b"of another run"
    assert files.best == tmp_path / f"{taken.stem}-2.pth"
    assert files.best.read_bytes() == best_files(half_outdir)[0].read_bytes()
