import numpy as np
import pytest

from datasets.classes import SECOND_CLASSES
from engine.panels import ERROR_KINDS
from tools.reporting.gallery import OKABE_ITO, oklab, safe_colors

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
