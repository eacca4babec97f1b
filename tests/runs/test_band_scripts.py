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
from datasets.images import read_all, save_raster
from models.checkpoint import open_checkpoint
from tests.helpers.band_models import STATISTICS
from tests.helpers.runs import (
    Run,
    keys,
    latest_file,
    options,
    read_masks,
    train_options,
)
from tools import check_data, compose_pairs, make_sample_data
from utils.errors import DataError
from utils.tensor_files import read_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def run(bands_root, tmp_path_factory) -> Run:
    """A training run on it that measures its statistics. Read only."""

    def argv(outdir: Path, *more: object) -> list[str]:
        return train_options(bands_root, outdir, "--bands", 4, *more)

    outdir = tmp_path_factory.mktemp("run")
    train.main(argv(outdir))
    return Run(outdir, argv)


@pytest.fixture
def statistics(tmp_path) -> Path:
    """A file of band statistics that are not those of the data."""
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"mean": STATISTICS.mean, "std": STATISTICS.std}))
    return path


# --- scripts --------------------------------------------------------------------------------


def assert_measured(imagery: Imagery, root: Path, numbers: tuple[int, ...]) -> None:
    """A run's statistics are those of all its training images."""
    assert imagery.bands == Bands(numbers, 16)
    values = np.stack([read_all(path)[0] for path in sorted(root.glob("train/im[12]/*.png"))])
    values = values[..., [number - 1 for number in numbers]].astype(np.float64)
    assert imagery.mean == pytest.approx(values.mean((0, 1, 2)), rel=1e-6)
    assert imagery.std == pytest.approx(values.std((0, 1, 2)), rel=1e-6)


def test_a_run_records_what_it_measured(run, bands_root, fcn_run):
    imagery = open_checkpoint(run.best).config.imagery
    assert_measured(imagery, bands_root, (1, 2, 3, 4))
    assert open_checkpoint(latest_file(run.outdir)).config.imagery == imagery
    assert open_checkpoint(fcn_run.best).config.imagery == Imagery()  # ImageNet's for 8-bit RGB


@pytest.mark.slow
def test_two_processes_share_what_one_measured(bands_root, tmp_path):
    train.main(train_options(bands_root, tmp_path, "--bands", "4,", "--nproc", 2))
    assert_measured(open_checkpoint(latest_file(tmp_path)).config.imagery, bands_root, (4,))


def test_train_label_test_and_restart(run, bands_root, tmp_path, capsys):
    outdir = tmp_path / "out"
    shutil.copytree(run.outdir, outdir)
    label.main(options(bands_root, outdir, "--no-tta"))
    metrics = predict.main(options(bands_root, outdir))
    assert "bands 1, 2, 3, 4 of 16 bits" in capsys.readouterr().out
    for folder, number in (("train", 8), ("test", 4)):
        masks = read_masks(outdir / "masks" / folder)
        assert set(masks) == keys([f"{i:05d}" for i in range(number)])
        assert all(mask.shape == (64, 64) for mask in masks.values())
    assert predict.main(options(bands_root, outdir)) == metrics
    assert "4 pairs were finished already" in capsys.readouterr().out
    evaluated = train.main(options(bands_root, outdir, "--load-from", run.best))
    assert evaluated.score == pytest.approx(metrics.score)
    train.main(run.argv(outdir, "--use-pseudo-label", "--cache", "disk"))


def test_a_run_goes_on_with_its_own_statistics(run, statistics, tmp_path, capsys):
    outdir = tmp_path / "out"
    shutil.copytree(run.outdir, outdir)
    latest = latest_file(outdir)
    saved = read_checkpoint(latest)  # as if it had been ended after the first of two epochs
    save_checkpoint(latest, {**saved, "options": {**saved["options"], "epochs": 2}})
    train.main(run.argv(outdir, "--epochs", 2, "--resume", "--band-statistics", statistics))
    assert "--band-statistics is left alone" in capsys.readouterr().out
    after = open_checkpoint(latest)
    assert after.info["training"]["epoch"] == saved["training"]["epoch"] + 1
    assert after.config.imagery == Imagery(**saved["config"]["imagery"]) != STATISTICS


def test_a_mistyped_statistics_file_is_told_before_anything_is_decoded(run, tmp_path):
    missing = tmp_path / "none.json"
    argv = run.argv(tmp_path / "out", "--cache", "disk", "--band-statistics", missing)
    with pytest.raises(DataError, match=f"^{missing}: no band statistics"):
        train.main(argv)
    assert not (tmp_path / "out" / "cache").exists()


