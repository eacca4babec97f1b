import pickle
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from datasets.augment import TrainTransform
from tests.helpers.processes import REPO

GEOMETRIES = {
    "identity": lambda array: array,
    "horizontal flip": lambda array: array[:, ::-1],
    "vertical flip": lambda array: array[::-1],
    "quarter turn": lambda array: np.rot90(array, 1),
    "half turn": lambda array: np.rot90(array, 2),
    "three quarter turns": lambda array: np.rot90(array, 3),
}
SHAPE_KEEPING = {"identity", "horizontal flip", "vertical flip", "half turn"}
KEYS = ("image1", "image2", "label1", "label2", "change_mask")


@pytest.fixture
def same_light(monkeypatch) -> None:
    """Images of other bands than RGB are moved alone: they must match exactly."""
    monkeypatch.setattr("datasets.augment.change_light", lambda image, rng: image)


def make_sample(height: int, width: int, bands: int = 3, grey: bool = False) -> dict:
    """Noise, without symmetry, in the middle of the range; the labels hold row and column."""
    rng = np.random.default_rng(0)
    images = rng.integers(70, 180, (2, height, width, 1 if grey else bands), dtype=np.uint8)
    row, column = np.mgrid[:height, :width].astype(np.uint8)
    return {
        "name": "a",
        "image1": images[0].repeat(bands if grey else 1, axis=-1),
        "image2": images[1].repeat(bands if grey else 1, axis=-1),
        "label1": row,
        "label2": column,
        "change_mask": (row ^ column) % 2,
    }


def geometry_of(moved: dict, sample: dict) -> str:
    found = [
        name
        for name, turn in GEOMETRIES.items()
        if np.array_equal(turn(sample["label1"]), moved["label1"])
        and np.array_equal(turn(sample["label2"]), moved["label2"])
    ]
    assert len(found) == 1
    return found[0]


def likeness(image1: np.ndarray, image2: np.ndarray) -> float:
    if image1.shape != image2.shape:
        return -1.0
    return np.corrcoef(image1.mean(axis=-1).ravel(), image2.mean(axis=-1).ravel())[0, 1]


def same(sample1: dict, sample2: dict) -> bool:
    return all(np.array_equal(sample1[key], sample2[key]) for key in KEYS)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((8, 8), set(GEOMETRIES)), ((8, 12), SHAPE_KEEPING), ((12, 7), SHAPE_KEEPING)],
)
@pytest.mark.usefixtures("same_light")
def test_geometries_occur_equally_often_and_are_shared(size, expected):
    transform, sample = TrainTransform(is_rgb=False), make_sample(*size, bands=4)
    counts = Counter()
    draws = 200 * len(expected)
    for epoch in range(draws):
        moved = transform(sample, (0, epoch, 0))
        name = geometry_of(moved, sample)
        for key in KEYS:
            assert np.array_equal(moved[key], GEOMETRIES[name](sample[key])), (name, key)
        counts[name] += 1
    assert set(counts) == expected
    assert all(150 < count < 250 for count in counts.values()), counts


def test_coloured_images_share_the_geometry_of_their_labels():
    transform, sample = TrainTransform(), make_sample(12, 12, grey=True)
    seen = set()
    for epoch in range(80):
        moved = transform(sample, (1, epoch, 5))
        name = geometry_of(moved, sample)
        seen.add(name)
        for key in ("image1", "image2"):
            scores = {
                other: likeness(turn(sample[key]), moved[key]) for other, turn in GEOMETRIES.items()
            }
            assert max(scores, key=scores.get) == name
            assert scores[name] > 0.9
    assert seen == set(GEOMETRIES)


@pytest.mark.parametrize("size", [(24, 24), (17, 30)])
@pytest.mark.parametrize("crop_size", [None, 11])
def test_same_seed_same_output(size, crop_size):
    sample = make_sample(*size)
    transform = TrainTransform(crop_size)
    other = pickle.loads(pickle.dumps(transform))
    for epoch in range(15):
        first = transform(sample, (0, epoch, 2))
        random.seed(epoch)
        np.random.seed(epoch)
        transform(sample, (9, 9, 9))
        assert same(transform(sample, (0, epoch, 2)), first)
        assert same(other(sample, (0, epoch, 2)), first)


