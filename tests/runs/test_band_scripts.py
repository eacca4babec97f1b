"""Bands of 8 and 16 bits through the scripts and tools."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import label
import test as predict
import train
from datasets.bands import Bands, Imagery
from datasets.classes import SECOND_CLASSES
from datasets.images import read_header, read_picture, read_raster, save_raster
from datasets.labels import read_label
from datasets.pairs import Pair, index_pairs
from datasets.statistics import measure
from models.checkpoint import open_checkpoint
from tests.helpers.band_models import FOUR, STATISTICS
from tests.helpers.runs import best_files, latest_file, options, train_options
from tools import check_data
from tools.checking.pair_report import inspect_pair
from tools.composing.source import MaskReader, SceneFiles, check_scene, ignoring
from tools.reporting.pairs import read_pair
from tools.scenes.sample import SampleSet, write_sample_data
from utils.errors import DataError, OptionError
from utils.tensor_files import read_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def run(bands_root, tmp_path_factory) -> Path:
    """A training run on it that measures its statistics. Read only."""
    outdir = tmp_path_factory.mktemp("run")
    train.main(train_options(bands_root, outdir, "--bands", 4))
    return outdir


# --- scripts ---------------------------------------------------------------------------------


def test_a_run_records_what_it_measured(run, bands_root):
    imagery = open_checkpoint(best_files(run)[0]).config.imagery
    assert imagery == measure(index_pairs(bands_root / "train"), FOUR)
    assert open_checkpoint(latest_file(run)).config.imagery == imagery


def test_train_label_test_and_restart(run, bands_root, tmp_path, capsys):
    outdir = tmp_path / "out"
    shutil.copytree(run, outdir)
    coverage = label.main(options(bands_root, outdir, "--no-tta"))
    assert coverage is not None
    metrics = predict.main(options(bands_root, outdir))
    assert 0 <= metrics.oa <= 1
    assert "bands 1, 2, 3, 4 of 16 bits" in capsys.readouterr().out
    for folder, number in (("train", 8), ("test", 4)):
        for date in ("im1", "im2"):
            masks = sorted((outdir / "masks" / folder / date).glob("*.png"))
            assert len(masks) == number
            assert all(read_label(mask, SECOND_CLASSES).shape == (64, 64) for mask in masks)
    assert predict.main(options(bands_root, outdir)) == metrics
    assert "4 pairs were finished already" in capsys.readouterr().out
    evaluated = train.main(
        [*options(bands_root, outdir), "--load-from", str(best_files(outdir)[0])]
    )
    assert evaluated.score == pytest.approx(metrics.score)
    train.main(
        train_options(bands_root, outdir, "--bands", 4, "--use-pseudo-label", "--cache", "disk")
    )


def test_a_run_goes_on_with_its_own_statistics(run, bands_root, tmp_path, monkeypatch, capsys):
    outdir = tmp_path / "out"
    shutil.copytree(run, outdir)

    def refuse(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("datasets.statistics.measure", refuse)
    with pytest.raises(OptionError, match="the run to resume had bands"):
        train.main(train_options(bands_root, outdir, "--bands", "1,2,3", "--resume"))
    latest = latest_file(outdir)
    saved = read_checkpoint(latest)  # as if it had been ended after the first of two epochs
    save_checkpoint(latest, {**saved, "options": {**saved["options"], "epochs": 2}})
    statistics = tmp_path / "s.json"
    statistics.write_text(json.dumps({"mean": STATISTICS.mean, "std": STATISTICS.std}))
    more = ("--epochs", 2, "--resume", "--band-statistics", statistics)
    train.main(train_options(bands_root, outdir, "--bands", 4, *more))
    assert "--band-statistics is left alone" in capsys.readouterr().out
    after = open_checkpoint(latest)
    assert after.info["training"]["epoch"] == saved["training"]["epoch"] + 1
    assert after.config.imagery == Imagery(**saved["config"]["imagery"]) != STATISTICS


def test_a_mistyped_statistics_file_is_told_before_anything_is_decoded(bands_root, tmp_path):
    missing = tmp_path / "s.json"
    argv = ("--bands", 4, "--cache", "disk", "--band-statistics", missing)
    with pytest.raises(DataError, match=f"^{missing}: no band statistics"):
        train.main(train_options(bands_root, tmp_path / "out", *argv))
    assert not (tmp_path / "out" / "cache").exists()


@pytest.mark.parametrize("more", [("--bands", 4), ("--band-statistics", "s.json")])
def test_bands_are_not_asked_of_a_checkpoint_that_is_loaded(more, bands_root, tmp_path):
    with pytest.raises(OptionError, match=r"^--load-from: the checkpoint knows its bands"):
        train.main(train_options(bands_root, tmp_path, "--load-from", "a.pth", *more))


def test_given_statistics_and_a_start_from_rgb(bands_root, sample_root, tmp_path):
    train.main(train_options(sample_root, tmp_path / "rgb"))
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"mean": STATISTICS.mean, "std": STATISTICS.std}))
    rgb = latest_file(tmp_path / "rgb")
    argv = train_options(bands_root, tmp_path / "four", "--bands", "4,2", "--band-statistics", path)
    train.main([*argv, "--pretrain-from", str(rgb)])
    config = open_checkpoint(latest_file(tmp_path / "four")).config
    assert config.imagery == Imagery(Bands((4, 2), 16), (1500, 1100), (700, 400))
    with pytest.raises(DataError, match="does not fit the data"):
        predict.main(options(bands_root, tmp_path / "rgb", "--checkpoints", rgb))


def test_default_bands_of_8_bits_are_normalised_as_imagenet(sample_root, tmp_path):
    train.main(train_options(sample_root, tmp_path))
    assert open_checkpoint(latest_file(tmp_path)).config.imagery == Imagery()


@pytest.mark.slow
def test_two_processes_share_what_one_measured(bands_root, tmp_path):
    train.main(train_options(bands_root, tmp_path, "--bands", "4,", "--nproc", 2))
    imagery = open_checkpoint(latest_file(tmp_path)).config.imagery
    assert imagery == measure(index_pairs(bands_root / "train"), Bands((4,), 16))


def test_images_are_copies_where_all_bands_are_equal(tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (16, 16, 5)).astype(np.uint8)
    other = values.copy()
    other[0, 0, 3] ^= 1

    def digest(name: str, array: np.ndarray) -> str:
        path = tmp_path / name
        if path.suffix == ".npy":
            np.save(path, array)
        else:
            Image.fromarray(array).save(path)
        report = inspect_pair(Pair("a", path, path), SECOND_CLASSES)
        return report.images[0].digest

    assert digest("a.npy", values) == digest("b.npy", values) != digest("c.npy", other)
    rgb = digest("rgb.png", values[..., :3])
    assert rgb == digest("rgba.png", other[..., :4]) == digest("rgb.npy", values[..., :3])
    grey = digest("grey.png", values[..., 0])
    assert grey == digest("grey.npy", values[..., 0])
    assert grey == digest("grey_rgb.png", values[..., :1].repeat(3, -1))


def test_alpha_of_16_bits_does_not_hide_a_copy(tmp_path):
    values = np.random.default_rng(0).integers(0, 2**16, (16, 16, 4)).astype(np.uint16)
    digests = set()
    for alpha in (0, 65_535):
        values[..., 3] = alpha
        path = tmp_path / f"{alpha}.png"
        save_raster(path, values)
        assert read_header(path).has_alpha
        report = inspect_pair(Pair("a", path, path), SECOND_CLASSES)
        digests.add(report.images[0].digest)
    assert len(digests) == 1


# --- tools -----------------------------------------------------------------------------------


def test_check_data_tells_which_bands_are_missing(bands_root, tmp_path, capsys):
    assert check_data.main([str(bands_root), "--bands", "5", "--outdir", str(tmp_path)]) == 1
    (finding,) = json.loads((tmp_path / "report.json").read_text())["findings"]
    assert finding["kind"] == "band-count" and finding["count"] == 24
    assert (tmp_path / "suspicious.png").exists()


def test_convert_copies_them_as_they_are(bands_root, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(bands_root, source)
    for path in source.glob("train/im[12]/*.png"):
        np.save(path.with_suffix(".npy"), read_raster(path))
        path.unlink()
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(source / "val" / "im1" / "00001.bmp")
    (source / "val" / "im1" / "00001.png").unlink()
    two = np.random.default_rng(0).integers(0, 255, (64, 64, 2)).astype(np.uint8)
    np.save(source / "val" / "im2" / "00001.npy", two)
    (source / "val" / "im2" / "00001.png").unlink()
    argv = [str(source), "--convert", str(out), "--outdir", str(tmp_path / "log")]
    assert check_data.main(argv) == 0
    for path in sorted(source.glob("*/im[12]/*.*")):
        copy = out / path.relative_to(source)
        if path.suffix == ".bmp":
            assert Image.open(copy.with_suffix(".png")).mode == "RGB"
        else:
            assert copy.read_bytes() == path.read_bytes()


def test_composing_loses_no_band_of_a_tiff(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    image = tmp_path / "a.tif"
    options = {"driver": "GTiff", "dtype": "uint8", "photometric": "rgb", "alpha": "unspecified"}
    rasterio.open(image, "w", width=64, height=64, count=4, **options).close()
    with pytest.raises(DataError, match=f"^{image}: 4 bands of uint8; pairs are composed of"):
        check_scene(
            SceneFiles("a", "a", image, image),
            MaskReader(SECOND_CLASSES, ignoring(SECOND_CLASSES, [])),
            32,
        )


def test_composing_from_them_is_refused(bands_root):
    image = index_pairs(bands_root / "train")[0].image1
    scene = SceneFiles("a", "a", image, bands_root / "train" / "truth1" / image.name)
    with pytest.raises(
        DataError, match=f"^{image}: 4 bands of uint16; pairs are composed of 8-bit"
    ):
        check_scene(scene, MaskReader(SECOND_CLASSES, ignoring(SECOND_CLASSES, [])), 32)


def test_pictures_of_a_report_are_of_the_chosen_bands(bands_root):
    pair = index_pairs(bands_root / "train")[0]
    masks = (pair.label1, pair.label2)
    shown = read_pair(pair, masks, SECOND_CLASSES, (4, 3, 2))
    assert all(
        np.array_equal(shown.images[i], read_picture(pair.files[i], (4, 3, 2))) for i in (0, 1)
    )


@pytest.mark.parametrize(("bands", "bits"), [(1, 8), (1, 16), (3, 16), (4, 8)])
def test_sample_data_of_other_bands(bands, bits, tmp_path):
    sample = SampleSet(1, 0, 48, 48, 3, bands=bands, bits=bits)
    write_sample_data(tmp_path, sample)
    image = read_raster(tmp_path / "train" / "im2" / "00000.png")
    assert image.shape == (48, 48, bands) and image.dtype == f"uint{bits}"
    assert image.max() > (255 if bits == 16 else 50) and (image < 4000).all()
    again = tmp_path / "again"
    write_sample_data(again, sample)
    assert np.array_equal(image, read_raster(again / "train" / "im2" / "00000.png"))
