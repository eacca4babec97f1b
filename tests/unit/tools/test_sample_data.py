"""Procedural scenes, and tools/make_sample_data.py that writes them."""

from pathlib import Path

import numpy as np
import pytest

from datasets.classes import SECOND_CLASSES
from datasets.pairs import index_pairs
from tests.helpers.faults import assert_one_line, run_script
from tests.helpers.image_files import files_below, read
from tools import make_sample_data
from tools.scenes.sample import SampleSet, write_sample_data
from tools.scenes.scene import Scene, make_scene
from utils.errors import OptionError

FOLDERS = {"im1", "im2", "label1", "label2", "truth1", "truth2"}
CLASSES = set(range(1, 7))
SMALL = SampleSet(3, 2, 48, 64, seed=5)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene((3, 0, index)) for index in range(30)]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sample")
    write_sample_data(root, SMALL)
    return root


def test_seed_split_and_index_decide_the_scene():
    base = make_scene((1, 0, 4), 64, 64)
    again = make_scene([1, 0, 4], 64, 64)
    assert all(np.array_equal(getattr(base, name), getattr(again, name)) for name in vars(base))
    for seed in [(2, 0, 4), (1, 1, 4), (1, 0, 5)]:
        assert not np.array_equal(base.truth1, make_scene(seed, 64, 64).truth1)


def test_labels_are_truth_where_it_changed(scenes):
    for scene in scenes:
        difference = np.abs(scene.image1.astype(int) - scene.image2).max(axis=-1)
        assert np.median(difference[scene.label1 == 0]) >= 4  # unchanged pixels look different too
        changed = scene.truth1 != scene.truth2
        for label, truth in ((scene.label1, scene.truth1), (scene.label2, scene.truth2)):
            assert label.dtype == truth.dtype == np.uint8
            assert np.array_equal(label, np.where(changed, truth, 0))
            assert set(np.unique(truth)) <= CLASSES


def test_all_classes_change_and_a_fair_share_of_the_pixels(scenes):
    for labels in ([s.label1 for s in scenes[:20]], [s.label2 for s in scenes[:20]]):
        assert set(np.unique(np.stack(labels))) == CLASSES | {0}
    share = np.mean([scene.label1 > 0 for scene in scenes])
    assert 0.15 < share < 0.30


@pytest.mark.parametrize(("changed", "pairs"), [(0.014, 24), (0.3, 100)])
def test_a_wanted_share_of_the_pixels_changes_and_rare_change_is_in_few_pairs(changed, pairs):
    sample = SampleSet(100, 0, 32, 32, 0, changed=changed)
    scenes = [make_scene((0, 0, i), 32, 32, sample.changed_in(i)) for i in range(100)]
    shares = [np.mean(scene.label1 > 0) for scene in scenes]
    assert np.mean(shares) == pytest.approx(changed, rel=0.2)
    assert np.count_nonzero(shares) == pytest.approx(pairs, abs=2)
    # Every tenth name is a usual choice of validation pairs.
    assert np.count_nonzero(shares[::10]) == pytest.approx(pairs / 10, abs=1)


def test_nothing_changes_where_no_change_is_wanted():
    scene = make_scene((0, 0, 0), 64, 64, 0.0)
    assert np.array_equal(scene.truth1, scene.truth2)
    assert len(np.unique(scene.truth1)) > 1 and not np.array_equal(scene.image1, scene.image2)


def test_colour_alone_does_not_give_the_class_away(scenes):
    # A scene must need texture and shape: the nearest mean colour may not classify it.
    pixels = np.concatenate([scene.image1[::4, ::4].reshape(-1, 3) for scene in scenes])
    truth = np.concatenate([scene.truth1[::4, ::4].ravel() for scene in scenes])
    means = np.stack([pixels[truth == c].mean(axis=0) for c in sorted(CLASSES)])
    nearest = ((pixels[:, None] - means) ** 2).sum(axis=-1).argmin(axis=1) + 1
    recall = np.mean([(nearest[truth == c] == c).mean() for c in sorted(CLASSES)])
    assert 0.35 < recall < 0.85


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 97), (160, 96)])
def test_any_size(height, width):
    for index in range(12):
        scene = make_scene((0, 0, index), height, width)
        assert scene.image1.shape == scene.image2.shape == (height, width, 3)
        assert scene.image1.dtype == scene.image2.dtype == np.uint8
        assert scene.label1.shape == scene.truth2.shape == (height, width)
    with pytest.raises(ValueError, match="at least 32"):
        make_scene(0, 31, width)


