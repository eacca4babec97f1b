"""Models and ensembles of other bands than red, green and blue."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import adapt_input_conv

from datasets.bands import RGB, Bands, Imagery, union
from datasets.pairs import index_pairs
from engine.ensemble import bands_to_read
from engine.runtime import build_predictor, choose_precision
from models.change_detector import ModelConfig, build_model
from models.checkpoint import Checkpoint
from models.encoder import build_encoder
from models.weights import transfer_weights
from tests.helpers.band_models import STATISTICS, checkpoint_of
from tests.helpers.runs import BACKBONE
from utils.errors import CheckpointError, DataError

CPU = torch.device("cpu")


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


def test_an_ensemble_reads_what_all_its_models_need(bands_root):
    image = index_pairs(bands_root / "train")[0].image1
    statistics = ((1.0, 2.0), (3.0, 4.0))
    some = [Imagery(Bands(numbers, 16), *statistics) for numbers in ((4, 2), (1, 2))]
    assert bands_to_read([checkpoint_of(i) for i in some], image) == Bands((1, 2, 4), 16)
    assert bands_to_read([checkpoint_of(some[0])], image) == Bands((4, 2), 16)
    assert union([RGB, RGB]) == RGB


def test_checkpoints_that_do_not_fit_the_data_or_each_other(bands_root, sample_root):
    deep, shallow = (index_pairs(r / "train")[0].image1 for r in (bands_root, sample_root))
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
