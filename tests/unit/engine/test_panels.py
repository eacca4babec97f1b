"""Pictures of a few validation pairs, and of what is wrong in them."""

import numpy as np
import pytest
import torch
from PIL import ImageDraw

from datasets.classes import CHANGE_CLASSES, SECOND_CLASSES
from datasets.task import Task
from engine.panels import CHANGE_TITLES, ERROR_KINDS, TITLES, draw_errors, error_map, panel
from models.decoding import decode
from utils.pictures import GAP, TITLE_HEIGHT

SECOND, CHANGE = Task(SECOND_CLASSES), Task(CHANGE_CLASSES)


def predict_first(image1, image2):
    """See class 1 at date 1 and class 2 at date 2; what changed says band 1 of date 1."""
    classes = torch.eye(6)[:2, :, None, None].expand(-1, -1, *image1.shape[2:])
    return decode((classes[:1], classes[1:], image1[:, 0].float()))


def predict_change(image1, image2):
    return decode((None, None, image1[:, 0].float()))


def samples(count, keys, bands=3):
    """Change in the left half, which ``keys`` label as class 1."""
    image = torch.zeros(bands, 8, 8, dtype=torch.uint8)
    image[:, :, :4] = 1
    return [{"image1": image, "image2": image, **dict.fromkeys(keys, image[0])}] * count


def test_error_map_names_every_kind():
    label = np.array([[0, 1, 1, 0, 1]], dtype=np.uint8)
    prediction = np.array([[0, 1, 2, 1, 0]], dtype=np.uint8)
    assert error_map(prediction, label).tolist() == [[0, 1, 2, 3, 4]]
    colors = [list(color) for _, color in ERROR_KINDS]
    assert draw_errors(error_map(prediction, label))[0].tolist() == colors
    with pytest.raises(ValueError, match="differ"):
        error_map(prediction, label[:, :2])


@pytest.mark.parametrize(("count", "shown"), [(1, [0]), (6, [0, 1, 2, 3, 4, 5]), (9, [0, 1, 3])])
def test_a_row_for_each_of_a_few_pairs(count, shown):
    asked = []

    class Samples(list):
        def __getitem__(self, index):
            asked.append(index)
            return super().__getitem__(index)

    one = panel(predict_first, samples(1, SECOND.label_keys), SECOND, cell=32)
    picture = panel(predict_first, Samples(samples(count, SECOND.label_keys, 5)), SECOND, cell=32)
    assert asked[: len(shown)] == shown and len(asked) == min(count, 6)
    assert picture.dtype == np.uint8
    assert picture.shape == (one.shape[0] + (len(asked) - 1) * (32 + GAP), one.shape[1], 3)


@pytest.mark.parametrize(
    ("task", "keys", "errors", "kind"),
    [
        (SECOND, ("label1", "label2"), "errors, both dates", "wrong class"),
        (SECOND, ("label1",), "errors, date 1", "right, changed"),
        (SECOND, ("label2",), "errors, date 2", "wrong class"),
        (CHANGE, ("change_mask",), "errors", "right, changed"),
    ],
)
def test_what_is_shown(task, keys, errors, kind, monkeypatch):
    texts = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda _, __, text, **___: texts.append(text))
    predictor = predict_change if task.is_binary else predict_first
    picture = panel(predictor, samples(1, keys), task, cell=8)
    titles = (*(CHANGE_TITLES if task.is_binary else TITLES), errors)
    assert texts[: len(titles)] == list(titles)
    kinds = [name for name, _ in ERROR_KINDS[1:] if not (task.is_binary and name == "wrong class")]
    assert texts[len(titles) :] == [*task.classes.names, *kinds]
    row = {
        title: picture[TITLE_HEIGHT, GAP + column * (8 + GAP) :][:8].tolist()
        for column, title in enumerate(titles)
    }
    colors = {name: list(color) for name, color in ERROR_KINDS}
    assert row[errors] == [colors[kind]] * 4 + [colors["right, unchanged"]] * 4
    unchanged, first, *others = map(list, task.classes.colors)
    blank = [[0, 0, 0]] * 8
    if task.is_binary:
        assert row["label"] == row["prediction"] == [first] * 4 + [unchanged] * 4
    else:
        assert row["prediction 2"] == [others[0]] * 4 + [unchanged] * 4
        for key in ("label1", "label2"):
            expected = [first] * 4 + [unchanged] * 4 if key in keys else blank
            assert row[f"label {key[-1]}"] == expected
