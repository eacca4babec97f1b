import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.classes import SECOND_CLASSES
from datasets.pairs import index_pairs
from tools import make_sample_data
from tools.scenes.scene import Scene, make_scene, write_sample_data

TOOL = Path(__file__).resolve().parents[3] / "tools" / "make_sample_data.py"
FOLDERS = {"im1", "im2", "label1", "label2", "truth1", "truth2"}
CLASSES = set(range(1, 7))


def read_bytes(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def read_array(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def same(a: Scene, b: Scene) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


def run_tool(*options: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, str(TOOL), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=cwd)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene((3, 0, index)) for index in range(30)]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sample")
    write_sample_data(root, 3, 2, 48, 64, seed=5)
    return root


def test_same_seed_same_scene():
    assert same(make_scene((1, 0, 4), 64, 64), make_scene((1, 0, 4), 64, 64))
    assert same(make_scene(7, 64, 64), make_scene([7], 64, 64))


def test_other_seed_split_or_index_other_scene():
    base = make_scene((1, 0, 4), 64, 64)
    for seed in [(2, 0, 4), (1, 1, 4), (1, 0, 5)]:
        assert not np.array_equal(base.truth1, make_scene(seed, 64, 64).truth1)


def test_labels_are_truth_where_it_changed(scenes):
    for scene in scenes:
        changed = scene.truth1 != scene.truth2
        for label, truth in ((scene.label1, scene.truth1), (scene.label2, scene.truth2)):
            assert label.dtype == truth.dtype == np.uint8
            assert np.array_equal(label, np.where(changed, truth, 0))
            assert set(np.unique(truth)) <= CLASSES
        assert np.array_equal(scene.label1 > 0, scene.label2 > 0)


def test_all_classes_change_at_both_dates(scenes):
    for labels in ([s.label1 for s in scenes[:20]], [s.label2 for s in scenes[:20]]):
        assert set(np.unique(np.stack(labels))) == CLASSES | {0}


def test_a_fair_share_changes(scenes):
    share = np.mean([scene.label1 > 0 for scene in scenes])
    assert 0.15 < share < 0.30


def test_unchanged_pixels_look_different_too(scenes):
    for scene in scenes:
        difference = np.abs(scene.image1.astype(int) - scene.image2).max(axis=-1)
        assert np.median(difference[scene.label1 == 0]) >= 4


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
        for name in ("label1", "label2", "truth1", "truth2"):
            assert getattr(scene, name).shape == (height, width)


def test_too_small_is_refused():
    with pytest.raises(ValueError, match="at least 32"):
        make_scene(0, 31, 64)


def test_layout_and_content_on_disk(written):
    names = {
        f"{split}/{folder}/{index:05d}.png"
        for split, pairs in (("train", 3), ("val", 2))
        for folder in FOLDERS
        for index in range(pairs)
    }
    assert set(read_bytes(written)) == names
    scene = make_scene((5, 1, 1), 48, 64)
    for folder, array in (("im1", scene.image1), ("im2", scene.image2), ("truth2", scene.truth2)):
        assert np.array_equal(read_array(written / "val" / folder / "00001.png"), array)
    label = read_array(written / "val" / "label1" / "00001.png")
    assert np.array_equal(SECOND_CLASSES.to_index(label), scene.label1)


def test_a_restart_changes_no_byte(written, tmp_path):
    expected = read_bytes(written)
    write_sample_data(tmp_path, 3, 2, 48, 64, seed=5)
    assert read_bytes(tmp_path) == expected
    (tmp_path / "train" / "im2" / "00001.png").unlink()
    (tmp_path / "val" / "label1" / "00000.png").write_bytes(b"cut off")
    write_sample_data(tmp_path, 3, 2, 48, 64, seed=5)
    assert read_bytes(tmp_path) == expected


def test_processes_write_the_same(tmp_path):
    for workers in (1, 2):
        write_sample_data(tmp_path / str(workers), 10, 6, 32, 32, seed=5, workers=workers)
    assert read_bytes(tmp_path / "1") == read_bytes(tmp_path / "2")


def test_label_formats_agree(written, tmp_path):
    write_sample_data(tmp_path, 3, 2, 48, 64, seed=5, label_format="index")
    labels = sorted(tmp_path.glob("*/label[12]/*.png"))
    assert len(labels) == 10
    for path in labels:
        index = read_array(path)
        rgb = read_array(written / path.relative_to(tmp_path))
        assert index.ndim == 2
        assert np.array_equal(SECOND_CLASSES.to_index(rgb), index)
    assert any(read_array(path).any() for path in labels)


def test_unknown_label_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'index'"):
        write_sample_data(tmp_path, 1, 0, 32, 32, seed=0, label_format="gray")
    assert not read_bytes(tmp_path)


def test_tool_writes_refuses_and_overwrites(tmp_path):
    root = tmp_path / "new" / "sample"
    small = ("--val-pairs", 1, "--size", "32x40", "--seed", 9)
    first = run_tool("--out", root, "--train-pairs", 3, *small)
    assert first.returncode == 0, first.stderr
    assert len(first.stdout.splitlines()) == 1
    assert "3 training and 1 validation pairs of 32x40" in first.stdout
    before = read_bytes(root)
    assert len(before) == 4 * 6

    refused = run_tool(root, "--train-pairs", 2, *small)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ") and "--overwrite" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert read_bytes(root) == before

    second = run_tool(root, "--train-pairs", 2, *small, "--overwrite")
    assert second.returncode == 0, second.stderr
    after = read_bytes(root)
    assert after == {name: before[name] for name in before if not name.endswith("00002.png")}


def test_another_label_format_leaves_no_empty_folder(tmp_path):
    small = [str(tmp_path), "--train-pairs", "1", "--val-pairs", "1", "--size", "32"]
    for label_format, folders in (
        ("rgb", {"label1", "label2"}),
        ("binary", {"label"}),
        ("rgb", {"label1", "label2"}),
    ):
        make_sample_data.main([*small, "--overwrite", "--label-format", label_format])
        for split in ("train", "val"):
            found = {path.name for path in (tmp_path / split).iterdir()}
            assert found == {"im1", "im2", "truth1", "truth2", *folders}


def test_what_a_killed_run_left_is_overwritten_too(tmp_path):
    small = [str(tmp_path), "--train-pairs", "2", "--val-pairs", "1", "--size", "32"]
    make_sample_data.main(small)
    (tmp_path / "train/label1/00001.png").rename(tmp_path / "train/label1/.00001.png.abc.tmp")
    (tmp_path / "train/label2/00001.png").unlink()
    make_sample_data.main([*small, "--overwrite", "--label-format", "binary"])
    assert not (tmp_path / "train/label1").exists()
    assert [pair.name for pair in index_pairs(tmp_path / "train")] == ["00000", "00001"]


def test_tool_never_overwrites_real_data(tmp_path):
    for folder in ("im1", "im2", "label1", "label2"):
        path = tmp_path / "train" / folder / "00003.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"precious")
    before = read_bytes(tmp_path)
    refused = run_tool(tmp_path, "--train-pairs", 1, "--val-pairs", 0, "--overwrite")
    assert refused.returncode == 2
    assert "is not sample data" in refused.stderr
    assert read_bytes(tmp_path) == before


@pytest.mark.parametrize(
    "options", [("--size", "16"), ("--size", "big"), ("--seed", "-1"), ("a", "--out", "b")]
)
def test_tool_refuses_bad_options(options, tmp_path):
    result = run_tool(*options, cwd=tmp_path)
    assert result.returncode == 2
    assert "error: " in result.stderr and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())
