"""Labels of other formats, classes and sets become this project's."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.classes import SECOND_CLASSES, ClassList
from datasets.labels import read_label
from datasets.task import load_classes
from tests.helpers.damages import (
    binary_labels,
    disagree,
    every_label,
    kinds,
    land_cover_as_labels,
    remove_partner,
    renumbered_palette,
    replace_by_text,
    rewrite_labels,
)
from tests.helpers.image_files import files_below, read, write
from tools.checking.class_map import ClassMap, load_class_map
from tools.checking.conversion import Rules, convert_dataset
from tools.checking.inspection import inspect_dataset
from utils.errors import DataError, OptionError

NAMES = SECOND_CLASSES.names


def convert(root: Path, out: Path, **rules):
    """Return the number of pairs written, and the reasons by id of those left out."""
    written, left_out = convert_dataset(root, out, Rules(SECOND_CLASSES, **rules))
    return written, {entry.pairs[0] if entry.pairs else "": entry.detail for entry in left_out}


def load_map(folder: Path, mapping: object, source: ClassList = SECOND_CLASSES) -> ClassMap:
    (folder / "map.json").write_text(json.dumps(mapping))
    return load_class_map(folder / "map.json", source, SECOND_CLASSES)


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
        assert np.array_equal(read_label(out / name, SECOND_CLASSES), mask)
    assert {path.relative_to(out).as_posix() for path in every_label(out)} == set(expected)
    assert inspect_dataset(out, load_classes(out)).findings == []


def test_converts_rgb_and_leaves_the_source_alone(sample_root, tmp_path):
    before = files_below(sample_root)
    out = tmp_path / "out"
    assert convert_dataset(sample_root, out, Rules(SECOND_CLASSES), workers=2) == (16, [])
    assert_converted(out, original_masks(sample_root))
    assert files_below(sample_root) == before
    assert all((out / name).read_bytes() == before[name] for name in before if "/im" in name)
    assert load_classes(out) == SECOND_CLASSES
    assert not list(out.rglob(".*"))


def test_converts_jpeg_labels_within_the_distance_and_lists_the_others(broken_root, tmp_path):
    expected = original_masks(broken_root)
    for path in every_label(broken_root):
        Image.open(path).save(path.with_suffix(".jpg"), quality=97, subsampling=0)
        path.unlink()
    assert "label-near-colours" in kinds(broken_root)
    half = 63  # of the distance of the two nearest colours
    assert convert(broken_root, tmp_path / "out", color_distance=half) == (16, {})
    assert_converted(tmp_path / "out", expected)
    written, left_out = convert(broken_root, tmp_path / "few", color_distance=1)
    assert len(left_out) > 8
    assert any("beyond 1; raise --color-distance" in reason for reason in left_out.values())
    copied = {f"{p.parents[1].name}/{p.stem}" for p in (tmp_path / "few").glob("*/im1/*")}
    assert len(copied) == written == 16 - len(left_out) and not copied & set(left_out)


@pytest.mark.parametrize("keys", ["values", "colours", "names"])
def test_converts_by_class_map(keys, broken_root, tmp_path):
    """Labels of another data set: classes in another order, in values, colours or by name."""
    expected = original_masks(broken_root)
    order = np.array([0, 5, 3, 1, 6, 2, 4], np.uint8)
    foreign = np.array([[9, 9, 9], [90, 0, 0], [0, 90, 0], [0, 0, 90], [90, 90, 0], [0, 90, 90],
                        [200, 90, 200]], np.uint8)  # fmt: skip
    if keys == "colours":
        rewrite_labels(broken_root, lambda mask: foreign[mask])
        mapping = {",".join(map(str, foreign[i])): NAMES[i] for i in range(1, 7)} | {"#090909": 0}
    elif keys == "values":
        rewrite_labels(broken_root, lambda mask: (order * 20)[mask])
        mapping = {str(20 * order[i]): i for i in range(7)}
    else:
        rewrite_labels(broken_root, lambda mask: order[mask])
        mapping = {f"land{order[i]}": NAMES[i] for i in range(7)}
    source = ClassList(tuple(f"land{i}" for i in range(7)), tuple(map(tuple, foreign.tolist())))
    class_map = load_map(tmp_path, mapping, source)
    assert convert(broken_root, tmp_path / "out", class_map=class_map) == (16, {})
    assert_converted(tmp_path / "out", expected)


def test_what_the_class_map_does_not_say_leaves_the_pair_out(broken_root, tmp_path):
    rewrite_labels(broken_root, SECOND_CLASSES.to_rgb)
    renumbered_palette(broken_root)
    write(broken_root / "val/label1/00001.png", np.full((64, 64), 40, np.uint8))
    class_map = load_map(tmp_path, {name: name for name in NAMES})
    written, left_out = convert(broken_root, tmp_path / "out", class_map=class_map)
    assert written == 14 and set(left_out) == {"train/00003", "val/00001"}
    assert "label1/00001.png: value 40 (4096 pixels)" in left_out["val/00001"]
    assert "map colours alone, or values alone" in left_out["train/00003"]
    assert not list((tmp_path / "out/val").rglob("00001.png"))


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ([1], "expected an object"),
        ({"7": "forest"}, "'forest' is no class; choose an index from 0 to 6"),
        ({"7": 9}, "9 is no class"),
        ({"road": 1}, "'road' is no value"),
        ({"#12345": 1}, "'#12345' is no value"),
        ({"300,0,0": 1}, "'300,0,0' is no value"),
    ],
)
def test_class_map_errors(mapping, message, tmp_path):
    with pytest.raises(DataError, match=message):
        load_map(tmp_path, mapping)


def test_land_cover_becomes_change_labels(broken_root, tmp_path):
    expected = original_masks(broken_root)
    land_cover_as_labels(broken_root)
    assert convert(broken_root, tmp_path / "out", unchanged_where_equal=True) == (16, {})
    assert_converted(tmp_path / "out", expected)


def test_disagreement_is_left_out_or_resolved(broken_root, tmp_path):
    disagree(broken_root)
    written, left_out = convert(broken_root, tmp_path / "a")
    assert written == 15 and "--resolve-disagreement" in left_out["train/00003"]
    assert convert(broken_root, tmp_path / "b", resolve_disagreement=True) == (16, {})
    assert not read(tmp_path / "b/train/label1/00003.png").any()


def test_binary_labels_become_one_class(broken_root, tmp_path):
    expected = original_masks(broken_root)
    binary_labels(broken_root)
    classes = ClassList(("unchanged", "changed"), ((0, 0, 0), (255, 255, 255)))
    assert convert_dataset(broken_root, tmp_path / "out", Rules(classes)) == (16, [])
    for name, mask in expected.items():
        assert np.array_equal(read_label(tmp_path / "out" / name, classes), mask > 0)


def test_other_images_become_png_and_incomplete_pairs_are_left_out(broken_root, tmp_path):
    jpeg = broken_root / "train/im1/00001.jpg"
    Image.open(jpeg.with_suffix(".png")).save(jpeg)
    jpeg.with_suffix(".png").unlink()
    remove_partner(broken_root)
    sixteen = broken_root / "val/im1/00000.png"
    write(sixteen, read(sixteen)[..., 0].astype(np.uint16) * 200)
    replace_by_text(broken_root)
    written, left_out = convert(broken_root, tmp_path / "out")
    assert written == 14 and set(left_out) == {"", "val/00002"}
    assert left_out[""] == "none in im2" and "cannot be decoded" in left_out["val/00002"]
    assert (tmp_path / "out/val/im1/00000.png").read_bytes() == sixteen.read_bytes()
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


def test_values_that_no_map_can_name_are_not_mapped(tmp_path):
    class_map = load_map(tmp_path, {"0": 0, "1": 1, "65535": 2})
    for value in (-9999, 70000):
        message = rf"value {value} \(2 pixels\) is not in the class map; only 0 to 65535.*replace"
        with pytest.raises(ValueError, match=message):
            class_map.apply(Image.fromarray(np.array([[0, 1, value, value]], np.int32)))


def quantized(mask: np.ndarray) -> Image.Image:
    """An RGB mask that an editor saved with a palette: colours are numbered by frequency."""
    image = Image.fromarray(SECOND_CLASSES.to_rgb(mask)).quantize(8)
    assert image.mode == "P" and not np.array_equal(np.asarray(image), mask)
    assert np.array_equal(np.asarray(image.convert("RGB")), SECOND_CLASSES.to_rgb(mask))
    return image


def test_palette_and_indices_that_the_class_map_reads_differently(tmp_path):
    by_name = load_map(tmp_path, {name: name for name in NAMES})
    colors = SECOND_CLASSES.colors
    by_color = load_map(tmp_path, {",".join(map(str, colors[i])): i for i in range(7)})
    by_value = load_map(tmp_path, {str(i): 6 - i for i in range(7)})
    for mask in (np.array([[0, 4, 4, 4, 5, 5, 1]], np.uint8), np.full((3, 3), 4, np.uint8)):
        with pytest.raises(ValueError, match=r"index (\d) is mapped to class \1, but its palette"):
            by_name.apply(quantized(mask))
        assert np.array_equal(by_color.apply(quantized(mask)), mask)
        assert np.array_equal(by_value.apply(quantized(mask)), 6 - np.asarray(quantized(mask)))
    plain = Image.fromarray(np.arange(7, dtype=np.uint8)[None])
    # The class colours, or a palette of its own: then only the indices speak.
    for palette in (np.asarray(colors, dtype=np.uint8).tobytes(), bytes(range(21))):
        plain.putpalette(palette)
        assert by_name.apply(plain).tolist() == [list(range(7))]
