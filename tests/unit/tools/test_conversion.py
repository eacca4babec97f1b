"""Labels of other formats, classes and sets become this project's."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.classes import SECOND_CLASSES, ClassList
from datasets.dataset import ChangeDetectionDataset
from datasets.labels import read_label
from datasets.pairs import index_pairs
from datasets.task import load_classes
from tests.helpers.damages import (
    binary_labels,
    contradicting_palette,
    disagree,
    every_label,
    kinds,
    land_cover_as_labels,
    remove_partner,
    replace_by_text,
    rewrite_labels,
)
from tests.helpers.image_files import files_below, read, write
from tools.checking.class_map import ClassMap, load_class_map
from tools.checking.conversion import Rules, convert_dataset
from tools.checking.inspection import inspect_dataset
from utils.errors import DataError, OptionError


def original_masks(root: Path) -> dict[str, np.ndarray]:
    return {
        path.relative_to(root).as_posix(): SECOND_CLASSES.to_index(read(path))
        for path in every_label(root)
    }


def assert_converted(out: Path, expected: dict[str, np.ndarray]) -> None:
    for name, mask in expected.items():
        image = Image.open(out / name)
        assert image.format == "PNG" and image.mode == "P"
        assert np.array_equal(np.array(image), mask)
    assert {path.relative_to(out).as_posix() for path in every_label(out)} == set(expected)
    assert inspect_dataset(out, load_classes(out)).findings == []
    for folder in ("train", "val"):
        dataset = ChangeDetectionDataset(index_pairs(out / folder), load_classes(out))
        assert all(dataset[i]["label1"].max() <= 6 for i in range(len(dataset)))


def test_converts_rgb_and_leaves_the_source_alone(sample_root, tmp_path):
    before = files_below(sample_root)
    result = convert_dataset(sample_root, tmp_path / "out", Rules(SECOND_CLASSES), workers=2)
    assert (result.written, result.left_out) == (16, [])
    assert_converted(tmp_path / "out", original_masks(sample_root))
    assert files_below(sample_root) == before
    images = [name for name in before if "/im" in name]
    assert all((tmp_path / "out" / name).read_bytes() == before[name] for name in images)
    assert load_classes(tmp_path / "out") == SECOND_CLASSES
    assert not list((tmp_path / "out").rglob(".*"))


def degrade(root: Path) -> None:
    for path in every_label(root):
        Image.open(path).save(path.with_suffix(".jpg"), quality=97, subsampling=0)
        path.unlink()


def test_converts_jpeg_labels_within_the_distance(broken_root, tmp_path):
    expected = original_masks(broken_root)
    degrade(broken_root)
    assert "label-near-colours" in kinds(broken_root)
    near = Rules(SECOND_CLASSES, color_distance=63)  # half the distance of the two nearest colours
    result = convert_dataset(broken_root, tmp_path / "out", near)
    assert (result.written, result.left_out) == (16, [])
    assert_converted(tmp_path / "out", expected)


def test_lists_jpeg_labels_beyond_the_distance(broken_root, tmp_path):
    degrade(broken_root)
    result = convert_dataset(broken_root, tmp_path / "out", Rules(SECOND_CLASSES, color_distance=1))
    assert result.written + len(result.left_out) == 16
    assert len(result.left_out) > 8
    assert "beyond 1; raise --color-distance" in result.left_out[0].detail
    left_out = {entry.pairs[0] for entry in result.left_out}
    written = {f"{p.parents[1].name}/{p.stem}" for p in (tmp_path / "out").glob("*/im1/*")}
    assert not written & left_out


@pytest.mark.parametrize("keys", ["values", "colours", "names"])
def test_converts_by_class_map(keys, broken_root, tmp_path):
    """Labels of another data set: classes in another order, in values, colours or by name."""
    expected = original_masks(broken_root)
    order = [0, 5, 3, 1, 6, 2, 4]
    foreign = np.array([[9, 9, 9], [90, 0, 0], [0, 90, 0], [0, 0, 90], [90, 90, 0], [0, 90, 90],
                        [200, 90, 200]], np.uint8)  # fmt: skip
    names = [f"land{index}" for index in range(7)]
    if keys == "colours":
        rewrite_labels(broken_root, lambda mask: foreign[mask])
        mapping = {"#090909": 0} | {
            ",".join(map(str, foreign[i])): SECOND_CLASSES.names[i] for i in range(1, 7)
        }
    elif keys == "values":
        rewrite_labels(broken_root, lambda mask: (np.array(order, np.uint8) * 20)[mask])
        mapping = {str(20 * order[i]): i for i in range(7)}
    else:
        rewrite_labels(broken_root, lambda mask: np.array(order, np.uint8)[mask])
        mapping = {names[order[i]]: SECOND_CLASSES.names[i] for i in range(7)}
    source = ClassList(tuple(names), tuple(map(tuple, foreign.tolist())))
    (tmp_path / "map.json").write_text(json.dumps(mapping))
    class_map = load_class_map(tmp_path / "map.json", source, SECOND_CLASSES)
    result = convert_dataset(broken_root, tmp_path / "out", Rules(SECOND_CLASSES, class_map))
    assert (result.written, result.left_out) == (16, [])
    assert_converted(tmp_path / "out", expected)


def test_a_value_that_is_not_in_the_class_map_leaves_the_pair_out(broken_root, tmp_path):
    rewrite_labels(broken_root, lambda mask: mask)
    write(broken_root / "val/label1/00001.png", np.full((64, 64), 40, np.uint8))
    (tmp_path / "map.json").write_text(json.dumps({str(i): i for i in range(7)}))
    class_map = load_class_map(tmp_path / "map.json", SECOND_CLASSES, SECOND_CLASSES)
    result = convert_dataset(broken_root, tmp_path / "out", Rules(SECOND_CLASSES, class_map))
    assert result.written == 15
    assert [entry.pairs for entry in result.left_out] == [("val/00001",)]
    assert "label1/00001.png: value 40 (4096 pixels)" in result.left_out[0].detail
    assert not list((tmp_path / "out/val").rglob("00001.png"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "expected an object"),
        ("{", "cannot be read as JSON"),
        ('{"7": "forest"}', "'forest' is no class; choose an index from 0 to 6"),
        ('{"7": 9}', "9 is no class"),
        ('{"road": 1}', "'road' is no value"),
        ('{"#12345": 1}', "'#12345' is no value"),
        ('{"300,0,0": 1}', "'300,0,0' is no value"),
    ],
)
def test_class_map_errors(text, message, tmp_path):
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(DataError, match=message):
        load_class_map(tmp_path / "map.json", SECOND_CLASSES, SECOND_CLASSES)


def test_land_cover_becomes_change_labels(broken_root, tmp_path):
    expected = original_masks(broken_root)
    land_cover_as_labels(broken_root)
    rules = Rules(SECOND_CLASSES, unchanged_where_equal=True)
    assert convert_dataset(broken_root, tmp_path / "out", rules).left_out == []
    assert_converted(tmp_path / "out", expected)


def test_disagreement_is_left_out_or_resolved(broken_root, tmp_path):
    disagree(broken_root)
    result = convert_dataset(broken_root, tmp_path / "a", Rules(SECOND_CLASSES))
    assert [entry.files for entry in result.left_out] == [("train/im1/00003.png",)]
    assert "--resolve-disagreement" in result.left_out[0].detail
    rules = Rules(SECOND_CLASSES, resolve_disagreement=True)
    assert convert_dataset(broken_root, tmp_path / "b", rules).left_out == []
    assert not read(tmp_path / "b/train/label1/00003.png").any()


def test_binary_labels_become_one_class(broken_root, tmp_path):
    expected = {
        name: (mask > 0).astype(np.uint8) for name, mask in original_masks(broken_root).items()
    }
    binary_labels(broken_root)
    classes = ClassList(("unchanged", "changed"), ((0, 0, 0), (255, 255, 255)))
    assert convert_dataset(broken_root, tmp_path / "out", Rules(classes)).left_out == []
    for name, mask in expected.items():
        assert np.array_equal(read_label(tmp_path / "out" / name, classes), mask)


def test_other_images_become_png_and_incomplete_pairs_are_left_out(broken_root, tmp_path):
    jpeg = broken_root / "train/im1/00001.jpg"
    Image.open(jpeg.with_suffix(".png")).save(jpeg)
    jpeg.with_suffix(".png").unlink()
    remove_partner(broken_root)
    sixteen = broken_root / "val/im1/00000.png"
    write(sixteen, read(sixteen)[..., 0].astype(np.uint16) * 200)
    replace_by_text(broken_root)
    result = convert_dataset(broken_root, tmp_path / "out", Rules(SECOND_CLASSES))
    assert result.written == 14
    reasons = {entry.files[0]: entry.detail for entry in result.left_out}
    assert set(reasons) == {"train/im1/00005.png", "val/im1/00002.png"}
    assert reasons["train/im1/00005.png"] == "none in im2"
    assert (tmp_path / "out/val/im1/00000.png").read_bytes() == sixteen.read_bytes()
    assert "cannot be decoded" in reasons["val/im1/00002.png"]
    assert np.array_equal(read(tmp_path / "out/train/im1/00001.png"), read(jpeg))


def test_refuses_targets_that_touch_the_source(broken_root, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("precious")
    before = files_below(tmp_path)
    for out in (broken_root, broken_root / "copy", tmp_path, full, full / "mine.txt"):
        with pytest.raises(OptionError):
            convert_dataset(broken_root, out, Rules(SECOND_CLASSES))
    assert files_below(tmp_path) == before


def quantized(mask: np.ndarray) -> Image.Image:
    """An RGB mask that an editor saved with a palette: colours are numbered by frequency."""
    image = Image.fromarray(SECOND_CLASSES.to_rgb(mask)).quantize(8)
    assert image.mode == "P" and not np.array_equal(np.asarray(image), mask)
    assert np.array_equal(np.asarray(image.convert("RGB")), SECOND_CLASSES.to_rgb(mask))
    return image


def map_of(tmp_path: Path, mapping: dict[str, object]) -> ClassMap:
    (tmp_path / "map.json").write_text(json.dumps(mapping))
    return load_class_map(tmp_path / "map.json", SECOND_CLASSES, SECOND_CLASSES)


def test_palette_and_indices_that_the_class_map_reads_differently(tmp_path):
    names, colors = SECOND_CLASSES.names, SECOND_CLASSES.colors
    by_name = map_of(tmp_path, {name: name for name in names})
    for mask in (np.array([[0, 4, 4, 4, 5, 5, 1]], np.uint8), np.full((3, 3), 4, np.uint8)):
        with pytest.raises(ValueError, match=r"index (\d) is mapped to class \1, but its palette"):
            by_name.apply(quantized(mask))
        by_color = map_of(tmp_path, {",".join(map(str, colors[i])): i for i in range(7)})
        assert np.array_equal(by_color.apply(quantized(mask)), mask)
        by_value = map_of(tmp_path, {str(i): 6 - i for i in range(7)})
        assert np.array_equal(by_value.apply(quantized(mask)), 6 - np.asarray(quantized(mask)))
    plain = Image.fromarray(np.arange(7, dtype=np.uint8)[None])
    plain.putpalette(np.asarray(colors, dtype=np.uint8).tobytes())
    assert by_name.apply(plain).tolist() == [list(range(7))]
    plain.putpalette(bytes(range(21)))  # a palette of its own: only the indices speak
    assert by_name.apply(plain).tolist() == [list(range(7))]


def test_pairs_with_such_palettes_are_left_out(broken_root, tmp_path):
    contradicting_palette(broken_root)
    class_map = map_of(tmp_path, {name: name for name in SECOND_CLASSES.names})
    result = convert_dataset(broken_root, tmp_path / "out", Rules(SECOND_CLASSES, class_map))
    assert [entry.pairs for entry in result.left_out] == [("train/00003",)]
    assert "map colours alone, or values alone" in result.left_out[0].detail


@pytest.mark.parametrize(("value", "remedy"), [(-1, "replace"), (-9999, "replace"), (70000, "rep")])
def test_values_that_no_map_can_name_are_not_mapped(value, remedy, tmp_path):
    Image.fromarray(np.array([[0, 1, value, value]], np.int32)).save(tmp_path / "a.tif")
    class_map = map_of(tmp_path, {"0": 0, "1": 1, "65535": 2})
    message = rf"value {value} \(2 pixels\) is not in the class map; only 0 to 65535.*{remedy}"
    with Image.open(tmp_path / "a.tif") as image, pytest.raises(ValueError, match=message):
        class_map.apply(image)
