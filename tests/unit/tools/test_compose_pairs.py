"""tools/compose_pairs.py: pairs with changes from scenes of one date, in folders."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.classes import SECOND_CLASSES
from datasets.labels import read_label
from datasets.task import load_classes
from tests.helpers.image_files import files_below, read
from tests.helpers.one_date_scenes import IGNORED, SCENES, SIDE, save, single_date_set
from tools import compose_pairs
from tools.checking.inspection import inspect_dataset
from tools.composing.folders import RECORD_FILE
from tools.composing.source import MaskReader, find_scenes, ignoring, split_scenes
from utils.errors import DataError, OptionError, UserError

FOLDERS = ("im1", "im2", "label1", "label2", "truth1", "truth2")


@pytest.fixture(scope="module")
def city(tmp_path_factory) -> Path:
    return single_date_set(tmp_path_factory.mktemp("city"))


@pytest.fixture
def own_city(city, tmp_path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(city, tmp_path / "own_city"))


@pytest.fixture(scope="module")
def composed(city, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("composed") / "root"
    compose(city, root)
    return root


def compose(city: Path, out: Path, *options: object, ignore: tuple = ("--ignore", IGNORED)) -> None:
    paths = ["--images", city / "images", "--masks", city / "masks", "--out", out]
    small = ["--train-pairs", 20, "--val-pairs", 6, "--size", SIDE, "--workers", 1]
    compose_pairs.main([str(part) for part in (*paths, *small, *ignore, *options)])


def test_written_layout_and_check(composed):
    for split, number in (("train", 20), ("val", 6)):
        expected = [f"{i:05d}.png" for i in range(number)]
        for folder in FOLDERS:
            assert sorted(p.name for p in (composed / split / folder).iterdir()) == expected
    classes = load_classes(composed)
    assert classes == SECOND_CLASSES
    for path in composed.glob("*/label1/*.png"):
        label1, label2, truth1, truth2 = (
            read_label(path.parents[1] / folder / path.name, classes) for folder in FOLDERS[2:]
        )
        changed = truth1 != truth2
        np.testing.assert_array_equal(label1, np.where(changed, truth1, 0))
        np.testing.assert_array_equal(label2, np.where(changed, truth2, 0))
        np.testing.assert_array_equal(truth1 == 0, truth2 == 0)
    assert inspect_dataset(composed, classes).findings == []


def test_no_scene_is_in_both_splits(composed, city):
    record = json.loads((composed / RECORD_FILE).read_text())
    train, val = (set(record["scenes"][split]) for split in ("train", "val"))
    assert train and val and not train & val
    for pair, used in record["pairs"].items():
        assert set(used) <= (train if pair.startswith("train") else val)
        assert len(set(used)) == len(used) >= 2
    scenes = find_scenes(city / "images", city / "masks", r"^tile\d")
    for seed in range(5):
        splits = split_scenes(scenes, 0.3, seed)
        places = [{scene.place for scene in splits[split]} for split in ("train", "val")]
        assert not places[0] & places[1]
        assert sum(map(len, splits.values())) == len(scenes)


def test_scenes_chosen_by_name(city, tmp_path):
    listed = tmp_path / "val.txt"
    listed.write_text("tile1_04\ntile3_*\n")
    longer_than_a_file_name = ", ".join(["tile1_04", *["tile3_*"] * 100])
    for text in (str(listed), longer_than_a_file_name):
        compose(city, tmp_path / "out", "--val-scenes", text, "--overwrite")
        record = json.loads((tmp_path / "out" / RECORD_FILE).read_text())
        assert record["scenes"]["val"] == ["tile1_04", "tile3_12", "tile3_13"]


def test_workers_and_restart_change_no_byte(composed, city, tmp_path, capsys):
    out = tmp_path / "out"
    compose(city, out, "--workers", 2)
    written = files_below(out)
    assert written == files_below(composed)
    compose(city, out, "--overwrite", "--seed", 1)
    assert files_below(out) != written
    (out / "train" / "im1" / ".00003.png.abcd1234.tmp").touch()  # a killed run leaves such files
    compose(city, out, "--overwrite")
    assert files_below(out) == written
    capsys.readouterr()
    compose(city, out, "--overwrite", "--train-pairs", 3)
    line = capsys.readouterr().out.splitlines()[0]
    assert re.fullmatch(r"train: 3 pairs of 64 × 64 pixels from 11 scenes, \d+\.\d% changed", line)
    fewer = {name: data for name, data in files_below(out).items() if name.endswith(".png")}
    assert len(fewer) == 9 * len(FOLDERS) and fewer.items() <= written.items()
    compose(city, out, "--overwrite", "--val-pairs", 0, "--val-scenes", "tile0_*")
    assert not (out / "val").exists()
    scenes = json.loads((out / RECORD_FILE).read_text())["scenes"]
    assert len(scenes["train"]) == 10 and not any("tile0_" in name for name in scenes["train"])


def test_mask_formats_say_the_same(composed, own_city, tmp_path):
    expected = {k: v for k, v in files_below(composed).items() if k.endswith(".png")}
    masks = {path: read(path) for path in (own_city / "masks").iterdir()}
    for path, mask in masks.items():
        rgb = SECOND_CLASSES.to_rgb(np.where(mask == IGNORED, 1, mask))
        save(path, np.where(mask[..., None] == IGNORED, 7, rgb).astype(np.uint8))
    compose(own_city, tmp_path / "rgb", "--ignore", "#070707")
    foreign = {str(10 * i): name for i, name in enumerate(SECOND_CLASSES.names)}
    (tmp_path / "map.json").write_text(json.dumps(foreign))
    for path, mask in masks.items():
        save(path, (10 * np.where(mask == IGNORED, 0, mask)).astype(np.uint8))
    compose(own_city, tmp_path / "map", "--class-map", tmp_path / "map.json", ignore=())
    for name in ("rgb", "map"):
        found = files_below(tmp_path / name)
        assert {k: v for k, v in found.items() if k.endswith(".png")} == expected


@pytest.mark.parametrize("ignored", ["4", "tree", "#00ff00", "0,255,0"])
def test_a_class_goes_by_value_name_and_colour_in_any_mask(ignored, city, tmp_path):
    mask = read(city / "masks" / "tile0_01.png")
    path = tmp_path / "a.png"
    read_mask = MaskReader(SECOND_CLASSES, ignoring(SECOND_CLASSES, [ignored]))
    palette = Image.fromarray(mask)
    palette.putpalette(bytes(sum(SECOND_CLASSES.colors, ())))
    rgba = Image.fromarray(SECOND_CLASSES.to_rgb(mask))
    rgba.putalpha(7)  # transparency says nothing
    for image in (Image.fromarray(mask), palette, rgba.convert("RGB"), rgba):
        image.save(path)
        assert np.array_equal(read_mask(path), np.where(mask == 4, 0, mask))
    palette.convert("RGB").convert("LA").save(path)
    with pytest.raises(DataError, match=f"^{path}: mode LA is no label format"):
        read_mask(path)


MASK, SHAPE = "masks/tile1_05.png", (72, 72)


def with_mask(mask: np.ndarray) -> Callable[[Path], None]:
    return lambda city: save(city / MASK, mask.astype(np.uint8))


def with_deep_image(city: Path) -> None:
    save(city / "images/tile1_05.png", np.zeros(SHAPE, np.uint16))


def one_class(city: Path) -> None:
    for path in (city / "masks").iterdir():
        save(path, np.ones(SHAPE, np.uint8))


def one_listed(city: Path) -> None:
    listed = json.loads((city / "classes.json").read_text())[:2]
    (city / "classes.json").write_text(json.dumps(listed))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda city: shutil.rmtree(city / "masks"), r"masks: no such folder; correct --masks"),
        (lambda city: (city / MASK).unlink(), r"tile1_05.png: no partner in .*called tile1_05\.\*"),
        (with_mask(np.ones((71, 72))), r"masks.tile1_05.png: 72 × 71 pixels, but .*has 72 × 72"),
        (with_mask(np.full(SHAPE, 9)), r"05.png: value 9 \(5184 pixels\) is not in .*--class-map"),
        (with_mask(np.zeros(SHAPE)), r"05.png: value 0 .*0 is 'unchanged', which is no class"),
        (lambda city: (city / MASK).write_bytes(b"no PNG"), r"tile1_05.png: cannot be decoded"),
        (with_deep_image, r"tile1_05.png: 1 bands of uint16; pairs are composed of 8-bit"),
        (lambda city: (city / "classes.json").unlink(), r"no classes.json in .* --classes"),
        (one_class, r"1 class in all its masks"),
        (one_listed, r"one class beside 'unchanged'"),
    ],
)
def test_bad_sources_are_named_and_nothing_written(own_city, tmp_path, damage, message):
    damage(own_city)
    with pytest.raises(DataError, match=message):
        compose(own_city, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "73"], r"72 × 72 pixels, less than --size 73"),
        (["--val-scenes", "tile1_05"], r"val: 1 scenes, but a pair needs 2"),
        (["--val-scenes", "nowhere"], r"'nowhere' fits no scene"),
        (["--scene-pattern", "x"], r"'x' is not in its name"),
        (["--scene-pattern", "("], r"--scene-pattern '\(': .*correct the regex"),
        (["--train-pairs", "0", "--val-pairs", "0"], r"nothing to write"),
        (["--size", "8"], r"--size 8: at least 32"),
        (["--changed", "1"], r"--changed 1.0: at most 0.9"),
        (["--ignore", "1,2"], r"--ignore: '1,2' is no value"),
        (["--class-map", "map.json"], r'map those values to "unchanged"'),
    ],
)
def test_bad_options_are_named(city, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        compose(city, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_nothing_of_another_origin_is_removed(composed, city, tmp_path):
    out = Path(shutil.copytree(composed, tmp_path / "out"))
    with pytest.raises(OptionError, match=r"has 156 files of pairs; pass --overwrite"):
        compose(city, out)
    (out / "notes.txt").touch()
    (out / "val" / "im1" / "mine.png").touch()
    with pytest.raises(OptionError, match=r"mine.png: not written by this tool"):
        compose(city, out, "--overwrite")
    (out / "val" / "im1" / "mine.png").unlink()
    (out / RECORD_FILE).unlink()
    with pytest.raises(OptionError, match=r"it has no composed.json"):
        compose(city, out, "--overwrite")
    with pytest.raises(OptionError, match=r"a file"):
        compose(city, city / "classes.json", "--overwrite")
    with pytest.raises(OptionError, match=r"it has no composed.json"):
        compose(city, city, "--overwrite")
    assert len(files_below(out)) == len(files_below(composed))
    assert len(list((city / "images").iterdir())) == SCENES