def test_layout_and_content_on_disk(written):
    names = {
        f"{split}/{folder}/{index:05d}.png"
        for split, pairs in (("train", 3), ("val", 2))
        for folder in FOLDERS
        for index in range(pairs)
    }
    assert set(files_below(written)) == names
    scene = make_scene((5, 1, 1), 48, 64)
    for folder, array in (("im1", scene.image1), ("im2", scene.image2), ("truth2", scene.truth2)):
        assert np.array_equal(read(written / "val" / folder / "00001.png"), array)
    label = read(written / "val" / "label1" / "00001.png")
    assert np.array_equal(SECOND_CLASSES.to_index(label), scene.label1)


def test_neither_a_restart_nor_processes_change_a_byte(written, tmp_path):
    (tmp_path / "val" / "label1").mkdir(parents=True)
    (tmp_path / "val" / "label1" / "00000.png").write_bytes(b"cut off")
    write_sample_data(tmp_path, SMALL)
    assert files_below(tmp_path) == files_below(written)
    for workers in (1, 2):
        write_sample_data(tmp_path / str(workers), SampleSet(10, 6, 32, 32, 5), workers)
    assert files_below(tmp_path / "1") == files_below(tmp_path / "2")


def test_label_formats_agree(written, tmp_path):
    write_sample_data(tmp_path, SampleSet(3, 2, 48, 64, 5, "index"))
    labels = sorted(tmp_path.glob("*/label[12]/*.png"))
    assert len(labels) == 10 and any(read(path).any() for path in labels)
    for path in labels:
        rgb = read(written / path.relative_to(tmp_path))
        assert np.array_equal(SECOND_CLASSES.to_index(rgb), read(path))


def make(root: Path, train_pairs: int, *options: str) -> None:
    small = ["--val-pairs", "1", "--size", "32x40", "--seed", "9"]
    make_sample_data.main([str(root), "--train-pairs", str(train_pairs), *small, *options])


def test_tool_writes_refuses_and_overwrites(tmp_path, capsys):
    make(tmp_path / "new", 3)
    (line,) = capsys.readouterr().out.splitlines()
    truths = [read(tmp_path / "new" / "val" / f"truth{d}" / "00000.png") for d in (1, 2)]
    assert truths[0].shape == (32, 40)
    assert line.startswith("3 training and 1 validation pairs of 32x40 pixels, ")
    before = files_below(tmp_path / "new")
    with pytest.raises(OptionError, match="--overwrite"):
        make(tmp_path / "new", 2)
    assert files_below(tmp_path / "new") == before
    make(tmp_path / "new", 2, "--overwrite")
    expected = {name: before[name] for name in before if not name.endswith("00002.png")}
    assert files_below(tmp_path / "new") == expected


def test_what_a_killed_run_left_is_overwritten_without_empty_folders(tmp_path):
    make(tmp_path, 2)
    (tmp_path / "train/label1/00001.png").rename(tmp_path / "train/label1/.00001.png.abcd1234.tmp")
    (tmp_path / "train/label2/00001.png").unlink()
    make(tmp_path, 2, "--overwrite", "--label-format", "binary")
    for split in ("train", "val"):
        found = {path.name for path in (tmp_path / split).iterdir()}
        assert found == {"im1", "im2", "truth1", "truth2", "label"}
    assert [pair.name for pair in index_pairs(tmp_path / "train")] == ["00000", "00001"]


def test_tool_refuses_bad_options(tmp_path, monkeypatch, capsys):
    for options in (["--size", "16"], ["--size", "big"], ["--seed", "-1"], ["--changed", "2"]):
        with pytest.raises(SystemExit):
            make(tmp_path / "out", 1, *options)
        assert options[0] in capsys.readouterr().err
    status, err = run_script(make_sample_data, ["a", "--out", "b"], monkeypatch, capsys)
    assert_one_line(status, err, "name the folder once")
    status, err = run_script(make_sample_data, ["--changed", "0.4"], monkeypatch, capsys)
    assert_one_line(status, err, "by 0.3 at the most")
    assert not list(tmp_path.iterdir())
