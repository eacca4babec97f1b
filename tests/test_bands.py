"""Bands of 8 and 16 bits through statistics, augmentation, cache, model, scripts and tools."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from runs import BACKBONE, best_files, latest_file, options, train_options
from timm.models import adapt_input_conv

import label
import test as predict
import train
from datasets import index_pairs
from datasets.band_statistics import (
    MEASURED_PAIRS,
    choose_bands,
    measure,
    measured_pairs,
    read_statistics,
    sum_bands,
)
from datasets.batches import collate
from datasets.cache import build_cache
from datasets.change_detection import ChangeDetectionDataset, FileReader, Pair
from datasets.classes import SECOND_CLASSES, read_label
from datasets.compose_source import MaskReader, SceneFiles, check_scene
from datasets.pair_report import inspect_pair
from datasets.sample import write_sample_data
from datasets.transforms import TrainTransform, change_light
from models import Checkpoint, ModelConfig, build_model, open_checkpoint
from models.deploy import build_predictor
from models.encoder import build_encoder
from models.ensemble import bands_to_read
from models.transfer import transfer_weights
from tools import check_data, report
from utils.bands import MAX_BANDS, RGB, RGB_IMAGERY, Bands, Imagery, union
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.errors import CheckpointError, DataError, OptionError
from utils.options import band_numbers
from utils.precision import choose_precision
from utils.rasters import read_picture, read_raster, save_raster
from utils.run import saved_imagery

CPU = torch.device("cpu")
FOUR = Bands((1, 2, 3, 4), 16)
STATISTICS = Imagery(FOUR, (1000.0, 1100.0, 900.0, 1500.0), (500.0, 400.0, 600.0, 700.0))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """8 training and 4 validation pairs of four 16-bit bands. Read only."""
    folder = tmp_path_factory.mktemp("bands") / "root"
    write_sample_data(folder, 8, 4, 64, 64, 0, bands=4, bits=16)
    return folder


@pytest.fixture(scope="module")
def run(root, tmp_path_factory) -> Path:
    """A training run on it that measures its statistics. Read only."""
    outdir = tmp_path_factory.mktemp("run")
    train.main(train_options(root, outdir, "--bands", 4))
    return outdir


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


def test_depth_follows_from_the_first_image(root, sample_root):
    assert choose_bands((4, 1), index_pairs(root / "train")[0].image1) == Bands((4, 1), 16)
    image = index_pairs(sample_root / "train")[0].image1
    assert choose_bands((1, 2, 3), image) == RGB
    with pytest.raises(DataError, match=f"^{image}: has 3 bands of 8 bits, but bands 1, 2, 3, 4"):
        choose_bands((1, 2, 3, 4), image)


# --- statistics ------------------------------------------------------------------------------


def test_statistics_equal_numpys(root):
    pairs = index_pairs(root / "train")
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


def test_check_data_measures_the_training_pairs(root, tmp_path, capsys):
    assert check_data.main([str(root), "--bands", "4", "--outdir", str(tmp_path)]) == 0
    assert "16-bit band, train" in capsys.readouterr().out
    found = json.loads((tmp_path / "report.json").read_text())["band_statistics"]
    values = images_of(index_pairs(root / "train")).reshape(-1, 4).astype(np.float64)
    assert (found["bits"], found["pairs"]) == (16, 8)
    np.testing.assert_allclose(found["mean"], values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found["std"], values.std(0), rtol=1e-12)
    imagery = read_statistics(tmp_path / "report.json", Bands((4, 2), 16))
    assert imagery.mean == (found["mean"][3], found["mean"][1])
    assert imagery == measure(index_pairs(root / "train"), Bands((4, 2), 16))


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


# --- samples, augmentation, cache ------------------------------------------------------------


def test_samples_hold_the_chosen_bands(root):
    pairs = index_pairs(root / "train")
    dataset = ChangeDetectionDataset(
        pairs, SECOND_CLASSES, reader=FileReader(SECOND_CLASSES, Bands((4, 1), 16))
    )
    sample = dataset[0]
    assert sample["image2"].dtype == torch.uint16
    expected = read_raster(pairs[0].image2)[..., [3, 0]]
    assert np.array_equal(sample["image2"].permute(1, 2, 0).numpy(), expected)
    batch = collate([dataset[0], dataset[1]])
    assert batch["image1"].shape == (2, 2, 64, 64) and batch["image1"].dtype == torch.uint16
    assert batch["image1"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("bands", [1, 2, 4, 13, MAX_BANDS])
def test_geometry_is_shared_by_all_bands_dates_and_labels(bands, dtype, monkeypatch):
    """Each image holds its own position, so that a pixel tells where it comes from."""
    place = np.arange(12 * 12).reshape(12, 12)
    image = (place[..., None] + np.zeros(bands)).astype(dtype)
    sample = {
        "image1": image, "image2": image.copy(), "label1": place.astype(np.uint8),
        "label2": place.astype(np.uint8), "change_mask": (place % 2).astype(np.uint8),
    }  # fmt: skip
    monkeypatch.setattr("datasets.transforms.change_light", lambda image, rng: image)
    for crop_size in (None, 7):
        transform = TrainTransform(crop_size, is_rgb=False)
        for epoch in range(12):
            moved = transform(sample, (0, epoch))
            for key in ("image1", "image2"):
                assert moved[key].dtype == image.dtype
                assert np.array_equal(moved[key], moved["label1"][..., None] + np.zeros(bands))


@pytest.mark.parametrize(("dtype", "top"), [("uint8", 255), ("uint16", 65_535), ("uint16", 3000)])
def test_light_keeps_type_and_range_and_changes_half_the_images(dtype, top):
    rng = np.random.default_rng(0)
    image = rng.integers(0, top, (16, 16, 5), endpoint=True).astype(dtype)
    changed = [change_light(image, np.random.default_rng(seed)) for seed in range(200)]
    assert all(one.dtype == image.dtype and one.shape == image.shape for one in changed)
    kept = sum(np.array_equal(one, image) for one in changed)
    assert 30 < kept < 75  # neither draw: a quarter
    means = np.array([one.mean() for one in changed]) / image.mean()
    assert 0.75 < means.min() < 0.85 and 1.1 < means.max() < 1.3
    if top == 3000:  # nothing is cut off at 255, nor spread over all 16 bits
        assert 2000 < max(one.max() for one in changed) < 6000


def test_light_is_brightness_contrast_and_balance():
    image = np.random.default_rng(1).integers(5000, 9000, (16, 16, 3)).astype(np.uint16)
    for seed in range(20):
        changed = change_light(image, np.random.default_rng(seed)).astype(float)
        for band in range(3):
            slope, offset = np.polyfit(image[..., band].ravel(), changed[..., band].ravel(), 1)
            assert 0.75 < slope < 1.27
            residual = changed[..., band] - (slope * image[..., band] + offset)
            assert np.abs(residual).max() < 1


def test_light_differs_between_the_dates_and_follows_from_the_seed(root):
    dataset = ChangeDetectionDataset(
        index_pairs(root / "train")[:1],
        SECOND_CLASSES,
        TrainTransform(is_rgb=False),
        reader=FileReader(SECOND_CLASSES, FOUR),
    )
    plain = read_raster(dataset.pairs[0].image1).mean(), read_raster(dataset.pairs[0].image2).mean()
    gains = []
    for epoch in range(40):
        dataset.set_epoch(epoch)
        sample, again = dataset[0], dataset[0]
        assert torch.equal(sample["image1"], again["image1"])
        gains.append([float(sample[f"image{d + 1}"].float().mean() / plain[d]) for d in (0, 1)])
    gain1, gain2 = np.array(gains).T
    assert gain1.std() > 0.05 and gain2.std() > 0.05
    assert abs(np.corrcoef(gain1, gain2)[0, 1]) < 0.5


@pytest.mark.parametrize("numbers", [(1, 2, 3, 4), (4,)])
def test_cached_samples_are_those_without_cache(numbers, root, tmp_path):
    pairs, bands = index_pairs(root / "train")[:3], Bands(numbers, 16)
    reader = build_cache(pairs, SECOND_CLASSES, tmp_path, bands=bands)
    cached = ChangeDetectionDataset(pairs, SECOND_CLASSES, reader=reader)
    plain = ChangeDetectionDataset(pairs, SECOND_CLASSES, reader=FileReader(SECOND_CLASSES, bands))
    for i in range(3):
        for key, value in plain[i].items():
            if key != "name":
                assert cached[i][key].dtype == value.dtype and torch.equal(cached[i][key], value)
    other = build_cache(pairs, SECOND_CLASSES, tmp_path, bands=Bands((2, 1), 16))
    image = pairs[0].image1
    assert np.array_equal(other.image(image), read_raster(image)[..., [1, 0]])


def test_cached_16_bit_images_of_odd_sizes(write_pairs, tmp_path):
    folder = write_pairs({"a": (33, 35), "b": (31, 37)})
    for path in folder.glob("im[12]/*.png"):
        save_raster(path, read_raster(path).astype(np.uint16) * 251)
    pairs, bands = index_pairs(folder), Bands((1, 2, 3), 16)
    reader = build_cache(pairs, SECOND_CLASSES, tmp_path / "cache", bands=bands)
    for pair in pairs:
        image = reader.image(pair.image2)
        assert image.flags.aligned
        assert np.array_equal(image, read_raster(pair.image2))
        assert np.array_equal(reader.label(pair.label1), read_label(pair.label1, SECOND_CLASSES))


# --- models ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bands", [1, 2, 4, 13])
def test_the_first_convolution_is_adapted_as_timm_does_it(bands):
    weights = timm.create_model(BACKBONE).state_dict()
    body = build_encoder(BACKBONE, bands, weights).body
    expected = adapt_input_conv(bands, weights["conv_stem.weight"])
    assert torch.equal(body.state_dict()["conv_stem.weight"], expected)
    own = timm.create_model(
        BACKBONE,
        pretrained=True,
        pretrained_cfg_overlay={"state_dict": weights},
        in_chans=bands,
    )
    assert torch.equal(own.conv_stem.weight, expected)


def checkpoint_of(imagery: Imagery = RGB_IMAGERY, path: str = "a.pth") -> Checkpoint:
    config = ModelConfig("fcn", BACKBONE, in_channels=len(imagery.bands.numbers), imagery=imagery)
    torch.manual_seed(0)
    return Checkpoint(Path(path), config, build_model(config).state_dict(), {})


def test_a_model_of_three_bands_starts_one_of_four():
    checkpoint, model = checkpoint_of(), checkpoint_of(STATISTICS).build()
    assert transfer_weights(model, checkpoint) == []
    first = "encoder.body.conv_stem.weight"
    tensors = model.state_dict()
    assert torch.equal(tensors[first], adapt_input_conv(4, checkpoint.tensors[first]))
    others = [name for name in tensors if name != first]
    assert all(torch.equal(tensors[name], checkpoint.tensors[name]) for name in others)


@pytest.mark.parametrize("num_classes", [(6, 0), (0, 6)])
def test_a_model_of_three_bands_starts_one_of_four_with_or_without_classes(num_classes):
    there, here = (
        ModelConfig("fcn", BACKBONE, num_classes=number, in_channels=bands)
        for number, bands in zip(num_classes, (3, 4), strict=True)
    )
    checkpoint = Checkpoint(Path("a.pth"), there, build_model(there).state_dict(), {})
    model = build_model(here)
    assert transfer_weights(model, checkpoint) == (["semantic_head"] if here.num_classes else [])
    first = "encoder.body.conv_stem.weight"
    found = model.state_dict()
    assert torch.equal(found[first], adapt_input_conv(4, checkpoint.tensors[first]))
    shared = [name for name in found if name in checkpoint.tensors and name != first]
    assert all(torch.equal(found[name], checkpoint.tensors[name]) for name in shared)


def test_a_model_of_four_bands_starts_none_of_another_number():
    model = checkpoint_of().build()
    with pytest.raises(CheckpointError, match="takes 4 bands, this run 3; only models of three"):
        transfer_weights(model, checkpoint_of(STATISTICS))


def test_config_with_bands_goes_to_plain_values_and_back():
    config = ModelConfig("fcn", BACKBONE, in_channels=4, imagery=STATISTICS)
    assert ModelConfig(**config.to_dict()) == config
    plain = json.loads(json.dumps(config.to_dict()))
    assert ModelConfig(**plain) == config
    old = {k: v for k, v in ModelConfig().to_dict().items() if k != "imagery"}
    assert ModelConfig(**old).imagery == Imagery()


def test_models_of_an_ensemble_see_their_own_bands():
    """Each gets its bands, in its order, under its statistics, as it would alone."""
    swapped = Imagery(Bands((4, 2), 16), (1500.0, 1000.0), (700.0, 300.0))
    checkpoints = [checkpoint_of(STATISTICS), checkpoint_of(swapped)]
    rng = np.random.default_rng(0)
    images = [
        torch.from_numpy(rng.integers(0, 3000, (1, 4, 32, 32)).astype(np.uint16)) for _ in range(2)
    ]
    precision = choose_precision("off", CPU)
    together = list(build_predictor(checkpoints, CPU, precision, False).each_model(*images))
    for checkpoint, found in zip(checkpoints, together, strict=True):
        chosen = [number - 1 for number in checkpoint.config.imagery.bands.numbers]
        own = [torch.from_numpy(image.numpy()[:, chosen]) for image in images]
        alone = build_predictor([checkpoint], CPU, precision, False)(*own)
        for a, b in zip(found, alone, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_an_ensemble_reads_what_all_its_models_need(root):
    image = index_pairs(root / "train")[0].image1
    statistics = ((1.0, 2.0), (3.0, 4.0))
    some = [Imagery(Bands(numbers, 16), *statistics) for numbers in ((4, 2), (1, 2))]
    assert bands_to_read([checkpoint_of(i) for i in some], image) == Bands((1, 2, 4), 16)
    assert bands_to_read([checkpoint_of(some[0])], image) == Bands((4, 2), 16)
    assert union([RGB, RGB]) == RGB


def test_checkpoints_that_do_not_fit_the_data_or_each_other(root, sample_root):
    deep, shallow = (index_pairs(r / "train")[0].image1 for r in (root, sample_root))
    rgb, four = checkpoint_of(path="rgb.pth"), checkpoint_of(STATISTICS, "four.pth")
    five = Imagery(Bands((5,), 16), (1,), (1,))
    foreign = rgb._replace(config=ModelConfig("fcn", BACKBONE, in_channels=4))
    for checkpoints, image, error, message in [
        (
            [four],
            shallow,
            DataError,
            f"four.pth does not fit the data: {shallow}: has 3 bands of 8",
        ),
        ([rgb], deep, DataError, f"rgb.pth does not fit the data: {deep}: has 4 bands of 16 bits"),
        ([checkpoint_of(five)], deep, DataError, "has 4 bands of 16 bits, but band 5 of 16 bits"),
        (
            [four, rgb],
            deep,
            CheckpointError,
            "rgb.pth: trained on 8-bit images, four.pth on 16-bit",
        ),
        ([foreign], shallow, CheckpointError, "takes 4 bands, but does not say which"),
    ]:
        with pytest.raises(error, match=message):
            bands_to_read(checkpoints, image)


def test_grey_and_alpha_are_not_read_in_two_ways_at_once(tmp_path):
    image = tmp_path / "a.png"
    Image.fromarray(np.zeros((8, 8, 2), np.uint8), "LA").save(image)
    rgb, two = checkpoint_of(), checkpoint_of(Imagery(Bands((1, 2)), (1.0, 2.0), (3.0, 4.0)))
    for alone in (rgb, two):
        assert bands_to_read([alone, alone], image) == alone.config.imagery.bands
    for checkpoints in ([rgb, two], [two, rgb]):
        with pytest.raises(DataError, match=f"^{image}: has 2 bands, which cannot be read as band"):
            bands_to_read(checkpoints, image)
    one = checkpoint_of(Imagery(Bands((1,)), (1.0,), (2.0,)))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(image)
    assert bands_to_read([rgb, one], image) == RGB  # grey is each of the three


# --- scripts ---------------------------------------------------------------------------------


def test_a_run_records_what_it_measured(run, root):
    imagery = open_checkpoint(best_files(run)[0]).config.imagery
    assert imagery == measure(index_pairs(root / "train"), FOUR)
    assert open_checkpoint(latest_file(run)).config.imagery == imagery


def test_train_label_test_and_restart(run, root, tmp_path, capsys):
    outdir = tmp_path / "out"
    shutil.copytree(run, outdir)
    coverage = label.main(options(root, outdir, "--no-tta"))
    assert coverage is not None
    metrics = predict.main(options(root, outdir))
    assert 0 <= metrics.oa <= 1
    assert "bands 1, 2, 3, 4 of 16 bits" in capsys.readouterr().out
    for folder, number in (("train", 8), ("test", 4)):
        for date in ("im1", "im2"):
            masks = sorted((outdir / "masks" / folder / date).glob("*.png"))
            assert len(masks) == number
            assert all(read_label(mask, SECOND_CLASSES).shape == (64, 64) for mask in masks)
    assert predict.main(options(root, outdir)) == metrics
    assert "4 pairs were finished already" in capsys.readouterr().out
    evaluated = train.main([*options(root, outdir), "--load-from", str(best_files(outdir)[0])])
    assert evaluated.score == pytest.approx(metrics.score)
    train.main(train_options(root, outdir, "--bands", 4, "--use-pseudo-label", "--cache", "disk"))


def test_a_run_goes_on_with_its_own_statistics(run, root, tmp_path, monkeypatch, capsys):
    outdir = tmp_path / "out"
    shutil.copytree(run, outdir)

    def refuse(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("datasets.band_statistics.measure", refuse)
    with pytest.raises(OptionError, match="the run to resume had bands"):
        train.main(train_options(root, outdir, "--bands", "1,2,3", "--resume"))
    latest = latest_file(outdir)
    saved = read_checkpoint(latest)  # as if it had been ended after the first of two epochs
    save_checkpoint(latest, {**saved, "options": {**saved["options"], "epochs": 2}})
    statistics = tmp_path / "s.json"
    statistics.write_text(json.dumps({"mean": STATISTICS.mean, "std": STATISTICS.std}))
    more = ("--epochs", 2, "--resume", "--band-statistics", statistics)
    train.main(train_options(root, outdir, "--bands", 4, *more))
    assert "--band-statistics is left alone" in capsys.readouterr().out
    after = open_checkpoint(latest)
    assert after.info["training"]["epoch"] == saved["training"]["epoch"] + 1
    assert after.config.imagery == Imagery(**saved["config"]["imagery"]) != STATISTICS


def test_a_mistyped_statistics_file_is_told_before_anything_is_decoded(root, tmp_path):
    missing = tmp_path / "s.json"
    argv = ("--bands", 4, "--cache", "disk", "--band-statistics", missing)
    with pytest.raises(DataError, match=f"^{missing}: no band statistics"):
        train.main(train_options(root, tmp_path / "out", *argv))
    assert not (tmp_path / "out" / "cache").exists()


@pytest.mark.parametrize("more", [("--bands", 4), ("--band-statistics", "s.json")])
def test_bands_are_not_asked_of_a_checkpoint_that_is_loaded(more, root, tmp_path):
    with pytest.raises(OptionError, match=r"^--load-from: the checkpoint knows its bands"):
        train.main(train_options(root, tmp_path, "--load-from", "a.pth", *more))


def test_given_statistics_and_a_start_from_rgb(root, sample_root, tmp_path):
    train.main(train_options(sample_root, tmp_path / "rgb"))
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"mean": STATISTICS.mean, "std": STATISTICS.std}))
    rgb = latest_file(tmp_path / "rgb")
    argv = train_options(root, tmp_path / "four", "--bands", "4,2", "--band-statistics", path)
    train.main([*argv, "--pretrain-from", str(rgb)])
    config = open_checkpoint(latest_file(tmp_path / "four")).config
    assert config.imagery == Imagery(Bands((4, 2), 16), (1500, 1100), (700, 400))
    with pytest.raises(DataError, match="does not fit the data"):
        predict.main(options(root, tmp_path / "rgb", "--checkpoints", rgb))


def test_default_bands_of_8_bits_are_normalised_as_imagenet(sample_root, tmp_path):
    train.main(train_options(sample_root, tmp_path))
    assert open_checkpoint(latest_file(tmp_path)).config.imagery == Imagery()


@pytest.mark.slow
def test_two_processes_share_what_one_measured(root, tmp_path):
    train.main(train_options(root, tmp_path, "--bands", "4,", "--nproc", 2))
    imagery = open_checkpoint(latest_file(tmp_path)).config.imagery
    assert imagery == measure(index_pairs(root / "train"), Bands((4,), 16))


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
        return report.fingerprints[0].digest

    assert digest("a.npy", values) == digest("b.npy", values) != digest("c.npy", other)
    rgb = digest("rgb.png", values[..., :3])
    assert rgb == digest("rgba.png", other[..., :4]) == digest("rgb.npy", values[..., :3])
    grey = digest("grey.png", values[..., 0])
    assert grey == digest("grey.npy", values[..., 0])
    assert grey == digest("grey_rgb.png", values[..., :1].repeat(3, -1))


# --- tools -----------------------------------------------------------------------------------


def test_check_data_tells_which_bands_are_missing(root, tmp_path, capsys):
    assert check_data.main([str(root), "--bands", "5", "--outdir", str(tmp_path)]) == 1
    (finding,) = json.loads((tmp_path / "report.json").read_text())["findings"]
    assert finding["kind"] == "band-count" and finding["count"] == 24
    assert (tmp_path / "suspicious.png").exists()


def test_convert_copies_them_as_they_are(root, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(root, source)
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
        check_scene(SceneFiles("a", "a", image, image), MaskReader(SECOND_CLASSES), 32)


def test_composing_from_them_is_refused(root):
    image = index_pairs(root / "train")[0].image1
    scene = SceneFiles("a", "a", image, root / "train" / "truth1" / image.name)
    with pytest.raises(
        DataError, match=f"^{image}: 4 bands of uint16; pairs are composed of 8-bit"
    ):
        check_scene(scene, MaskReader(SECOND_CLASSES), 32)


def test_pictures_of_a_report_are_of_the_chosen_bands(root):
    pair = index_pairs(root / "train")[0]
    masks = (pair.label1, pair.label2)
    shown = report.read_pair(pair, masks, SECOND_CLASSES, None, None, 0.0, (4, 3, 2))
    assert all(
        np.array_equal(shown.images[i], read_picture(pair.files[i], (4, 3, 2))) for i in (0, 1)
    )


@pytest.mark.parametrize(("bands", "bits"), [(1, 8), (1, 16), (3, 16), (4, 8)])
def test_sample_data_of_other_bands(bands, bits, tmp_path):
    write_sample_data(tmp_path, 1, 0, 48, 48, 3, bands=bands, bits=bits)
    image = read_raster(tmp_path / "train" / "im2" / "00000.png")
    assert image.shape == (48, 48, bands) and image.dtype == f"uint{bits}"
    assert image.max() > (255 if bits == 16 else 50) and (image < 4000).all()
    again = tmp_path / "again"
    write_sample_data(again, 1, 0, 48, 48, 3, bands=bands, bits=bits)
    assert np.array_equal(image, read_raster(again / "train" / "im2" / "00000.png"))
