"""A data set with pixels without data, from training to scores."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

import label
import test as predict
import train
from datasets.classes import SECOND_CLASSES
from tests.helpers.image_files import read
from tests.helpers.raster_files import write_tiff
from tests.helpers.runs import VAL_NAMES, latest_file, options, read_masks, train_options
from tools import check_data, score
from utils.errors import DataError
from utils.tensor_files import read_checkpoint

HOLE = np.s_[10:30, 20:50]  # 600 of 64 × 64 pixels


@pytest.fixture(scope="module")
def root(sample_root, tmp_path_factory) -> Path:
    """TIFFs with a hole at date 1 in the first pairs; of 00001 nothing has data. Read only."""
    root = tmp_path_factory.mktemp("gaps") / "data"
    shutil.copytree(sample_root, root)
    for number in (0, 1, 2):
        for path in root.glob(f"*/im1/{number:05d}.png"):
            values = read(path)
            values[np.s_[:] if number == 1 else HOLE] = 255
            path.unlink()
            write_tiff(path.with_suffix(".tif"), values, nodata=255)
    return root


@pytest.fixture(scope="module")
def outdir(root, tmp_path_factory) -> Path:
    """A run and its validation masks."""
    outdir = tmp_path_factory.mktemp("run")
    train.main(train_options(root, outdir, "--save-mask", "--cache", "disk", "--crop-size", 48))
    return outdir


def assert_empty(masks: dict[str, np.ndarray]) -> None:
    for date in ("im1", "im2"):
        assert not masks[f"{date}/00001"].any()
        assert not masks[f"{date}/00000"][HOLE].any() and not masks[f"{date}/00002"][HOLE].any()


def test_masks_are_empty_there_and_scores_leave_it_out(root, outdir, tmp_path, capsys):
    losses = read_checkpoint(latest_file(outdir))
    assert np.isfinite(losses["metrics"]["score"])
    assert_empty(read_masks(outdir / "masks/val"))
    for rest in (["--overwrite"], []):  # the second time from the masks on disk
        metrics = predict.main(options(root, outdir, *rest))
        masks = read_masks(outdir / "masks/test")
        assert_empty(masks)
        pixels = right = 0
        for key, mask in masks.items():
            truth = read(root / "val" / f"{key.replace('im', 'label')}.png")
            known = np.ones((64, 64), bool)
            if key[-1] in "012":
                known[np.s_[:] if key[-1] == "1" else HOLE] = False
            pixels += known.sum()
            right += (mask == SECOND_CLASSES.to_index(truth))[known].sum()
        assert metrics.oa == pytest.approx(right / pixels)
    score.main([
        *("--prediction", str(outdir / "masks/test"), "--label", str(root / "val")),
        *("--bootstrap", "0", "--json", str(tmp_path / "s.json")),
    ])  # fmt: skip
    found = json.loads((tmp_path / "s.json").read_text())["scores"]
    assert found["score"]["value"] == pytest.approx(metrics.score)
    assert 0 < found["oa_image_mean"]["value"] <= 1
    assert "nan" not in capsys.readouterr().out


def test_pseudo_masks_are_empty_there(root, outdir, capsys):
    for rest in (["--overwrite"], []):
        coverage = label.main(options(root, outdir, *rest))
        assert_empty(read_masks(outdir / "masks/train"))
        without = 2 * (64 * 64 + 2 * 600)
        assert coverage.labelled.sum() == 2 * 12 * 64 * 64 - without
    train.main(train_options(root, outdir, "--use-pseudo-label"))


def test_check_says_so_and_counts_the_rest(root, tmp_path, capsys):
    check_data.main([str(root), "--outdir", str(tmp_path)])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["splits"]["val"]["label_pixels_read"] == 3 * 64 * 64 - 2 * 600
    (found,) = [each for each in report["findings"] if each["kind"] == "no-data"]
    assert found["level"] == "note" and found["count"] == 6
    assert {each["detail"] for each in found["entries"]} == {
        "14.6% of the pixels", "100.0% of the pixels",
    }  # fmt: skip
    statistics = report["band_statistics"]
    mean = np.mean([statistics["dates"][date]["mean"] for date in (0, 1)], axis=0)
    assert statistics["mean"] == pytest.approx(mean, rel=0.1) and max(statistics["mean"]) < 200


def test_a_validation_set_without_any_data_is_named(root, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(root, data)
    for folder in ("im1", "im2", "label1", "label2"):
        for name in VAL_NAMES:
            if name != "00001":
                next((data / "val" / folder).glob(f"{name}.*")).unlink()
    with pytest.raises(DataError, match="no validation pair has a pixel with data"):
        train.main(train_options(data, tmp_path / "out"))


@pytest.mark.parametrize("script", [train, predict, label])
def test_pairs_on_two_grids_are_refused(script, outdir, root, tmp_path):
    data, place = tmp_path / "data", rasterio.transform.from_origin(0, 0, 10, 10)
    shutil.copytree(root, data)
    for path in [p for s in ("train", "val") for p in data.glob(f"{s}/im[12]/00003.png")]:
        shift = 32 if path.parent.name == "im2" else 0
        values = np.asarray(Image.open(path))
        path.unlink()
        moved = rasterio.transform.from_origin(10 * shift, 0, 10, 10) if shift else place
        write_tiff(path.with_suffix(".tif"), values, crs="EPSG:32632", transform=moved)
    wanted = train_options if script is train else options
    if script is not train:
        shutil.copytree(outdir / "models", tmp_path / "out/models")
    with pytest.raises(DataError, match=r"00003.tif: .*UTM zone 32N.* 32.0 pixels apart; warp"):
        script.main(wanted(data, tmp_path / "out"))
