"""Class lists: names and colours by index, from files of any form."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from datasets.classes import SECOND_CLASSES, ClassList, classes_file, read_classes
from datasets.labels import read_label
from datasets.task import load_classes
from engine.labelling import count_votes, hard_votes
from engine.metrics import ConfusionMatrix, compute_metrics
from engine.predictor import Probabilities
from models.decoding import decode
from tools.scoring.statistics import count_pair
from utils.errors import DataError
from utils.pictures import save_image, save_mask


def make_classes(entries: int) -> ClassList:
    colors = [(255, 255, 255), *((i, 255 - i, 7 * i % 256) for i in range(1, entries))]
    return ClassList(tuple(f"class {i}" for i in range(entries)), tuple(colors))


def write_classes(path: Path, classes: ClassList) -> Path:
    entries = zip(classes.names, classes.colors, strict=True)
    path.write_text(json.dumps([{"name": name, "color": color} for name, color in entries]))
    return path


def every_index(classes: ClassList) -> np.ndarray:
    return np.arange(len(classes.names), dtype=np.uint8).repeat(3).reshape(-1, 3)


def test_second_is_what_the_data_set_documents():
    assert SECOND_CLASSES.num_classes == 6
    assert dict(zip(SECOND_CLASSES.names, SECOND_CLASSES.colors, strict=True)) == {
        "unchanged": (255, 255, 255),
        "water": (0, 0, 255),
        "ground": (128, 128, 128),
        "low vegetation": (0, 128, 0),
        "tree": (0, 255, 0),
        "building": (128, 0, 0),
        "playground": (255, 0, 0),
    }


@pytest.mark.parametrize("entries", [2, 7, 20, 255])
def test_every_colour_goes_through_files_and_back(entries, tmp_path):
    classes = make_classes(entries)
    write_classes(tmp_path / "classes.json", classes)
    loaded = load_classes(tmp_path)
    assert loaded == classes and loaded.num_classes == entries - 1
    mask = every_index(classes)
    rgb = classes.to_rgb(mask)
    assert [tuple(color) for color in rgb[:, 0].tolist()] == list(classes.colors)
    assert np.array_equal(classes.to_index(rgb), mask)
    for array in (rgb, mask):
        save_image(tmp_path / "a.png", array)
        assert np.array_equal(read_label(tmp_path / "a.png", loaded), mask)


@pytest.mark.parametrize(
    ("names", "colors", "reason"),
    [
        (("a",), ((0, 0, 0),), "2 to 255"),
        (("a", "b"), ((0, 0, 0),), "one colour per name"),
        (("a", "a"), ((0, 0, 0), (1, 1, 1)), "names repeat"),
        (("a", "b"), ((0, 0, 0), (0, 0, 0)), "colours repeat"),
        (("a", "b"), ((0, 0, 0), (0, 0, 256)), "0 to 255"),
        (("a", "b\nc"), ((0, 0, 0), (1, 1, 1)), "no line breaks or other control"),
        (("a", "\x1b[2J"), ((0, 0, 0), (1, 1, 1)), "no line breaks or other control"),
    ],
)
def test_impossible_class_lists_are_refused(names, colors, reason):
    with pytest.raises(ValueError, match=reason):
        ClassList(names, colors)


UNCHANGED = {"name": "unchanged", "color": (255, 255, 255)}


@pytest.mark.parametrize(
    "text",
    [
        *("", '[{"name": "unchanged", ', "3", "null", '{"unchanged": [255, 255, 255]}', "[1, 2]"),
        *(json.dumps(entries) for entries in ([], [UNCHANGED], [UNCHANGED, {"color": (1, 2, 3)}])),
        *(
            json.dumps([UNCHANGED, {"name": "a", "color": color}])
            for color in ((1, 2), (1, 2, 300), (1, 2, None), (1, 2, float("inf")), "red", 5)
        ),
        json.dumps([{"name": str(i), "color": (i % 256, i // 256, 0)} for i in range(256)]),
        "\udcff\udcfe",
    ],
)
def test_broken_class_file_is_named(text, tmp_path):
    path = tmp_path / "classes.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError) as caught:
        load_classes(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and len(message.splitlines()) == 1
    assert "expected a list like" in message and '"color"' in message


def test_class_file_of_any_name_also_with_a_byte_order_mark(tmp_path):
    path = write_classes(tmp_path / "land cover.txt", make_classes(9))
    path.write_bytes(path.read_text(encoding="utf-8").encode("utf-8-sig"))
    assert read_classes(classes_file(path)) == make_classes(9)
    assert classes_file(tmp_path) == tmp_path / "classes.json"
    with pytest.raises(DataError, match=r"classes\.json: no such file; name a JSON file"):
        read_classes(classes_file(tmp_path))


def test_the_longest_list_works_from_prediction_to_score(tmp_path):
    classes = make_classes(255)
    mask = every_index(classes)
    save_mask(tmp_path / "label.png", mask, classes.colors)  # a palette of 255 colours
    assert np.array_equal(read_label(tmp_path / "label.png", classes), mask)
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
