"""tools/compose_pairs.py: pairs with changes from scenes of one date, in folders."""

import json
import re
import shutil
import subprocess
import sys
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
from tools.composing.source import MaskReader, find_scenes, split_scenes
from utils.errors import DataError, OptionError, UserError

TOOL = Path(__file__).resolve().parents[3] / "tools" / "compose_pairs.py"
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


def compose(city: Path, out: Path, *options: object) -> None:
    paths = ["--images", city / "images", "--masks", city / "masks", "--out", out]
    small = ["--train-pairs", 20, "--val-pairs", 6, "--size", SIDE, "--ignore", IGNORED]
    compose_pairs.main([str(part) for part in (*paths, *small, "--workers", 1, *options)])


def test_written_layout_and_check(composed):
    names = {
        "train": [f"{i:05d}.png" for i in range(20)],
        "val": [f"{i:05d}.png" for i in range(6)],
    }
    for split, expected in names.items():
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
    report = inspect_dataset(composed, classes)
    assert [finding.kind for finding in report.findings] == []


def test_no_scene_is_in_both_splits(composed, city):
    record = json.loads((composed / "composed.json").read_text())
    train, val = (set(record["scenes"][split]) for split in ("train", "val"))
    assert train
    assert val
    assert not train & val
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
    for text in (str(listed), "tile1_04, tile3_*"):
        chosen = compose_pairs._val_scenes(text)
        splits = split_scenes(find_scenes(city / "images", city / "masks"), chosen, 0)
        assert [s.name for s in splits["val"]] == ["tile1_04", "tile3_12", "tile3_13"]


def test_workers_and_restart_change_no_byte(composed, city, tmp_path):
    out = tmp_path / "out"
    compose(city, out, "--workers", 2)
    written = files_below(out)
    assert written == files_below(composed)
    compose(city, out, "--overwrite", "--seed", 1)
    assert files_below(out) != written
    (out / "train" / "im1" / ".00003.png.abc.tmp").touch()  # a killed run leaves such files
    compose(city, out, "--overwrite")
    assert files_below(out) == written
    compose(city, out, "--overwrite", "--train-pairs", 3)
    fewer = files_below(out)
    assert all(written[name] == fewer[name] for name in fewer if name.endswith(".png"))
    assert len(fewer) == 2 + 9 * len(FOLDERS)
    compose(city, out, "--overwrite", "--val-pairs", 0, "--val-scenes", "tile0_*")
    assert not (out / "val").exists()
    assert not any(
        "tile0_" in name for name in json.loads((out / RECORD_FILE).read_text())["scenes"]["train"]
    )


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
    argv = ["--images", own_city / "images", "--masks", own_city / "masks", "--size", SIDE]
    argv += ["--out", tmp_path / "map", "--train-pairs", 20, "--val-pairs", 6, "--workers", 1]
    compose_pairs.main([str(a) for a in [*argv, "--class-map", tmp_path / "map.json"]])
    for name in ("rgb", "map"):
        found = files_below(tmp_path / name)
        assert {k: v for k, v in found.items() if k.endswith(".png")} == expected


