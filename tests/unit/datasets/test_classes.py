import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import one_hot

from datasets.classes import SECOND_CLASSES, ClassList, classes_file, read_classes
from datasets.labels import read_label
from datasets.task import load_classes
from engine.labelling import count_votes, hard_votes
from engine.metrics import ConfusionMatrix, compute_metrics
from engine.predictor import Probabilities, decode
from tools.scoring.statistics import count_pair
from utils.errors import DataError
from utils.pictures import save_mask


def make_classes(entries: int) -> ClassList:
    colors = [(255, 255, 255), *((i, 255 - i, 7 * i % 256) for i in range(1, entries))]
    return ClassList(tuple(f"class {i}" for i in range(entries)), tuple(colors))


def write_classes(root: Path, classes: ClassList) -> Path:
    entries = [
        {"name": name, "color": list(color)}
        for name, color in zip(classes.names, classes.colors, strict=True)
    ]
    path = root / "classes.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def every_index(classes: ClassList) -> np.ndarray:
    return np.arange(len(classes.names), dtype=np.uint8).repeat(3).reshape(-1, 3)


def save(path: Path, array: np.ndarray) -> Path:
    Image.fromarray(array).save(path)
    return path


def error_of(path: Path, classes: ClassList = SECOND_CLASSES) -> str:
    with pytest.raises(DataError) as caught:
        read_label(path, classes)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    return message


def test_second_is_what_the_data_set_documents():
    assert SECOND_CLASSES.num_classes == 6
    assert SECOND_CLASSES.names[0] == "unchanged"
    assert dict(zip(SECOND_CLASSES.names, SECOND_CLASSES.colors, strict=True)) == {
        "unchanged": (255, 255, 255),
        "water": (0, 0, 255),
        "ground": (128, 128, 128),
        "low vegetation": (0, 128, 0),
        "tree": (0, 255, 0),
        "building": (128, 0, 0),
        "playground": (255, 0, 0),
    }


@pytest.mark.parametrize(
    "classes",
    [SECOND_CLASSES, make_classes(2), make_classes(20), make_classes(255)],
    ids=lambda classes: str(len(classes.names)),
)
def test_round_trip_of_every_colour(classes):
    mask = every_index(classes)
    rgb = classes.to_rgb(mask)
    assert rgb.dtype == np.uint8 and rgb.shape == (*mask.shape, 3)
    assert [tuple(color) for color in rgb[:, 0].tolist()] == list(classes.colors)
    index = classes.to_index(rgb)
    assert index.dtype == np.uint8
    assert np.array_equal(index, mask)


def test_a_colour_one_step_off_is_no_class():
    for color in SECOND_CLASSES.colors:
        for channel in range(3):
            near = list(color)
            near[channel] += 1 if color[channel] < 255 else -1
            with pytest.raises(ValueError, match="in 2 pixels"):
                SECOND_CLASSES.to_index(np.array([[color, near, near]], np.uint8))


def test_dict_is_plain_json():
    state = SECOND_CLASSES.to_dict()
    assert json.loads(json.dumps(state)) == state
    assert tuple(state["names"]) == SECOND_CLASSES.names
    assert state["colors"][5] == [128, 0, 0]


@pytest.mark.parametrize(
    ("names", "colors", "reason"),
    [
        (("a",), ((0, 0, 0),), "2 to 255"),
        (("a", "b"), ((0, 0, 0),), "one colour per name"),
        (("a", "a"), ((0, 0, 0), (1, 1, 1)), "names repeat"),
        (("a", "b"), ((0, 0, 0), (0, 0, 0)), "colours repeat"),
        (("a", "b"), ((0, 0, 0), (0, 0, 256)), "0 to 255"),
        (("a", "b"), ((0, 0, 0), (-1, 0, 0)), "0 to 255"),
    ],
)
def test_impossible_class_lists_are_refused(names, colors, reason):
    with pytest.raises(ValueError, match=reason):
        ClassList(names, colors)


def test_without_a_file_the_classes_are_seconds(tmp_path):
    assert load_classes(tmp_path) == SECOND_CLASSES


