"""label.py --targets soft, and what is trained on them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import label
import train
from datasets.dataset import CELL
from datasets.images import read_bands
from datasets.labels import read_planes
from datasets.pairs import index_pairs
from engine.predictor import VIEWS, Predictor
from models.checkpoint import load_model
from tests.helpers.faults import CrashError, before_prediction, before_step, crash
from tests.helpers.runs import (
    STEPS,
    assert_same_run,
    assert_same_values,
    best_files,
    csv_rows,
    latest_file,
    options,
    read_masks,
    train_options,
)
from utils.errors import DataError, OptionError
from utils.tensor_files import read_checkpoint

SOFT = ("--targets", "soft")
TERMS = {f"loss_distill_{name}" for name in ("change", "semantic1", "semantic2")}


@pytest.fixture(scope="module")
def labelled(ensemble, sample_root, tmp_path_factory) -> Path:
    """An outdir with two teachers, their masks and soft targets. Read only."""
    outdir = tmp_path_factory.mktemp("soft") / "out"
    shutil.copytree(ensemble, outdir)
    label.main(options(sample_root, outdir, "--no-tta", *SOFT))
    return outdir


def student_options(root: Path, outdir: Path, labelled: Path, *more: object) -> list[str]:
    masks = ("--use-pseudo-label", "--pseudo-label-root", labelled / "masks" / "train")
    return train_options(root, outdir, *masks, *more)


def distilled(outdir: Path) -> set[str]:
    return {name for name in csv_rows(outdir)[0] if name.startswith("loss_distill")}


# --- label.py -------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [("--no-tta",), ("--vote", "soft", "--test-batch-size", 5)])
def test_soft_targets_are_the_mean_of_models_and_views(more, ensemble_outdir, sample_root):
    label.main(options(sample_root, ensemble_outdir, *SOFT, *more))
    models = [load_model(path) for path in best_files(ensemble_outdir)]
    predictor = Predictor(models, VIEWS[:1] if "--no-tta" in more else VIEWS)
    for pair in index_pairs(sample_root / "train")[:2]:
        images = [torch.from_numpy(read_bands(p)).movedim(-1, 0)[None] for p in pair.files[:2]]
        *semantic, change = predictor(*images)
        expected = torch.cat([*semantic, change[:, None]], dim=1)[0].unflatten(2, (-1, CELL))
        expected = expected.unflatten(1, (-1, CELL)).mean(dim=(2, 4)).numpy()
        path = ensemble_outdir / "masks" / "train" / "soft" / f"{pair.name}.png"
        found = read_planes(path).reshape(expected.shape) / 255
        found[:-1] **= 2  # square roots are kept of classes
        assert np.abs(found - expected).max() <= 1 / 255 + 1e-5
        assert np.abs(found[-1] - expected[-1]).max() <= 0.5 / 255 + 1e-5


def test_masks_beside_soft_targets_are_those_without(labelled, ensemble_outdir, sample_root):
    coverage = label.main(options(sample_root, ensemble_outdir, "--no-tta"))
    folder = ensemble_outdir / "masks" / "train"
    hard, soft = read_masks(folder), read_masks(labelled / "masks" / "train")
    assert_same_values(*({k: torch.from_numpy(v) for k, v in m.items()} for m in (hard, soft)))
    assert not (folder / "soft").exists()
    again = label.main(options(sample_root, ensemble_outdir, "--no-tta", *SOFT))
    assert len(list((folder / "soft").iterdir())) == 12  # of other work than masks alone
    assert torch.equal(again.voted, coverage.voted)


def test_killed_work_goes_on(labelled, ensemble_outdir, sample_root, capsys):
    argv = options(sample_root, ensemble_outdir, "--no-tta", *SOFT, "--test-batch-size", 1)
    with before_prediction(15, crash), pytest.raises(CrashError):
        label.main(argv)
    with pytest.raises(OptionError, match=r"label\.py has not come to its end .* of 12 pairs"):
        train.main(student_options(sample_root, ensemble_outdir, ensemble_outdir))
    (ensemble_outdir / "masks" / "train" / "soft" / "00001.png").unlink()
    capsys.readouterr()
    label.main(argv)
    assert "6 pairs were finished already" in capsys.readouterr().out
    found, expected = (
        {p.relative_to(d): read_bands(p) for p in d.glob("masks/train/*/*.png")}
        for d in (ensemble_outdir, labelled)
    )
    assert len(found) == 36 and found.keys() == expected.keys()
    for path, values in expected.items():  # batches of other sizes may differ in last digits
        apart = np.abs(found[path].astype(int) - values).max()
        assert apart <= (path.parts[-2] == "soft"), path


# --- train.py -------------------------------------------------------------------------------


def test_a_resumed_student_is_the_uninterrupted_one(labelled, sample_root, tmp_path, monkeypatch):
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    more = ("--epochs", 2, "--crop-size", 48)
    train.main(student_options(sample_root, whole, labelled, *more))
    assert distilled(whole) == TERMS
    argv = student_options(sample_root, halted, labelled, *more, "--cache", "disk")
    with monkeypatch.context() as patch, pytest.raises(CrashError):
        before_step(patch, STEPS + 2, crash)
        train.main([*argv, "--checkpoint-every", "1"])
    train.main([*argv, "--resume"])
    assert_same_run(halted, whole)
    with pytest.raises(OptionError, match=r"had distill_weights \[8.0, 1.0\]"):
        train.main([*argv, "--resume", "--distill-weights", "4,1"])


def test_weights_of_zero_train_on_the_ground_truth_alone(labelled, sample_root, tmp_path):
    outdirs = [tmp_path / name for name in ("plain", "zero", "change")]
    train.main(train_options(sample_root, outdirs[0]))
    for weights, outdir in zip(("0,0", "8,0"), outdirs[1:], strict=True):
        more = ("--distill-weights", weights)
        train.main(student_options(sample_root, outdir, labelled, *more))
    plain, zero, change = (read_checkpoint(latest_file(outdir)) for outdir in outdirs)
    for name in ("model", "metrics"):
        assert_same_values(zero[name], plain[name])
    assert csv_rows(outdirs[1]) == csv_rows(outdirs[0])
    assert distilled(outdirs[2]) == {"loss_distill_change"}
    name = next(name for name in plain["model"] if name.startswith("change_head"))
    assert not torch.equal(change["model"][name], plain["model"][name])


def test_masks_are_trained_on_where_asked_or_where_there_is_nothing_else(
    labelled, ensemble_outdir, sample_root, tmp_path
):
    train.main(student_options(sample_root, tmp_path / "a", labelled, "--targets", "hard"))
    label.main(options(sample_root, ensemble_outdir, "--no-tta", *SOFT))
    label.main(options(sample_root, ensemble_outdir, "--no-tta"))  # leaves soft targets of old
    student = student_options(sample_root, tmp_path / "b", ensemble_outdir)
    with pytest.raises(OptionError, match=r"no soft targets there; run label\.py --targets soft"):
        train.main([*student, *SOFT])
    train.main(student)
    assert not distilled(tmp_path / "a") and not distilled(tmp_path / "b")
    states = [read_checkpoint(latest_file(tmp_path / name)) for name in "ab"]
    assert_same_values(*(state["model"] for state in states))
    with pytest.raises(OptionError, match="--targets soft needs --use-pseudo-label"):
        train.main(train_options(sample_root, tmp_path, *SOFT))


def test_change_is_distilled_beside_masks(labelled, sample_root, tmp_path):
    """What studies compare: the runs differ in the terms of distillation alone."""
    both, hard = (tmp_path / name for name in ("both", "hard"))
    more = ("--targets", "both", "--cache", "disk", "--distill-weights")
    train.main(student_options(sample_root, both, labelled, *more, "0,0"))
    train.main(student_options(sample_root, hard, labelled, "--targets", "hard"))
    states = [read_checkpoint(latest_file(outdir)) for outdir in (both, hard)]
    assert_same_values(states[0]["model"], states[1]["model"])
    train.main(student_options(sample_root, tmp_path / "all", labelled, *more, "8,1"))
    assert distilled(tmp_path / "all") == TERMS


def test_change_masks_are_distilled_without_classes(binary_root, tmp_path, capsys):
    outdir, student = tmp_path / "out", tmp_path / "student"
    train.main(train_options(binary_root, outdir))
    label.main(options(binary_root, outdir, *SOFT))
    folder = outdir / "masks" / "train"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"soft"}
    assert read_planes(folder / "soft" / "00000.png").shape == (16, 16)
    assert f"soft targets: {folder / 'soft'}" in capsys.readouterr().out
    label.main(options(binary_root, outdir, *SOFT))
    assert "12 pairs were finished already" in capsys.readouterr().out
    train.main(student_options(binary_root, student, outdir))
    assert distilled(student) == {"loss_distill_change"}
    with pytest.raises(OptionError, match="pseudo labels are classes"):
        train.main(student_options(binary_root, student, outdir, "--targets", "hard"))
    with pytest.raises(DataError, match=r"soft targets .* do not"):
        label.main(options(binary_root, outdir))