def damage(city: Path, kind: str) -> None:
    image, mask = city / "images" / "tile1_05.png", city / "masks" / "tile1_05.png"
    if kind in ("no folder", "empty"):
        shutil.rmtree(city / "masks")
        (city / ("masks" if kind == "empty" else "others")).mkdir()
    elif kind == "unpaired":
        mask.unlink()
    elif kind == "twice":
        Image.open(image).save(image.with_suffix(".bmp"))
    elif kind == "size":
        save(mask, read(mask)[:-1])
    elif kind == "value":
        save(mask, np.full_like(read(mask), 9))
    elif kind == "zero":
        save(mask, np.zeros_like(read(mask)))
    elif kind == "color":
        save(mask, np.full((*read(mask).shape, 3), (1, 2, 3), np.uint8))
    elif kind == "truncated":
        mask.write_bytes(mask.read_bytes()[:200])
    elif kind == "one class":
        for path in (city / "masks").iterdir():
            save(path, np.ones_like(read(path)))
    elif kind == "one listed":
        entries = json.loads((city / "classes.json").read_text())[:2]
        (city / "classes.json").write_text(json.dumps(entries))
    elif kind == "no classes":
        (city / "classes.json").unlink()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no folder", r"masks: no such folder; correct --masks"),
        ("empty", r"masks: no images in it"),
        ("unpaired", r"tile1_05.png: no partner in .*masks; .*called tile1_05\.\*"),
        ("twice", r"same name twice"),
        ("size", r"masks.tile1_05.png: 72 × 71 pixels, but .*images.tile1_05.png has 72 × 72"),
        ("value", r"tile1_05.png: foreign values, value 9: 5184 pixels.*--class-map"),
        ("zero", r"tile1_05.png: 5184 pixels have value or colour 0.*--ignore 0"),
        ("color", r"tile1_05.png: .*colour \(1, 2, 3\)"),
        ("truncated", r"tile1_05.png: cannot be decoded"),
        ("one class", r"1 class in all its masks"),
        ("one listed", r"one class beside 'unchanged'"),
        ("no classes", r"no classes.json in .* name one with --classes"),
    ],
)
def test_bad_sources_are_named_and_nothing_written(own_city, tmp_path, kind, message):
    damage(own_city, kind)
    with pytest.raises(DataError, match=message):
        compose(own_city, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "73"], r"72 × 72 pixels, less than --size 73"),
        (["--val-scenes", "tile1_05"], r"val: 1 scenes, but a pair needs 2"),
        (["--val-scenes", "tile*"], r"train: 0 scenes"),
        (["--val-scenes", "nowhere"], r"'nowhere' fits no scene"),
        (["--scene-pattern", "x"], r"'x' is not in its name"),
        (["--classes", "nowhere/classes.json"], r"nowhere.classes.json: no such file; name a JSON"),
        (["--classes", "list.json"], r"list.json: no such file; name a JSON file of classes"),
        (["--train-pairs", "0", "--val-pairs", "0"], r"nothing to write"),
        (["--class-map", "map.json"], r'map those values to "unchanged"'),
    ],
)
def test_bad_options_are_named(city, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        compose(city, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--size", "8"),
        ("--changed", "0"),
        ("--changed", "1"),
        ("--ignore", "1,2"),
        ("--ignore", "300"),
        ("--seed", "x"),
        ("--scene-pattern", "("),
        ("--val-scenes", ","),
    ],
)
def test_bad_values_end_in_usage(city, tmp_path, options, capsys):
    with pytest.raises(SystemExit):
        compose(city, tmp_path / "out", *options)
    assert options[0] in capsys.readouterr().err


def test_nothing_of_another_origin_is_removed(composed, city, tmp_path):
    out = Path(shutil.copytree(composed, tmp_path / "out"))
    with pytest.raises(OptionError, match=r"not empty; pass --overwrite"):
        compose(city, out)
    (out / "notes.txt").touch()
    with pytest.raises(OptionError, match=r"notes.txt was not written by this tool"):
        compose(city, out, "--overwrite")
    (out / "notes.txt").unlink()
    (out / "composed.json").unlink()
    with pytest.raises(OptionError, match=r"has no composed.json"):
        compose(city, out, "--overwrite")
    with pytest.raises(OptionError, match=r"a file"):
        compose(city, city / "classes.json", "--overwrite")
    assert len(files_below(out)) == len(files_below(composed)) - 1
    assert len(list((city / "images").iterdir())) == SCENES


def test_output_tells_the_share(city, tmp_path, capsys):
    compose(city, tmp_path / "out", "--val-pairs", 0, "--train-pairs", 2)
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"train: 2 pairs of 64 × 64 pixels from 14 scenes, \d+\.\d% changed", lines[0]
    )
    assert not (tmp_path / "out" / "val").exists()


def test_command_line_ends_with_one_line(city, tmp_path):
    words = ["--images", tmp_path / "none", "--masks", city / "masks", "--out", tmp_path / "out"]
    words += ["--classes", city]
    command = [sys.executable, str(TOOL), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'none'}: no such folder; correct --images\n"


def test_transparency_of_masks_says_nothing_and_other_modes_are_named(city, tmp_path):
    mask = read(city / "masks" / "tile0_01.png")
    rgb = Image.fromarray(SECOND_CLASSES.to_rgb(mask))
    rgba = rgb.copy()
    rgba.putalpha(7)
    rgba.save(tmp_path / "a.png")
    for ignore in ((), (SECOND_CLASSES.colors[4],)):
        found = MaskReader(SECOND_CLASSES, ignore)(tmp_path / "a.png")
        assert np.array_equal(found, np.where(mask == 4, 0, mask) if ignore else mask)
    for mode, suffix in (("LA", "png"), ("CMYK", "tif")):
        path = tmp_path / f"b.{suffix}"
        Image.fromarray(mask).convert("RGB").convert(mode).save(path)
        with pytest.raises(DataError, match=f"^{path}: mode {mode} is no mask format; save"):
            MaskReader(SECOND_CLASSES, (255,))(path)


def test_a_list_of_scenes_may_be_longer_than_a_file_name():
    names = [f"tile{i}_*" for i in range(100)]
    assert compose_pairs._val_scenes(",".join(names)) == names
