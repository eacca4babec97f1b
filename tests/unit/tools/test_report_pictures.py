import numpy as np
import pytest
import torch

from datasets.classes import SECOND_CLASSES
from engine.panels import ERROR_KINDS, TITLES, error_map, to_picture, validation_panels
from tools.reporting.gallery import OKABE_ITO, oklab, safe_colors
from utils.pictures import GAP

# Viénot, Brettel, Mollon (1999): what is left of linear RGB without red or green cones.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]),
    "deuteranopia": np.array(
        [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]
    ),
}


def least_distance(colors, blindness: str) -> float:
    coded = np.asarray(colors) / 255
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ BLINDNESS[blindness].T, 0, 1)
    coded = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
    places = oklab(255 * coded)
    distances = np.linalg.norm(places[:, None] - places[None], axis=2)
    return (distances + 9 * np.eye(len(colors))).min()


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_safe_colors_stay_apart_for_the_color_blind(blindness):
    assert least_distance(safe_colors(SECOND_CLASSES.colors)[1:], blindness) > 0.12
    assert least_distance([color for _, color in ERROR_KINDS], blindness) > 0.11
    assert least_distance(OKABE_ITO, blindness) > 0.07


def test_safe_colors_resemble_those_of_the_data_and_never_repeat():
    colors = dict(zip(SECOND_CLASSES.names, safe_colors(SECOND_CLASSES.colors), strict=True))
    assert colors["unchanged"] == (255, 255, 255)
    assert colors["water"] == (0, 114, 178)
    for classes in (1, 8, 9, 40, 254):
        given = [(255, 255, 255), *((i, 255 - i, i // 2) for i in range(classes))]
        assert len(set(safe_colors(given))) == classes + 1


def test_error_map_names_every_kind():
    label = np.array([[0, 1, 1, 0, 1]], dtype=np.uint8)
    prediction = np.array([[0, 1, 2, 1, 0]], dtype=np.uint8)
    assert error_map(prediction, label).tolist() == [[0, 1, 2, 3, 4]]
    assert len(ERROR_KINDS) == 5
    with pytest.raises(ValueError, match="differ"):
        error_map(prediction, label[:, :2])


def test_panels_show_every_sample():
    rng = np.random.default_rng(0)
    size = (24, 32)
    masks = [rng.integers(0, 7, size, dtype=np.uint8) for _ in range(4)]
    images = [torch.from_numpy(rng.integers(0, 256, (3, *size), dtype=np.uint8)) for _ in range(2)]
    full = dict(zip(("image1", "image2"), images, strict=True))
    full |= {"label1": torch.from_numpy(masks[0]), "label2": torch.from_numpy(masks[1])}
    bare = {"image1": np.zeros((3, *size), np.uint8), "image2": rng.random((5, *size))}
    panels = validation_panels(
        [full, bare], [torch.from_numpy(masks[2])] * 2, [masks[3]] * 2, SECOND_CLASSES, cell=64
    )
    assert panels.dtype == np.uint8
    assert panels.shape[1] > len(TITLES) * 64
    single = validation_panels([full], masks[2:3], masks[3:], SECOND_CLASSES, cell=64)
    assert panels.shape[0] - single.shape[0] == 64 + GAP
    with pytest.raises(ValueError):
        validation_panels([full, bare], masks[:1], masks[:1], SECOND_CLASSES)


@pytest.mark.parametrize("shape", [(1, 8, 9), (3, 8, 9), (13, 4, 3)])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
def test_any_image_becomes_a_picture(shape, kind):
    picture = to_picture((np.random.default_rng(0).random(shape) * 200).astype(kind))
    assert picture.dtype == np.uint8
    assert picture.shape == (*shape[1:], 3)
