"""test.py: masks, scores, restarts, batches and time limits."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import test as predict
import train
from engine.predict import MANIFEST
from models.decoding import Decoding
from tests.helpers.runs import (
    VAL_NAMES,
    assert_metrics,
    best_files,
    keys,
    options,
    read_masks,
    score_of,
    train_options,
)
from tools.scoring.folders import epoch_choice
from utils.tensor_files import read_checkpoint


@pytest.mark.parametrize("tta", [(), ("--tta",)])
def test_prediction_without_labels(tta, ensemble_outdir, unlabelled_val_root, capsys):
    assert predict.main(options(unlabelled_val_root, ensemble_outdir, *tta)) is None
    folder = ensemble_outdir / "masks" / "test"
    assert set(read_masks(folder)) == keys(VAL_NAMES)
    assert not (folder / "metrics.json").exists()
    printed = capsys.readouterr().out
    place = unlabelled_val_root / "val"
    assert printed.startswith(f"predicting {place}: 4 pairs with 2 models, 1 × cpu:\n")
    assert "mIoU" not in printed


@pytest.mark.parametrize(
    ("amp", "decode"), [("off", "independent"), ("bf16", "independent"), ("off", "joint")]
)
def test_one_checkpoint_has_one_score(amp, decode, sample_root, tmp_path, capsys):
    """In training, evaluated alone and by test.py, whatever the batches: digit for digit."""
    model = ("--model", "pspnet", "--backbone", "hrnet_w18_small", "--amp", amp)
    once = ("--lr", 1e-3, "--decode", decode)
    trained = train.main(train_options(sample_root, tmp_path, *model, *once))
    [path] = best_files(tmp_path)
    saved = read_checkpoint(path)
    assert saved["metrics"] == trained.to_dict() and trained.iou_changed > 0
    decoding = Decoding(**saved["decoding"])
    assert decoding.name == decode and decoding.same_class == 0 and 0.2 < decoding.by_chance < 0.5
    said = f"{'float32' if amp == 'off' else amp}, 1 view, 1 thread, cpu, decoding {decode}"
    assert capsys.readouterr().out.count(said) == 1
    for size in (1, 16):
        again = (*model, "--load-from", path, "--val-batch-size", size)
        assert train.main(train_options(sample_root, tmp_path, *again)) == trained
        more = ("--checkpoints", path, "--amp", amp, "--test-batch-size", size, "--overwrite")
        assert predict.main(options(sample_root, tmp_path, *more)) == trained
        assert capsys.readouterr().out.count(said) == 2
    folder = tmp_path / "masks" / "test"
    assert_metrics(score_of(folder, sample_root / "val"), trained)
    found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert found["score"] == trained.score and found["iou"]["tree"] == trained.class_iou[4]
    assert found["checkpoints"] == [path.name] and found["pairs"] == 4
    assert {key: found[key] for key in saved["scored_with"]} == saved["scored_with"]
    assert saved["scored_with"]["decoding"] == found["decoding"] == decoding.title


def test_masks_of_a_joint_test_have_two_classes_where_they_change(fcn_run, sample_root, tmp_path):
    argv = options(sample_root, tmp_path, "--checkpoints", fcn_run.best)
    folder = tmp_path / "masks" / "test"

    def kept() -> int:
        """Pixels that change within a class."""
        masks = read_masks(folder)
        dates = ([masks[f"{date}/{name}"] for name in VAL_NAMES] for date in ("im1", "im2"))
        first, second = map(np.stack, dates)
        assert ((first > 0) == (second > 0)).all() and (first > 0).any()
        return int(((first == second) & (first > 0)).sum())

    alone = (*argv, "--decode", "independent")
    independent = predict.main(alone)
    told = (folder / MANIFEST).read_text(encoding="utf-8")
    assert kept() > 0 and "decoding" not in told  # masks of older versions go on
    assert predict.main(argv) != independent
    assert kept() == 0
    used = read_checkpoint(fcn_run.best)["decoding"]
    assert used["name"] == "joint"
    assert json.loads((folder / MANIFEST).read_text())["decoding"] == used
    assert predict.main(alone) == independent
    assert kept() > 0 and (folder / MANIFEST).read_text(encoding="utf-8") == told


def test_a_test_folder_is_predicted_and_val_chose_the_epoch(fcn_run, sample_root, tmp_path, capsys):
    root, argv = tmp_path / "root", ("--checkpoints", fcn_run.best)
    shutil.copytree(sample_root, root)
    predict.main(options(root, tmp_path / "val", *argv))
    assert "epoch chosen on these pairs" in capsys.readouterr().out
    for path in root.glob("val/*/*"):
        if path.stem in VAL_NAMES[2:]:
            folder = root / "test" / path.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            path.rename(folder / f"t{path.name}")
    for folder in ("im1", "im2", "label1", "label2"):  # and a pair that is trained on
        shutil.copy(root / "train" / folder / "00005.png", root / "test" / folder)
    metrics = predict.main(options(root, tmp_path, *argv))
    printed = capsys.readouterr().out
    assert printed.startswith(f"predicting {root / 'test'}: 3 pairs with 1 model, 1 × cpu:\n")
    assert "was trained on 1 of the 3 pairs; scores" in printed
    assert "epoch chosen on 4 other pairs\n" in printed
    folder = tmp_path / "masks/test"
    assert len(list((folder / "im1").iterdir())) == 3
    found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert found["score"] == metrics.score
    assert found["epoch_choice"] == epoch_choice(folder) == "epoch chosen on 4 other pairs"
    train.main(options(root, tmp_path, "--load-from", fcn_run.best))
    [line] = [text for text in capsys.readouterr().out.splitlines() if f"{fcn_run.best}  (" in text]
    assert line.endswith("; epoch chosen on these pairs)")


def test_images_that_say_nothing_take_the_classes_of_the_checkpoint(
    custom_root, custom_run, binary_root, tmp_path
):
    best = best_files(custom_run)
    for folder in ("im1", "im2"):
        shutil.copytree(custom_root / "val" / folder, tmp_path / "images/test" / folder)
    predict.main(options(tmp_path / "images", tmp_path, "--checkpoints", *best))
    told = options(custom_root, tmp_path / "told", "--checkpoints", *best)
    predict.main(told)
    masks = [folder / "masks/test/im1/00000.png" for folder in (tmp_path, tmp_path / "told")]
    pictures = [Image.open(mask) for mask in masks]
    assert pictures[0].tobytes() == pictures[1].tobytes()
    assert pictures[0].getpalette() == pictures[1].getpalette()


def test_prediction_of_the_validation_pairs(fcn_run, sample_root, tmp_path):
    names = tmp_path / "val.txt"
    names.write_text("00003.png\n00005.png\n", encoding="utf-8")
    more = ("--split", "val", "--val-list", names, "--checkpoints", fcn_run.best)
    metrics = predict.main(options(sample_root, tmp_path, *more))
    folder = tmp_path / "masks" / "val"
    assert set(read_masks(folder)) == keys(["00003", "00005"])
    assert_metrics(score_of(folder, sample_root / "train"), metrics)
    assert not (tmp_path / "masks" / "test").exists()


def test_scores_include_finished_pairs(fcn_run, sample_root, tmp_path, capsys):
    argv = options(sample_root, tmp_path, "--checkpoints", fcn_run.best, "--test-batch-size", 2)
    first = predict.main(argv)
    (tmp_path / "masks" / "test" / "im1" / "00003.png").unlink()
    assert predict.main(argv) == first
    printed = capsys.readouterr().out
    assert "2 pairs were finished already (--overwrite makes them again)" in printed
    assert predict.main(argv) == first
    assert " 0.0 pairs/s)" in capsys.readouterr().out  # of those predicted now


def test_other_options_or_overwrite_make_all_again(fcn_run, sample_root, tmp_path):
    argv = options(sample_root, tmp_path, "--checkpoints", fcn_run.best)
    masks = (tmp_path / "masks" / "test").glob
    predict.main(argv)
    for more in (["--tta"], ["--tta", "--overwrite"]):
        before = {path: path.stat().st_mtime_ns for path in masks("im?/*.png")}
        predict.main([*argv, *more])
        assert len(before) == 8
        assert all(path.stat().st_mtime_ns != time for path, time in before.items())


def test_masks_that_training_wrote_are_made_again(fcn_run, sample_root, tmp_path):
    more = ("--checkpoints", fcn_run.best, "--split", "val")
    predict.main(options(sample_root, tmp_path, *more))
    manifest = tmp_path / "masks" / "val" / MANIFEST
    before = manifest.read_text(encoding="utf-8")
    load = ("--load-from", fcn_run.best, "--save-mask")
    train.main(options(sample_root, tmp_path, *load))
    assert manifest.read_text(encoding="utf-8") != before


def test_batch_size_does_not_change_the_masks(ensemble_outdir, sample_root):
    found = []
    for size in (1, 4):
        predict.main(options(sample_root, ensemble_outdir, "--tta", "--test-batch-size", size))
        found.append(read_masks(ensemble_outdir / "masks" / "test"))
        (ensemble_outdir / "masks" / "test" / MANIFEST).unlink()
    differing = sum(int((found[0][key] != found[1][key]).sum()) for key in found[0])
    assert differing <= 2  # of 32,768: convolutions may round otherwise


@pytest.mark.parametrize("limit_s", [1000, 0.001])
def test_a_time_limit_is_kept_where_it_can_be(limit_s, fcn_run, sample_root, tmp_path, capsys):
    more = ("--checkpoints", fcn_run.best, "--test-batch-size", 2)
    views = ("--tta",) if limit_s == 1000 else ()
    free = predict.main(options(sample_root, tmp_path / "free", *more, *views))
    capsys.readouterr()
    limited = predict.main(options(sample_root, tmp_path, *more, "--tta", "--time-limit", limit_s))
    assert_metrics(limited, free)
    assert set(read_masks(tmp_path / "masks" / "test")) == keys(VAL_NAMES)
    printed = capsys.readouterr().out
    missed = limit_s < 1
    assert ("1 of 6 views from pair 0 on, to end in time" in printed) == missed
    assert ("time limit missed by" in printed) == missed
    assert ("views from pair" in printed) == missed


def test_masks_of_another_data_set_do_not_count(sample_root, fcn_run, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(sample_root, other)
    for root in (sample_root, other):
        predict.main(options(root, tmp_path / "out", "--checkpoints", *best_files(fcn_run.outdir)))
        assert "finished already" not in capsys.readouterr().out
