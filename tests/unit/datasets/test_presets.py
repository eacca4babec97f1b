"""Public data sets in their published form: read in place, or converted, to known index maps."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.classes import PRESETS, SECOND_CLASSES, STANDARD, find_preset, suspect_order
from datasets.labels import read_label
from datasets.pairs import index_pairs, layout_hint, split_pairs, test_split
from datasets.splits import SplitOptions
from datasets.task import load_task
from engine import config
from tools import check_data
from utils.errors import DataError

SIZE = (8, 12)
RNG = np.random.default_rng(0)


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def images(*paths: Path) -> None:
    for path in paths:
        save(path, RNG.integers(0, 256, (*SIZE, 3)))


def codes(highest: int) -> np.ndarray:
    """(8, 12) values 0 to `highest`, each of them at least once."""
    return np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % (highest + 1)


def convert(root: Path, name: str, out: Path) -> None:
    argv = [str(root), "--preset", name, "--convert", str(out), "--outdir", str(out) + "-report"]
    assert check_data.main([*argv, "--workers", "1"]) == 0


def check(root: Path, outdir: Path, *options: str) -> str:
    argv = [str(root), "--outdir", str(outdir), "--workers", "1", *options]
    check_data.main(argv)
    return (outdir / "report.json").read_text()


def labels(folder: Path, name: str, classes=SECOND_CLASSES) -> list[np.ndarray]:
    return [read_label(folder / f"label{date}/{name}.png", classes) for date in (1, 2)]


def test_the_command_line_offers_all():
    assert tuple(PRESETS) == config.PRESETS


def test_second_has_colours_and_a_test_folder(tmp_path):
    map1 = np.where(codes(6) > 0, codes(6), 0)
    map2 = np.where(map1 > 0, 7 - map1, 0)
    for split, count in (("train", 3), ("test", 1)):
        for stem in map(str, range(count)):
            images(*(tmp_path / split / date / f"{stem}.png" for date in ("im1", "im2")))
            for date, values in (("label1", map1), ("label2", map2)):
                save(tmp_path / split / date / f"{stem}.png", SECOND_CLASSES.to_rgb(values))
    preset = find_preset("second", tmp_path)
    assert len(index_pairs(tmp_path / "train", preset)) == 3
    assert test_split(tmp_path, preset) == "test"
    assert [m.tolist() for m in labels(tmp_path / "test", "0")] == [map1.tolist(), map2.tolist()]


@pytest.mark.parametrize(
    "folders", [("T1", "T2", "GT_T1", "GT_T2"), ("im1", "im2", "label1", "label2")]
)
def test_changemamba_is_read_in_its_order_and_converted_to_second(tmp_path, folders):
    root = tmp_path / "SECOND"
    map1 = codes(6)
    map2 = np.where(map1 > 0, 7 - map1, 0)
    for stem in ("1", "2", "3"):
        images(*(root / "train" / name / f"{stem}.png" for name in folders[:2]))
        for name, values in zip(folders[2:], (map1, map2), strict=True):
            save(root / "train" / name / f"{stem}.png", values)
        save(root / "train/GT_CD" / f"{stem}.png", 255 * (map1 > 0))
    preset = find_preset("second-changemamba-order", root)
    task = load_task(root, preset)
    assert task.classes.names[1:5] == ("low vegetation", "ground", "tree", "water")
    assert task.classes.colors[4] == (0, 0, 255)
    _, train, val = split_pairs(root, SplitOptions(), preset)
    assert (len(train), len(val)) == (2, 1)
    assert np.array_equal(read_label(train[0].label1, task.classes), map1)
    convert(root, "second-changemamba-order", tmp_path / "out")
    own = np.array([0, 3, 2, 4, 1, 5, 6])
    for found, values in zip(labels(tmp_path / "out/train", "1"), (map1, map2), strict=True):
        assert np.array_equal(found, own[values])
    with pytest.raises(DataError, match=r"classes.json: lists other classes than --preset"):
        load_task(tmp_path / "out", preset)


@pytest.mark.parametrize(
    ("name", "folders"),
    [
        ("levir-cd", ("A", "B", "label")),
        ("whu-cd", ("A", "B", "label")),
        ("s2looking", ("Image1", "Image2", "label")),
    ],
)
@pytest.mark.parametrize("listed", [False, True])
def test_change_masks_are_read_in_place(tmp_path, name, folders, listed):
    if listed and name == "s2looking":
        pytest.skip("published in split folders alone")
    for split in ("train", "val", "test"):
        place = tmp_path if listed else tmp_path / split
        images(*(place / folder / f"{split}_1.png" for folder in folders[:2]))
        save(place / folders[2] / f"{split}_1.png", 255 * (codes(6) > 3))
        if listed:
            (tmp_path / "list").mkdir(exist_ok=True)
            (tmp_path / "list" / f"{split}.txt").write_text(f"{split}_1.png\n")
    preset = find_preset(name, tmp_path)
    task = load_task(tmp_path, preset)
    split, [train], [val] = split_pairs(tmp_path, SplitOptions(), preset)
    assert task.is_binary and split.protocol == "folders"
    assert (train.id, val.id) == ("train/train_1", "val/val_1")
    assert test_split(tmp_path, preset) == "test"
    assert np.array_equal(read_label(val.change_mask, task.classes), codes(6) > 3)
    report = check(tmp_path, tmp_path / "out", "--preset", name)
    assert '"level": "error"' not in report
    convert(tmp_path, name, tmp_path.parent / f"{tmp_path.name}-converted")
    _, [converted], _ = split_pairs(tmp_path.parent / f"{tmp_path.name}-converted")
    assert np.array_equal(read_label(converted.change_mask, task.classes), codes(6) > 3)


TILES = ("From1990To1993_01", "From1990To1993_02", "From1990To1993_03")
COPIES = ("", "CropResize0", "CropResize1", "ZheDang1", "Zhedang2", "rotate90", "rotate180")


def test_landsat_has_transitions_in_one_file_and_copies_of_its_tiles(tmp_path):
    root, out = tmp_path / "Landsat-SCD_dataset", tmp_path / "out"
    for stem in (tile + copy for tile in TILES for copy in COPIES):
        images(root / "A" / f"{stem}.png", root / "B" / f"{stem}.png")
        save(root / "label" / f"{stem}.png", codes(9))
    with pytest.raises(DataError, match="--preset landsat-scd --convert OUT"):
        find_preset("landsat-scd", root)
    convert(root, "landsat-scd", out)
    classes = load_task(out).classes
    assert classes.names == ("unchanged", "farmland", "desert", "building", "water")
    found = [label.ravel()[:10].tolist() for label in labels(out / "train", TILES[0], classes)]
    assert found == [[0, 1, 1, 2, 2, 2, 3, 3, 4, 4], [0, 2, 3, 1, 3, 4, 1, 2, 1, 2]]
    assert find_preset("landsat-scd", out) is STANDARD
    sides = [SplitOptions(), SplitOptions("random", val_fraction=0.4)]
    sides += [SplitOptions("k-fold", folds=3, fold=fold) for fold in range(3)]
    for options in sides:
        _, train, val = split_pairs(out, options)
        tiles = [{pair.name[: len(TILES[0])] for pair in side} for side in (train, val)]
        assert len(tiles[0] | tiles[1]) == 3 and not tiles[0] & tiles[1]
    (tmp_path / "val.txt").write_text(f"{TILES[1]}rotate90\n")
    with pytest.raises(DataError, match=f"{TILES[1]} and {TILES[1]}rotate90 are copies of one"):
        split_pairs(out, SplitOptions(val_list=tmp_path / "val.txt"))
    report = check(out, tmp_path / "report", "--val-list", str(tmp_path / "val.txt"))
    assert '"kind": "leak-copies"' in report


HI_UCD = {
    "full": {"train": ("image/2018", "image/2019", "mask/2018_2019")},
    "mini": {
        "train": ("image/2017/9", "image/2018/9", "mask_merge/2017_2018/9"),
        "test": ("image/2018/9", "image/2019/9", "mask_merge/2018_2019/9"),
    },
}


@pytest.mark.parametrize("release", HI_UCD)
def test_hi_ucd_has_three_channels(tmp_path, release):
    root, out = tmp_path / "Hi-UCD", tmp_path / "out"
    map1, map2 = 1 + codes(8), 9 - codes(8)
    changed = codes(2)  # unlabelled, unchanged, changed
    for split, (image1, image2, mask) in HI_UCD[release].items():
        images(root / split / image1 / "9_1.png", root / split / image2 / "9_1.png")
        save(root / split / mask / "9_1.png", np.stack([map1, map2, changed], axis=-1))
    convert(root, "hi-ucd", out)
    classes = load_task(out).classes
    assert (classes.names[1], classes.names[9]) == ("water", "woodland")
    for split in HI_UCD[release]:
        for found, values in zip(labels(out / split, "9_1", classes), (map1, map2), strict=True):
            assert np.array_equal(found, np.where(changed == 2, values, 0))


def test_hrscd_has_change_in_its_own_raster_and_other_names_per_date(tmp_path):
    root, out = tmp_path / "HRSCD", tmp_path / "out"
    map1, map2 = 1 + codes(4), 5 - codes(4)
    name1, name2 = "-2005-0415-6890-LA93.tif", "-2012-0415-6890-LA93-0M50-E080.tif"
    for area in ("14", "35"):
        images(root / f"images_2006/2006/D{area}" / f"{area}{name1}")
        images(root / f"images_2012/2012/D{area}" / f"{area}{name2}")
        for year, values in (("2006", map1), ("2012", map2)):
            save(root / f"labels_land_cover_{year}/{year}/D{area}/{area}{name2}", values)
        save(root / f"labels_change/change/D{area}/{area}{name2}", codes(1))
    convert(root, "hrscd", out)
    pairs = index_pairs(out / "train")
    classes = load_task(out).classes
    assert len(pairs) == 2 and classes.names[5] == "water"
    for found, values in zip(
        labels(out / "train", pairs[0].name, classes), (map1, map2), strict=True
    ):
        assert np.array_equal(found, values * codes(1))


def test_codes_that_are_not_published_leave_the_pair_out(tmp_path):
    root, out = tmp_path / "Landsat-SCD", tmp_path / "out"
    for stem, values in (("a", codes(9)), ("b", codes(10)), ("c", codes(9) * 0.5)):
        images(root / "A" / f"{stem}.png", root / "B" / f"{stem}.png")
        save(root / "label" / f"{stem}.png", values)
    Image.fromarray((codes(9) * 0.5).astype(np.float32)).save(root / "label/c.tif")
    (root / "label/c.png").unlink()
    argv = [str(root), "--preset", "landsat-scd", "--convert", str(out), "--workers", "1"]
    assert check_data.main([*argv, "--outdir", str(tmp_path / "log")]) == 1
    assert [pair.name for pair in index_pairs(out / "train")] == ["a"]
    said = (tmp_path / "log/convert.json").read_text()
    assert "label/b.png: value 10, but codes up to 9" in said
    assert "label/c.tif: value 0.5, but codes up to 9" in said


def test_foreign_folders_are_told_with_the_presets(tmp_path):
    for folders, hint in (
        (("T1", "T2", "GT_T1", "GT_T2"), "--preset second or second-changemamba-order"),
        (
            ("A", "B", "label"),
            "to im2, label stays; or name the data set with --preset landsat-scd or",
        ),
        (("Image1", "Image2", "label"), "--preset s2looking"),
        (("image/2018", "image/2019", "mask/2018_2019"), "--preset hi-ucd"),
        (("im1", "im2"), ""),
    ):
        place = tmp_path / folders[0].replace("/", "_")
        for folder in folders:
            (place / folder).mkdir(parents=True)
        assert hint in layout_hint(place) and bool(hint) == bool(layout_hint(place))


# Percent of SECOND's changed pixels in its own order.
SHARES = np.array([0, 1.0, 37.1, 21.5, 4.5, 35.1, 0.7])
OTHER = PRESETS["second-changemamba-order"].classes


def test_class_shares_tell_the_orders_of_second_apart():
    other = SHARES[[0, 3, 2, 4, 1, 5, 6]]
    said = suspect_order(SECOND_CLASSES, other)
    assert "--preset second-changemamba-order;" in said
    assert "--preset second;" in suspect_order(OTHER, SHARES)
    few = other * [1, 0.6, 0.8, 1.4, 0.5, 1.3, 0]  # a part of the pairs differs from the whole
    assert suspect_order(SECOND_CLASSES, few)
    for quiet in (SHARES, SHARES * [1, 9, 1, 0.5, 2, 0.5, 1], np.ones(7), np.zeros(7)):
        assert not suspect_order(SECOND_CLASSES, quiet)
    assert not suspect_order(PRESETS["hrscd"].classes, other[:6])
