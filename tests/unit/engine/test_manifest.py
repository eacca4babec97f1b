"""Which masks of a folder are finished, by its manifest, and who may write there."""

import json
import os
import time

import pytest
import torch

from datasets.classes import SECOND_CLASSES
from datasets.pairs import index_pairs
from datasets.task import Task
from engine.config import TrainConfig
from engine.predict import LEFTOVER_AGE_S, MANIFEST, MaskWriter, begin_work, unfinished
from engine.run import Run
from tests.helpers.runs import train_options
from utils import cli
from utils.errors import UserError

TASK = Task(SECOND_CLASSES)
KEY = {"tta": True, "min_confidence": 0.1, "classes": SECOND_CLASSES.to_dict()}
INPUT, START, MASK, LATER = 100, 200, 300, 400  # seconds since 1970


@pytest.fixture
def pairs(write_pairs):
    found = index_pairs(write_pairs(dict.fromkeys("abc", (8, 8))))
    for path in (path for pair in found for path in pair.files if path):
        os.utime(path, (INPUT, INPUT))
    return found


def begin(folder, pairs, key=KEY, overwrite=False, task=TASK):
    return [pairs[i].name for i in begin_work(folder, task, key, overwrite, pairs)]


@pytest.fixture
def folder(pairs, tmp_path):
    """Masks of a and b; those of c an earlier work has left."""
    folder = tmp_path / "masks"
    assert begin(folder, pairs) == []
    os.utime(folder / MANIFEST, (START, START))
    maps = torch.ones(3, 8, 8, dtype=torch.uint8)
    with MaskWriter(folder, TASK) as writer:
        writer.write(["a", "b", "c"], maps, maps)
    for path in folder.glob("im?/*.png"):
        os.utime(path, (INPUT, INPUT) if path.stem == "c" else (MASK, MASK))
    return folder


def test_masks_of_this_work_are_finished(folder, pairs):
    assert begin(folder, pairs) == ["a", "b"]
    assert [pair.name for pair in unfinished(folder, pairs)] == ["c"]
    (folder / "im2" / "a.png").unlink()
    assert begin(folder, pairs) == ["b"]
    assert [pair.name for pair in unfinished(folder, pairs)] == ["a", "c"]


@pytest.mark.parametrize("file", ["image1", "image2", "label1", "label2"])
def test_a_pair_whose_files_have_changed_is_made_again(file, folder, pairs):
    os.utime(getattr(pairs[0], file), (LATER, LATER))
    assert begin(folder, pairs) == ["b"]


@pytest.mark.parametrize(
    "change", [{"key": {**KEY, "tta": False}}, {"overwrite": True}, "", "[]", "\0\0", '{"tta": tr']
)
def test_other_work_and_a_damaged_manifest_make_all_masks_again(change, folder, pairs):
    if isinstance(change, str):
        (folder / MANIFEST).write_text(change, encoding="utf-8")
        change = {}
    assert begin(folder, pairs, **change) == []
    key = change.get("key", KEY)
    assert json.loads((folder / MANIFEST).read_text(encoding="utf-8")) == key
    assert begin(folder, pairs, key) == []
    assert len(unfinished(folder, pairs)) == 3


def test_without_a_manifest_masks_are_taken_as_they_are(folder, pairs):
    (folder / MANIFEST).unlink()
    assert unfinished(folder, pairs) == []


def test_a_program_ends_when_another_begins_in_its_folder(folder, pairs):
    mask = torch.zeros(1, 8, 8, dtype=torch.uint8)
    before = (folder / "im1" / "a.png").read_bytes()
    refusal = pytest.raises(UserError, match="another program has begun to write its masks there")
    with refusal, MaskWriter(folder, TASK) as writer:
        begin(folder, pairs, {"tta": False})
        writer.write(["a"], mask, mask)
    assert (folder / "im1" / "a.png").read_bytes() == before


def test_half_written_masks_of_a_killed_run_go(folder, pairs):
    left = [folder / "im1" / ".00001.png.abcd_1z9.tmp", folder / "im2" / ".a.b.png.00000000.tmp"]
    left.append(folder / ".metrics.json.abcdefgh.tmp")
    others = [folder / "im1" / name for name in (".00001.png.tmp", "00001.png.abcdefgh.tmp")]
    young = folder / "im2" / ".00001.png.abcdefgh.tmp"  # another program is writing it just now
    for path in (*left, *others, young):
        path.write_bytes(b"half")
        if path != young:
            os.utime(path, (0, time.time() - 2 * LEFTOVER_AGE_S))
    begin(folder, pairs)
    assert [path.exists() for path in (*left, *others, young)] == [False] * 3 + [True] * 3


def test_half_written_checkpoints_of_a_killed_run_go(sample_root, tmp_path):
    config = cli.parse(TrainConfig, train_options(sample_root, tmp_path, "--backbone", "x_small"))
    left = tmp_path / "models" / ".fcn_x_small_latest.pth.abcdefgh.tmp"
    other = tmp_path / "models" / ".fcn_x_small_wide_latest.pth.abcdefgh.tmp"  # of a longer name
    left.parent.mkdir()
    for path in (left, other):
        path.write_bytes(b"half")
    Run(config, TASK, {})
    assert [path.exists() for path in (left, other)] == [False, True]
