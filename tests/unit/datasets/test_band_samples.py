"""Bands of 8 and 16 bits through samples, augmentation and cache."""

import numpy as np
import pytest
import torch

from datasets.augment import TrainTransform, change_light
from datasets.bands import MAX_BANDS, Bands
from datasets.cache import FileReader, build_cache
from datasets.classes import SECOND_CLASSES
from datasets.dataset import ChangeDetectionDataset
from datasets.images import read_all, save_raster
from datasets.loaders import collate
from datasets.pairs import index_pairs


def test_samples_hold_the_chosen_bands(bands_root):
    pairs = index_pairs(bands_root / "train")
    dataset = ChangeDetectionDataset(
        pairs, SECOND_CLASSES, reader=FileReader(SECOND_CLASSES, Bands((4, 1), 16))
    )
    sample = dataset[0]
    assert sample["image2"].dtype == torch.uint16
    expected = read_all(pairs[0].image2)[0][..., [3, 0]]
    assert np.array_equal(sample["image2"].permute(1, 2, 0).numpy(), expected)
    batch = collate([dataset[0], dataset[1]])
    assert batch["image1"].shape == (2, 2, 64, 64) and batch["image1"].dtype == torch.uint16
    assert batch["image1"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("bands", [1, 4, MAX_BANDS])
def test_geometry_is_shared_by_all_bands_dates_and_labels(bands, dtype, monkeypatch):
    """Each image holds its own position, so that a pixel tells where it comes from."""
    place = np.arange(12 * 12).reshape(12, 12)
    image = (place[..., None] + np.zeros(bands)).astype(dtype)
    sample = {
        "image1": image, "image2": image.copy(), "label1": place.astype(np.uint8),
        "label2": place.astype(np.uint8), "change_mask": (place % 2).astype(np.uint8),
    }  # fmt: skip
    monkeypatch.setattr("datasets.augment.change_light", lambda image, rng: image)
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
            assert np.abs(changed[..., band] - (slope * image[..., band] + offset)).max() < 1


@pytest.mark.parametrize("numbers", [(1, 2, 3), (2, 1), (3,)])
def test_cached_samples_of_odd_sizes_are_those_without_cache(numbers, write_pairs, tmp_path):
    folder = write_pairs({"a": (33, 35), "b": (31, 37)})
    for path in folder.glob("im[12]/*.png"):
        save_raster(path, read_all(path)[0].astype(np.uint16) * 251)
    pairs, bands = index_pairs(folder), Bands(numbers, 16)
    reader = build_cache(pairs, SECOND_CLASSES, tmp_path / "cache", bands=bands)
    assert reader.image(pairs[0].image2)[0].flags.aligned
    cached = ChangeDetectionDataset(pairs, SECOND_CLASSES, reader=reader)
    plain = ChangeDetectionDataset(pairs, SECOND_CLASSES, reader=FileReader(SECOND_CLASSES, bands))
    for i in range(2):
        for key in plain[i].keys() - {"name"}:
            assert cached[i][key].dtype == plain[i][key].dtype
            assert torch.equal(cached[i][key], plain[i][key])
