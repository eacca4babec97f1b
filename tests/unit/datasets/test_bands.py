"""Which bands of 8 and 16 bits a run reads, and their statistics."""

import json

import numpy as np
import pytest

import train
from datasets.bands import RGB, Bands, Imagery
from datasets.images import read_raster
from datasets.pairs import Pair, index_pairs
from datasets.statistics import (
    MEASURED_PAIRS,
    choose_bands,
    measure,
    measured_pairs,
    read_statistics,
    sum_bands,
)
from engine.config import band_numbers
from engine.run import saved_imagery
from models.checkpoint import open_checkpoint
from tests.helpers.band_models import FOUR, STATISTICS, checkpoint_of
from tools import check_data
from utils.errors import CheckpointError, DataError
from utils.tensor_files import save_checkpoint


def images_of(pairs: list[Pair]) -> np.ndarray:
    return np.stack([read_raster(path) for pair in pairs for path in pair.files[:2]])


# --- which bands -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("1", (1,)), ("4", (1, 2, 3, 4)), ("4,", (4,)), ("4,3,2", (4, 3, 2)), ("8,1", (8, 1))],
)
def test_bands_are_a_number_or_a_list(text, numbers):
    assert band_numbers(text) == numbers


@pytest.mark.parametrize("text", ["0", "-1", "", ",", "1,1", "1,,2", "a", "129", "1,129", "9" * 30])
def test_bands_that_make_no_sense_are_refused(text):
    with pytest.raises(SystemExit) as stop:
        train.parse_args(["--bands", text])
    assert stop.value.code == 2


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
        Imagery(**{**STATISTICS.to_dict(), **change})


@pytest.mark.parametrize("imagery", [None, [1, 2], {"bands": None}, {"mean": [10**400] * 3}])
def test_imagery_of_a_checkpoint_is_checked(imagery, tmp_path):
    checkpoint = checkpoint_of()
    path = tmp_path / "a.pth"
    config = {**checkpoint.config.to_dict(), "imagery": imagery}
    save_checkpoint(path, {"config": config, "model": checkpoint.tensors})
    with pytest.raises(CheckpointError, match=f"^{path}: of another version"):
        open_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"^the run to resume: "):
        saved_imagery({"config": config}, RGB)


def test_depth_follows_from_the_first_image(bands_root, sample_root):
    assert choose_bands((4, 1), index_pairs(bands_root / "train")[0].image1) == Bands((4, 1), 16)
    image = index_pairs(sample_root / "train")[0].image1
    assert choose_bands((1, 2, 3), image) == RGB
    with pytest.raises(DataError, match=f"^{image}: has 3 bands of 8 bits, but bands 1, 2, 3, 4"):
        choose_bands((1, 2, 3, 4), image)


# --- statistics ------------------------------------------------------------------------------


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


@pytest.mark.parametrize("number", [1, 99, 100, 101, 250, 1001])
def test_measured_pairs_are_spread(number):
    chosen = measured_pairs(range(number))
    assert len(chosen) + 50 * (number < 100) > MEASURED_PAIRS / 2 and len(chosen) <= MEASURED_PAIRS
    assert max(chosen) >= number * 0.9 - 1


def test_check_data_measures_the_training_pairs(bands_root, tmp_path, capsys):
    assert check_data.main([str(bands_root), "--bands", "4", "--outdir", str(tmp_path)]) == 0
    assert "16-bit band, train" in capsys.readouterr().out
    found = json.loads((tmp_path / "report.json").read_text())["band_statistics"]
    values = images_of(index_pairs(bands_root / "train")).reshape(-1, 4).astype(np.float64)
    assert (found["bits"], found["pairs"]) == (16, 8)
    np.testing.assert_allclose(found["mean"], values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found["std"], values.std(0), rtol=1e-12)
    imagery = read_statistics(tmp_path / "report.json", Bands((4, 2), 16))
    assert imagery.mean == (found["mean"][3], found["mean"][1])
    assert imagery == measure(index_pairs(bands_root / "train"), Bands((4, 2), 16))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no band statistics"),
        ("[1]", "no band statistics"),
        ('{"mean": [1, 2, 3, 4]}', "no band statistics"),
        ('{"band_statistics": null}', "no band statistics, since check_data.py found training"),
        ('{"mean": [1, 2, 3, 4], "std": [1, 1, 1, 1], "bits": Infinity}', "no band statistics"),
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
