"""Which bands of 8 and 16 bits a run reads, and their statistics."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from datasets.bands import RGB, RGB_IMAGERY, Bands, Imagery
from datasets.images import read_all
from datasets.pairs import Pair, index_pairs
from datasets.statistics import (
    MEASURED_PAIRS,
    choose_bands,
    find_imagery,
    measure,
    measured_pairs,
    read_statistics,
    statistics_to_dict,
    sum_bands,
)
from tests.helpers.band_models import FOUR, STATISTICS
from utils.errors import DataError


def images_of(pairs: list[Pair]) -> np.ndarray:
    return np.stack([read_all(path)[0] for pair in pairs for path in pair.files[:2]])


@pytest.mark.parametrize("numbers", [(), (0,), (1, 1), (True,), ("1",), (1.0,), (129,)])
def test_bands_of_a_checkpoint_are_checked(numbers):
    with pytest.raises(ValueError, match="bands"):
        Bands(numbers)


@pytest.mark.parametrize(
    "change",
    [
        *({"mean": (1.0,)}, {"std": (1, 1, 1, 0)}, {"mean": (1, 2, 3, float("nan"))}),
        *({"std": "abcd"}, {"mean": (1, 2, 3, 10**400)}, {"mean": None}),
        *({"bands": None}, {"bands": [1, 2]}, {"bands": {"numbers": (1, 2, 3, 4), "bits": 16.0}}),
    ],
)
def test_statistics_of_a_checkpoint_are_checked(change):
    with pytest.raises((TypeError, ValueError)):
        Imagery(**{**asdict(STATISTICS), **change})


def test_depth_follows_from_the_first_image(bands_root, sample_root):
    assert choose_bands((4, 1), index_pairs(bands_root / "train")[0].image1) == Bands((4, 1), 16)
    image = index_pairs(sample_root / "train")[0].image1
    assert choose_bands((1, 2, 3), image) == RGB
    with pytest.raises(DataError, match=f"^{image}: has 3 bands of 8 bits, but bands 1, 2, 3, 4"):
        choose_bands((1, 2, 3, 4), image)


def test_statistics_equal_numpys(bands_root):
    pairs = index_pairs(bands_root / "train")
    imagery = measure(pairs, Bands((4, 2), 16))
    values = images_of(pairs)[..., [3, 1]].reshape(-1, 2).astype(np.float64)
    np.testing.assert_allclose(imagery.mean, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(imagery.std, values.std(0), rtol=1e-12)


def test_no_digit_is_lost_on_large_values():
    image = np.full((50, 50, 1), 65_535, dtype=np.uint16)
    image[0, 0] = 65_534
    sums = sum_bands(image) + sum_bands(image)
    assert sums.mean()[0] == pytest.approx(65_535 - 1 / 2500, rel=1e-15)
    assert sums.std()[0] == pytest.approx((1 / 2500 * (1 - 1 / 2500)) ** 0.5, rel=1e-12)


def test_a_run_takes_what_is_given_else_what_is_known_else_measures(bands_root, capsys):
    pairs = index_pairs(bands_root / "train")
    assert find_imagery(FOUR, STATISTICS, pairs) is STATISTICS
    assert find_imagery(RGB, None, pairs) is RGB_IMAGERY
    assert find_imagery(FOUR, None, pairs) == measure(pairs, FOUR)
    assert "measuring bands 1, 2, 3, 4 of 16 bits on 8 of 8 training" in capsys.readouterr().out


def test_statistics_are_written_and_read_by_band_number(bands_root, tmp_path):
    pairs = index_pairs(bands_root / "train")
    images = [sum_bands(image) for image in images_of(pairs)]
    found = statistics_to_dict(sum(images[1:], images[0]), 16, len(pairs))
    (tmp_path / "report.json").write_text(json.dumps({"band_statistics": found}))
    imagery = read_statistics(tmp_path / "report.json", Bands((4, 2), 16))
    assert imagery.mean == (found["mean"][3], found["mean"][1])
    assert imagery == measure(pairs, Bands((4, 2), 16))


@pytest.mark.parametrize("number", [1, 99, 100, 101, 250, 1001])
def test_measured_pairs_are_spread(number):
    chosen = measured_pairs(range(number))
    assert len(chosen) + 50 * (number < 100) > MEASURED_PAIRS / 2 and len(chosen) <= MEASURED_PAIRS
    assert max(chosen) >= number * 0.9 - 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no band statistics"),
        ('{"mean": [1, 2, 3, 4]}', "no band statistics"),
        ('{"band_statistics": null}', "no band statistics, since check_data.py found training"),
        (f'{{"mean": [1, 2, 3, {10**400}], "std": [1, 1, 1, 1]}}', "no band statistics"),
        ('{"mean": ["a", 2, 3, 4], "std": [1, 1, 1, 1]}', "no band statistics"),
        ('{"mean": [1, 2, 3], "std": [1, 1, 1]}', "statistics of 3 bands, but bands 1, 2, 3, 4"),
        ('{"mean": [1, 2, 3, 4], "std": [1, 1, 1, 1], "bits": 8}', "of 8-bit images"),
        ('{"mean": [1, 2, 3, 4], "std": [1, 1, 0, 1]}', "band 3 has one value everywhere"),
        ('{"mean": [1, 2, 3, Infinity], "std": [1, 1, 1, 1]}', "is not a finite number"),
    ],
)
def test_statistics_files_that_do_not_fit(text, message, tmp_path):
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(DataError, match=f"^{path}: .*{message}"):
        read_statistics(path, FOUR)
