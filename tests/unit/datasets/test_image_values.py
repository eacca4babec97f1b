"""Values of 8 and 16 bits as a model gets them, and as pictures show them."""

import numpy as np
import pytest
import torch

from datasets.bands import RGB, Bands
from datasets.images import read_picture, save_raster
from models.normalization import Normalization, normalization, normalize
from tests.helpers.raster_files import HEIGHT, WIDTH, noise
from utils.pictures import to_rgb

# --- on the way to the model -----------------------------------------------------------------


def test_normalization_of_16_bits_equals_numpy():
    images = np.stack([noise(4, seed=seed) for seed in range(3)])
    mean, std = images.mean((0, 1, 2)), images.std((0, 1, 2))
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    assert batch.dtype == torch.uint16
    found = normalize(batch, mean.tolist(), std.tolist())
    expected = np.moveaxis((images - mean) / std, -1, 1)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)
    chosen = Normalization(tuple(mean[[3, 1]]), tuple(std[[3, 1]]), (3, 1))(batch)
    torch.testing.assert_close(chosen, found[:, [3, 1]])
    assert chosen.is_contiguous(memory_format=torch.channels_last)
    assert batch.numpy().max() == images.max()  # the batch itself is left alone


@pytest.mark.gpu
def test_normalization_of_16_bits_on_a_gpu():
    batch = torch.from_numpy(noise(4)).permute(2, 0, 1)[None]
    norm = Normalization((30_000.0, 20_000.0), (15_000.0, 9_000.0), (3, 1))
    found = norm(batch.pin_memory().to("cuda", non_blocking=True))
    torch.testing.assert_close(found.cpu(), norm(batch))


def test_normalization_picks_the_models_bands():
    from datasets.bands import Imagery

    imagery = Imagery(Bands((4, 2), 16), (1, 2), (3, 4))
    assert normalization(imagery, Bands((1, 2, 3, 4), 16)).channels == (3, 1)
    assert normalization(imagery, imagery.bands).channels is None
    assert normalization(Imagery(), RGB) == Normalization()


# --- what is shown ---------------------------------------------------------------------------


def test_pictures_of_16_bits_are_stretched_band_by_band(tmp_path):
    values = np.sort(noise(4).reshape(-1, 4), axis=0).reshape(HEIGHT, WIDTH, 4) // 100 + 700
    picture = to_rgb(values[..., :3])
    assert picture.min() == 0 and picture.max() == 255
    low, high = np.percentile(values[..., 1], (2, 98))
    expected = np.clip((values[..., 1] - low) / (high - low), 0, 1) * 255
    assert np.abs(picture[..., 1] - expected).max() <= 0.5
    save_raster(tmp_path / "a.png", values)
    assert np.array_equal(read_picture(tmp_path / "a.png"), picture)
    shown = read_picture(tmp_path / "a.png", (4, 2, 3))
    assert np.array_equal(shown[..., 1:], picture[..., 1:])
    assert np.ptp(read_picture(tmp_path / "a.png", (9, 2))) > 0


def test_pictures_of_8_bits_are_as_they_are(tmp_path):
    for bands in (3, 4, 13):
        values = noise(bands, "uint8")
        np.save(tmp_path / "a.npy", values)
        assert np.array_equal(read_picture(tmp_path / "a.npy"), values[..., :3])
        assert np.array_equal(to_rgb(values), values[..., :3])
