"""Which masks of a folder are finished, by their notes, and who may write there."""

import json
import os
import shutil
from functools import partial

import pytest
import torch

import train
from datasets.classes import SECOND_CLASSES
from datasets.pairs import index_pairs
from datasets.task import Task
from engine.config import TrainConfig
from engine.predict import MANIFEST, mask_set, open_masks, unfinished
from engine.run import Run, check_resumable
from models.checkpoint import Checkpoint
from tests.helpers.runs import PREFIX, train_options
from utils import cli
from utils.errors import OptionError, UserError
from utils.locks import exclusive

TASK = Task(SECOND_CLASSES)
KEY = {"tta": True, "min_confidence": 0.1}
OTHER = {**KEY, "tta": False}
INPUT, OLDER = 200, 100  # seconds since 1970
MAPS = torch.ones(3, 8, 8, dtype=torch.uint8)


@pytest.fixture
def pairs(write_pairs):
    found = index_pairs(write_pairs(dict.fromkeys("abc", (8, 8))))
    for path in (path for pair in found for path in pair.files if path):
        os.utime(path, (INPUT, INPUT))
    return found


def begin(folder, pairs, key=KEY, overwrite=False):
    with open_masks(folder, TASK, key, pairs, overwrite) as writer:
        return [pairs[i].name for i in writer.finished]


@pytest.fixture
def folder(pairs, tmp_path):
    """Masks of a and b; those of c an earlier work has left."""
    folder = tmp_path / "masks"
    for key, names in ((OTHER, "c"), (KEY, "ab")):
        with open_masks(folder, TASK, key, pairs, False) as writer:
            assert writer.finished == []
            writer.write(list(names), MAPS[: len(names)], MAPS[: len(names)])
    return folder


def test_masks_of_this_work_are_finished(folder, pairs):
    assert begin(folder, pairs) == ["a", "b"]
    assert [pair.name for pair in unfinished(folder, pairs)] == ["c"]
    (folder / "im2" / "a.png").unlink()
    assert begin(folder, pairs) == ["b"]
    assert [pair.name for pair in unfinished(folder, pairs)] == ["a", "c"]


def test_a_copy_that_keeps_no_times_is_as_finished(folder, pairs, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    os.utime(copy / MANIFEST)
    assert [pair.name for pair in unfinished(copy, pairs)] == ["c"]
    assert begin(copy, pairs) == ["a", "b"]


@pytest.mark.parametrize("file", ["image1", "image2", "label1", "label2"])
def test_a_pair_whose_files_have_changed_is_made_again(file, folder, pairs):
    os.utime(getattr(pairs[0], file), (OLDER, OLDER))
    assert begin(folder, pairs) == ["b"]


@pytest.mark.parametrize(
    "change", [{"key": OTHER}, {"overwrite": True}, "", "[]", "\0\0", '{"tta": tr']
)
def test_other_work_and_a_damaged_manifest_make_masks_again(change, folder, pairs):
    if isinstance(change, str):
        (folder / MANIFEST).write_text(change, encoding="utf-8")
        assert len(unfinished(folder, pairs)) == 3
        assert begin(folder, pairs) == ["a", "b"]  # of the same work all the same
        return
    made = begin(folder, pairs, **change)
    assert made == (["c"] if "key" in change else [])
    assert json.loads((folder / MANIFEST).read_text("utf-8"))["tta"] is ("key" not in change)


def test_without_a_manifest_masks_are_taken_as_they_are(folder, pairs):
    (folder / MANIFEST).unlink()
    assert unfinished(folder, pairs) == []
    assert mask_set(folder) == ""


def test_masks_of_an_older_program_are_named(folder, pairs):
    (folder / MANIFEST).write_text('{"tta": true}', encoding="utf-8")
    with pytest.raises(OptionError, match=r"masks of an older label.py.* remove manifest.json"):
        unfinished(folder, pairs)


def test_one_program_at_a_time_writes_into_a_folder(folder, pairs):
    refusal = pytest.raises(UserError, match=r"masks: .*process \d+ on .*since .* is writing masks")
    with open_masks(folder, TASK, KEY, pairs, False), refusal:
        begin(folder, pairs, OTHER)
    assert begin(folder, pairs) == ["a", "b"]


def test_half_written_masks_of_a_killed_run_go(folder, pairs):
    left = [folder / "im1" / ".00001.png.abcd_1z9.tmp", folder / "im2" / ".a.b.png.00000000.tmp"]
    left.append(folder / ".metrics.json.abcdefgh.tmp")
    others = [folder / "im1" / name for name in (".00001.png.tmp", "00001.png.abcdefgh.tmp")]
    for path in (*left, *others):
        path.write_bytes(b"half")
    begin(folder, pairs)
    assert [path.exists() for path in (*left, *others)] == [False] * 3 + [True] * 2


def test_a_run_keeps_no_state_of_other_masks(folder, pairs, sample_root, tmp_path):
    config = cli.parse(TrainConfig, train_options(sample_root, tmp_path))
    run = Run(config, TASK, {}, (folder, mask_set(folder)))
    state = {"config": {}, "model": {}}
    run.save_latest(state)
    before = run.latest.read_bytes()
    begin(folder, pairs, OTHER)
    for save in (run.save_latest, partial(run.save_best, rank=0.5)):
        with pytest.raises(OptionError, match="masks: other masks than those that this run began"):
            save(state)
    assert run.latest.read_bytes() == before
    assert list(run.folder.iterdir()) == [run.latest]


def test_a_resumed_run_had_the_defaults_of_options_that_it_does_not_know(sample_root, tmp_path):
    argv = train_options(sample_root, tmp_path, "--crop-size", 32, "--crops-per-image", 3)
    config = cli.parse(TrainConfig, argv)
    options = config.fixed_options()
    del options["crops_per_image"]
    identity = {"classes": {"names": []}, "split": {}, "labelled_dates": {}, "mask_set": ""}
    saved = Checkpoint(tmp_path, None, {}, identity | {"training": {}, "options": options})
    with pytest.raises(OptionError, match="the run to resume had crops_per_image 1;"):
        check_resumable(saved, identity, config.fixed_options())


def test_two_runs_of_one_model_are_not_trained_into_one_outdir(sample_root, tmp_path):
    models = tmp_path / "models"
    live = models / f".{PREFIX}_latest.pth.abcdefgh.tmp"
    with exclusive(models / f".{PREFIX}.lock", "this model's run"):
        live.write_bytes(b"half")
        with pytest.raises(UserError, match=r"models: .* is writing this model's run there"):
            train.main(train_options(sample_root, tmp_path))
        assert live.exists()


def test_half_written_checkpoints_of_a_killed_run_go(sample_root, tmp_path):
    config = cli.parse(TrainConfig, train_options(sample_root, tmp_path, "--backbone", "x_small"))
    left = tmp_path / "models" / ".fcn_x_small_latest.pth.abcdefgh.tmp"
    other = tmp_path / "models" / ".fcn_x_small_wide_latest.pth.abcdefgh.tmp"  # of a longer name
    left.parent.mkdir()
    for path in (left, other):
        path.write_bytes(b"half")
    Run(config, TASK, {})
    assert [path.exists() for path in (left, other)] == [False, True]
