"""The estimate of memory: it agrees with larger steps, and leaves no trace."""

from contextlib import nullcontext

import pytest
import torch

from models.change_detector import ModelConfig, build_model
from models.footprint import OVERHEAD, _LiveBytes, measure_footprint
from models.losses import ChangeCriterion
from models.recompute import checkpoint_activations


@pytest.fixture(scope="module")
def model():
    return build_model(ModelConfig("pspnet", "hrnet_w18_small"))


def test_nothing_is_changed(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    measure_footprint(model, ChangeCriterion(6), nullcontext)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_larger_step_takes_what_was_estimated(model):
    criterion = ChangeCriterion(6)
    footprint = measure_footprint(model, criterion, nullcontext)
    images = [torch.zeros(3, 3, 96, 128, dtype=torch.uint8)] * 2
    labels = [torch.zeros(3, 96, 128, dtype=torch.uint8)] * 3
    with _LiveBytes() as live:
        criterion(model.train()(*images), *labels)
    assert live.peak * OVERHEAD["cpu"] == pytest.approx(
        footprint.per_pixel * 3 * 96 * 128, rel=0.02
    )
    assert footprint.per_predicted_pixel < footprint.per_pixel / 2
    checkpoint_activations(model)
    assert measure_footprint(model, criterion, nullcontext).per_pixel < 0.8 * footprint.per_pixel