@pytest.mark.parametrize("is_rgb", [True, False])
def test_colour_differs_between_the_dates(is_rgb):
    transform, sample = TrainTransform(is_rgb=is_rgb), make_sample(16, 16)
    sample["image2"] = sample["image1"].copy()
    pairs = [transform(sample, (0, epoch, 0)) for epoch in range(100)]
    differ = [not np.array_equal(pair["image1"], pair["image2"]) for pair in pairs]
    # Each date stays as it is with 0.5 * 0.7 = 35 %, so that both do with about 12 %.
    assert 75 < sum(differ) < 98
    shifts = [
        (float(pair["image1"].mean()) - sample["image1"].mean(), pair["image2"].mean())
        for pair in pairs
    ]
    brightness1, brightness2 = np.array(shifts).T
    assert brightness1.std() > 8 and brightness2.std() > 8
    assert abs(np.corrcoef(brightness1, brightness2)[0, 1]) < 0.35


def test_input_is_not_changed_and_output_is_fit_for_tensors():
    sample = make_sample(16, 24)
    before = {key: sample[key].copy() for key in KEYS}
    for crop_size in (None, 9):
        moved = TrainTransform(crop_size)(sample, (0, 0, 1))
        assert moved["name"] == "a" and set(moved) == set(sample)
        for key in KEYS:
            assert moved[key].dtype == np.uint8
            assert moved[key].flags.c_contiguous
            assert np.array_equal(sample[key], before[key])


@pytest.mark.parametrize("size", [(20, 20), (20, 28), (31, 20)])
@pytest.mark.usefixtures("same_light")
def test_crops_are_squares_cut_out_of_all_at_the_same_place(size):
    transform, sample = TrainTransform(crop_size=16, is_rgb=False), make_sample(*size, bands=4)
    geometries, tops, lefts = Counter(), Counter(), Counter()
    for epoch in range(400):
        moved = transform(sample, (0, epoch, 0))
        row, column = moved["label1"].astype(int), moved["label2"].astype(int)
        assert row.shape == column.shape == (16, 16)
        for key in KEYS:  # row and column say where each pixel comes from
            assert np.array_equal(moved[key], sample[key][row, column])
        top, left = row.min(), column.min()
        window = {key: sample[key][top : top + 16, left : left + 16] for key in KEYS}
        geometries[geometry_of(moved, window)] += 1
        tops[top] += 1
        lefts[left] += 1
    assert set(geometries) == set(GEOMETRIES)
    assert set(tops) == set(range(size[0] - 15))
    assert set(lefts) == set(range(size[1] - 15))


def test_place_of_the_crop_is_independent_of_the_geometry():
    transform, sample = TrainTransform(crop_size=16, is_rgb=False), make_sample(18, 18, bands=4)
    counts = {name: np.zeros((3, 3)) for name in GEOMETRIES}
    for epoch in range(1800):
        moved = transform(sample, (0, epoch, 0))
        top, left = moved["label1"].min(), moved["label2"].min()
        window = {key: sample[key][top : top + 16, left : left + 16] for key in KEYS}
        counts[geometry_of(moved, window)][top, left] += 1
    for name, places in counts.items():  # 33 of each of the 54 combinations
        assert places.min() > 14 and places.max() < 56, (name, places)


def test_hue_is_independent_of_brightness():
    transform, sample = TrainTransform(), make_sample(16, 16)
    # Hue and saturation keep the maximum over the bands, brightness and contrast change it.
    kinds = Counter()
    for epoch in range(400):
        moved = transform(sample, (0, epoch, 0))
        base = GEOMETRIES[geometry_of(moved, sample)](sample["image1"]).astype(int)
        image = moved["image1"].astype(int)
        brighter = np.abs(image.max(axis=-1) - base.max(axis=-1)).max() > 1
        kinds["brightness" if brighter else "hue" if (image != base).any() else "none"] += 1
    assert 170 < kinds["brightness"] < 230  # 50 %
    assert 40 < kinds["hue"] < 80  # 15 %
    assert 115 < kinds["none"] < 165  # 35 %


def test_no_network_at_import():
    script = """
import socket
def refuse(*args, **kwargs):
    print("asked the network", args)
    raise OSError("no network")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = socket.create_connection = socket.gethostbyname = refuse
import datasets.augment
"""
    command, options = [sys.executable, "-c", script], {"cwd": REPO, "env": {"PATH": ""}}
    done = subprocess.run(command, capture_output=True, check=True, timeout=120, **options)
    assert done.stdout == done.stderr == b""