@pytest.mark.parametrize("entries", [5, 20, 255])
def test_custom_class_list(tmp_path, entries):
    classes = make_classes(entries)
    write_classes(tmp_path, classes)
    loaded = load_classes(tmp_path)
    assert loaded == classes
    assert loaded.num_classes == entries - 1
    mask = every_index(classes)
    for name, array in (("rgb.png", classes.to_rgb(mask)), ("index.png", mask)):
        assert np.array_equal(read_label(save(tmp_path / name, array), loaded), mask)


def entry(name: object = "a", color: object = (1, 2, 3)) -> dict:
    return {"name": name, "color": color}


UNCHANGED = entry("unchanged", (255, 255, 255))


@pytest.mark.parametrize(
    "text",
    [
        "",
        '[{"name": "unchanged", ',
        "3",
        "null",
        '{"unchanged": [255, 255, 255]}',
        "[]",
        "[1, 2]",
        json.dumps([UNCHANGED]),
        json.dumps([UNCHANGED, {"name": "a"}]),
        json.dumps([UNCHANGED, {"color": [1, 2, 3]}]),
        json.dumps([UNCHANGED, entry(color=(1, 2))]),
        json.dumps([UNCHANGED, entry(color=(1, 2, 3, 4))]),
        json.dumps([UNCHANGED, entry(color=(1, 2, 300))]),
        json.dumps([UNCHANGED, entry(color=(1, 2, None))]),
        json.dumps([UNCHANGED, entry(color=(1, 2, float("inf")))]),
        json.dumps([UNCHANGED, entry(color="red")]),
        json.dumps([UNCHANGED, entry(color=5)]),
        json.dumps([UNCHANGED, entry(color=(255, 255, 255))]),
        json.dumps([UNCHANGED, entry("unchanged")]),
        json.dumps([entry(str(i), (i % 256, i // 256, 0)) for i in range(256)]),
    ],
)
def test_broken_class_file_is_named(tmp_path, text):
    path = tmp_path / "classes.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load_classes(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "expected a list like" in message and '"color"' in message
    assert len(message.splitlines()) == 1


def test_the_longest_list_works_from_prediction_to_score(tmp_path):
    classes = make_classes(255)
    assert classes.num_classes == 254
    mask = every_index(classes)
    path = tmp_path / "label.png"
    save_mask(path, mask, classes.colors)  # a palette of 255 colours
    assert np.array_equal(read_label(path, classes), mask)
    semantic = one_hot(torch.arange(254), 254).float().T[None, :, :, None]  # (1, 254, 254, 1)
    pred1, pred2 = decode(Probabilities(semantic, semantic, torch.ones(1, 254, 1)))
    assert pred1.ravel().tolist() == list(range(1, 255))
    confusion = ConfusionMatrix(255)
    confusion.update(pred1, pred2)
    confusion.update(torch.zeros(2, 2, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.uint8))
    assert confusion.counts.diagonal().tolist() == [4, *[1] * 254]
    assert compute_metrics(confusion.counts).class_iou == (1.0,) * 255
    votes = torch.stack([pred1, pred2])
    assert torch.equal(count_votes(hard_votes(votes, votes), 254), pred1)
    counts = count_pair(mask, mask, mask, np.where(mask == 254, 253, mask), 254)
    assert counts.confusion.diagonal().sum() == 2 * mask.size - 3
    assert counts.confusion[253, 254] == 3 and counts.transitions[0, 254, 253] == 3


def test_class_file_of_any_name(tmp_path):
    path = write_classes(tmp_path, make_classes(9)).rename(tmp_path / "land cover.txt")
    assert read_classes(path) == read_classes(classes_file(path)) == make_classes(9)
    assert classes_file(tmp_path) == tmp_path / "classes.json"
    with pytest.raises(DataError, match=r"classes\.json: no such file; name a JSON file"):
        read_classes(classes_file(tmp_path))


def test_class_file_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "classes.json"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DataError, match=r"classes\.json"):
        load_classes(tmp_path)


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        *((kind, "png") for kind in ("L", "P", "P without class colours", "RGB", "RGBA")),
        *((kind, "tif") for kind in ("L", "P", "P without class colours", "RGB", "RGBA")),
        *((kind, "bmp") for kind in ("L", "P", "P without class colours", "RGB")),
    ],
)
def test_every_label_format_gives_the_same_indices(tmp_path, kind, suffix):
    mask = np.random.default_rng(0).integers(0, 7, (5, 9), dtype=np.uint8)
    mask[0, :7] = range(7)
    image = Image.fromarray(mask)
    if kind == "P":
        image.putpalette([channel for color in SECOND_CLASSES.colors for channel in color])
    elif kind == "P without class colours":
        image.putpalette([channel for i in range(256) for channel in (i, 3, 9)])
    elif kind.startswith("RGB"):
        image = Image.fromarray(SECOND_CLASSES.to_rgb(mask)).convert(kind)
    assert image.mode == kind.split()[0]
    path = tmp_path / f"label.{suffix}"
    image.save(path)
    index = read_label(path, SECOND_CLASSES)
    assert index.dtype == np.uint8
    assert np.array_equal(index, mask)


def test_transparency_does_not_change_a_label(tmp_path):
    rgba = np.dstack([SECOND_CLASSES.to_rgb(every_index(SECOND_CLASSES)), np.zeros((7, 3))])
    path = save(tmp_path / "label.png", rgba.astype(np.uint8))
    assert np.array_equal(read_label(path, SECOND_CLASSES), every_index(SECOND_CLASSES))


def test_black_and_white_label_holds_zero_and_one(tmp_path):
    mask = np.array([[True, False, True]])
    path = tmp_path / "label.png"
    Image.fromarray(mask).save(path)
    with Image.open(path) as image:
        assert image.mode == "1"
    assert read_label(path, make_classes(2)).tolist() == [[1, 0, 1]]


@pytest.mark.parametrize("palette", [False, True])
def test_value_outside_the_list(tmp_path, palette):
    image = Image.fromarray(np.array([[0, 6, 7]], np.uint8))
    if palette:
        image.putpalette([channel for i in range(256) for channel in (i, 3, 9)])
    image.save(tmp_path / "a.png")
    message = error_of(tmp_path / "a.png")
    assert "value 7" in message and "ends at 6 (playground)" in message
    assert "classes.json" in message


def test_last_class_is_inside_the_list(tmp_path):
    assert read_label(save(tmp_path / "a.png", np.full((2, 2), 6, np.uint8)), SECOND_CLASSES).all()


def test_colour_outside_the_list(tmp_path):
    rgb = np.full((4, 4, 3), 255, np.uint8)
    rgb[1, :3] = (1, 2, 3)
    message = error_of(save(tmp_path / "a.png", rgb))
    assert "(1, 2, 3)" in message and "3 pixels" in message
    assert "classes.json" in message and "lossy" in message


@pytest.mark.parametrize("value", [1, 300])
def test_sixteen_bit_label(tmp_path, value):
    message = error_of(save(tmp_path / "a.png", np.full((4, 4), value, np.uint16)))
    assert "I;16" in message and "8-bit" in message


def test_grey_with_alpha_is_no_label_format(tmp_path):
    Image.new("LA", (3, 3)).save(tmp_path / "a.png")
    message = error_of(tmp_path / "a.png")
    assert "mode LA" in message and "8-bit" in message


def test_palette_that_contradicts_the_indices(tmp_path):
    swapped = list(SECOND_CLASSES.colors)
    swapped[1], swapped[4] = swapped[4], swapped[1]
    save_mask(tmp_path / "a.png", every_index(SECOND_CLASSES), swapped)
    message = error_of(tmp_path / "a.png")
    assert "index 1 means 'water'" in message and "(0, 255, 0)" in message and "'tree'" in message
    assert "as RGB" in message


def test_colours_reduced_to_a_palette_are_not_mistaken_for_indices(tmp_path):
    # Image editors number the colours of an RGB mask by frequency.
    mask = np.array([[0] * 5, [4] * 5, [5, 5, 5, 1, 1]], np.uint8)
    Image.fromarray(SECOND_CLASSES.to_rgb(mask)).quantize(8).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        assert not np.array_equal(np.asarray(image), mask)
    assert "palette colour" in error_of(tmp_path / "a.png")


def test_class_file_with_a_byte_order_mark(tmp_path):
    path = write_classes(tmp_path, make_classes(5))
    path.write_bytes(path.read_text(encoding="utf-8").encode("utf-8-sig"))
    assert load_classes(tmp_path) == make_classes(5)
