"""Models of other bands than red, green and blue, and of change alone."""

import json
from pathlib import Path

import pytest
import timm
import torch
from timm.models import adapt_input_conv

from datasets.bands import Imagery
from engine.metrics import compute_change_metrics, metrics_from_dict
from engine.predictor import VIEWS, Predictor
from models.change_detector import ModelConfig, build_model
from models.checkpoint import Checkpoint
from models.decoding import decode
from models.encoder import build_encoder
from models.losses import ChangeCriterion
from models.weights import transfer_weights
from tests.helpers.band_models import STATISTICS, checkpoint_of
from tests.helpers.change_sets import OF_CLASSES, small_model
from utils.errors import CheckpointError

BACKBONE = "mobilenetv3_small_050"
FIRST = "encoder.body.conv_stem.weight"


@pytest.mark.parametrize("bands", [1, 2, 4, 13])
def test_the_first_convolution_is_adapted_as_timm_does_it(bands):
    weights = timm.create_model(BACKBONE).state_dict()
    body = build_encoder(BACKBONE, bands, weights).body
    expected = adapt_input_conv(bands, weights["conv_stem.weight"])
    assert torch.equal(body.state_dict()["conv_stem.weight"], expected)


@pytest.mark.parametrize("bands", [(3, 3), (3, 4)])
@pytest.mark.parametrize("num_classes", [(6, 6), (6, 0), (0, 6)])
def test_a_model_starts_one_of_other_bands_or_classes(num_classes, bands):
    there, here = (
        ModelConfig("fcn", BACKBONE, num_classes=number, in_channels=channels)
        for number, channels in zip(num_classes, bands, strict=True)
    )
    checkpoint = Checkpoint(Path("a.pth"), there, build_model(there).state_dict(), {})
    model = build_model(here)
    anew = ["semantic_head"] if num_classes == (0, 6) else []
    assert transfer_weights(model, checkpoint) == anew
    found = model.state_dict()
    shared = found.keys() & checkpoint.tensors.keys()
    assert {name.split(".")[0] for name in found.keys() - shared} == set(anew)
    for name in shared:
        value = checkpoint.tensors[name]
        expected = adapt_input_conv(4, value) if name == FIRST and bands == (3, 4) else value
        assert torch.equal(found[name], expected), name


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


def test_a_model_without_classes_has_no_semantic_head():
    model = small_model()
    assert not any(name.startswith("semantic_head") for name in model.state_dict())
    images = torch.randint(0, 256, (2, 3, 40, 33), dtype=torch.uint8)
    with torch.no_grad():
        output = model(images, images.flip(0))
    assert output.semantic_logits1 is None and output.semantic_logits2 is None
    assert output.change_logits.shape == (2, 40, 33)
    terms = ChangeCriterion(0)(output, None, None, torch.ones(2, 40, 33))
    assert set(terms) == {"change", "total"}
    assert terms["total"] == 2 * terms["change"]


def test_views_and_models_of_change_are_averaged():
    models = [small_model(), build_model(ModelConfig("fcn", "test_convnext", num_classes=0)).eval()]
    images = torch.randint(0, 256, (2, 2, 3, 32, 48), dtype=torch.uint8)
    probs = Predictor(models, VIEWS)(*images)
    alone = [Predictor([model], VIEWS)(*images).change_probs for model in models]
    torch.testing.assert_close(probs.change_probs, torch.stack(alone).mean(0))
    (change,) = decode(probs)
    assert change.dtype == torch.uint8
    assert torch.equal(change > 0, probs.change_probs >= 0.5)


def test_scores_of_change_equal_their_definitions():
    unchanged, false, missed, found = 50.0, 7.0, 11.0, 32.0
    metrics = compute_change_metrics(torch.tensor([[unchanged, false], [missed, found]]))
    precision, recall = found / (found + false), found / (found + missed)
    assert metrics.precision == pytest.approx(precision)
    assert metrics.recall == pytest.approx(recall)
    f1 = 2 * precision * recall / (precision + recall)
    assert metrics.f1 == metrics.rank == pytest.approx(f1)
    ious = (unchanged / (unchanged + false + missed), found / (found + false + missed))
    assert (metrics.iou_unchanged, metrics.iou_changed) == pytest.approx(ious)
    assert metrics.miou == pytest.approx(sum(ious) / 2)
    assert metrics.oa == pytest.approx(0.82)
    chance = ((57 * 61) + (43 * 39)) / 100**2
    assert metrics.kappa == pytest.approx((0.82 - chance) / (1 - chance))
    assert not any(OF_CLASSES.search(name) for name in metrics.to_dict())
    assert metrics_from_dict(metrics.to_dict()) == metrics
    assert compute_change_metrics(torch.zeros(2, 2)).f1 == 0