def test_given_statistics_and_a_start_from_rgb(bands_root, statistics, fcn_run, tmp_path):
    more = ("--bands", "4,2", "--band-statistics", statistics, "--pretrain-from", fcn_run.best)
    train.main(train_options(bands_root, tmp_path, *more))
    config = open_checkpoint(latest_file(tmp_path)).config
    assert config.imagery == Imagery(Bands((4, 2), 16), (1500, 1100), (700, 400))
    with pytest.raises(DataError, match="does not fit the data"):
        predict.main(options(bands_root, tmp_path, "--checkpoints", fcn_run.best))


# --- tools ----------------------------------------------------------------------------------


def findings(root: Path, outdir: Path, *more: str) -> dict[str, dict]:
    check_data.main([str(root), "--outdir", str(outdir), "--workers", "1", *more])
    found = json.loads((outdir / "report.json").read_text())["findings"]
    return {finding["kind"]: finding for finding in found}


def test_check_data_tells_which_bands_are_missing(bands_root, tmp_path):
    found = findings(bands_root, tmp_path, "--bands", "5")
    assert set(found) == {"band-count"} and found["band-count"]["count"] == 24
    assert (tmp_path / "suspicious.png").exists()


def test_images_are_copies_whatever_holds_their_bands(tmp_path):
    draw = np.random.default_rng(0)
    rgba, other = draw.integers(0, 256, (2, 32, 32, 4), np.uint8)
    folder = tmp_path / "root" / "train"
    for date in ("im1", "im2"):
        (folder / date).mkdir(parents=True)
    for name, values in (("a", rgba[..., :3]), ("b", rgba), ("c", rgba[..., :3]), ("d", other)):
        save_raster(folder / "im2" / f"{name}.png", draw.integers(0, 256, (32, 32, 3), np.uint8))
        if name == "c":
            np.save(folder / "im1" / "c.npy", values)
        else:
            save_raster(folder / "im1" / f"{name}.png", values)
    copies = json.dumps(findings(tmp_path / "root", tmp_path)["duplicate-exact"])
    names = ("a.png", "b.png", "c.npy", "d.png")
    assert [name for name in names if f"train/im1/{name}" in copies] == ["a.png", "b.png", "c.npy"]


def test_convert_copies_them_as_they_are(bands_root, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(bands_root, source)
    for path in source.glob("train/im[12]/*.png"):
        np.save(path.with_suffix(".npy"), read_all(path)[0])
        path.unlink()
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(source / "val" / "im1" / "00001.bmp")
    (source / "val" / "im1" / "00001.png").unlink()
    argv = [str(source), "--convert", str(out), "--outdir", str(tmp_path / "log")]
    assert check_data.main(argv) == 0
    for path in sorted(source.glob("*/im[12]/*.*")):
        copy = out / path.relative_to(source)
        if path.suffix == ".bmp":
            assert Image.open(copy.with_suffix(".png")).mode == "RGB"
        else:
            assert copy.read_bytes() == path.read_bytes()


def test_composing_from_them_is_refused(bands_root, tmp_path):
    classes = zip(SECOND_CLASSES.names, SECOND_CLASSES.colors, strict=True)
    entries = [{"name": name, "color": color} for name, color in classes]
    (tmp_path / "classes.json").write_text(json.dumps(entries))
    argv = ["--images", str(bands_root / "train/im1"), "--masks", str(bands_root / "train/truth1")]
    argv += ["--classes", str(tmp_path / "classes.json")]
    with pytest.raises(DataError, match="4 bands of uint16; pairs are composed of 8-bit"):
        compose_pairs.main([*argv, "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(("bands", "bits"), [(1, 8), (1, 16), (3, 16), (4, 8)])
def test_sample_data_of_other_bands(bands, bits, tmp_path):
    kind = ("--train-pairs", 1, "--val-pairs", 0, "--size", 48, "--bands", bands, "--bits", bits)
    images = []
    for folder in ("first", "again"):
        make_sample_data.main([str(part) for part in (tmp_path / folder, *kind)])
        images.append(read_all(tmp_path / folder / "train" / "im2" / "00000.png")[0])
    assert images[0].shape == (48, 48, bands) and images[0].dtype == f"uint{bits}"
    assert images[0].max() > (255 if bits == 16 else 50) and (images[0] < 4000).all()
    assert np.array_equal(*images)
