import copy

import pytest
import torch
from torch import nn

from models.recompute import checkpoint_activations
from tests.unit.models.test_models import pair, small_model
from utils.errors import OptionError

HRNET = "hrnet_w18_small"


def two_models(backbone: str) -> tuple[nn.Module, nn.Module]:
    """The same model twice; the second computes its activations again."""
    plain = small_model(backbone=backbone).train()
    twin = copy.deepcopy(plain)
    checkpoint_activations(twin)
    return plain, twin


def run_backward(model: nn.Module, images: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)  # dropout of the heads
    output = model(*images)
    sum(logits.square().mean() for logits in output).backward()
    return tuple(logits.detach() for logits in output)


def assert_same_gradients(model: nn.Module, plain: nn.Module) -> None:
    for (name, found), (_, expected) in zip(
        model.named_parameters(), plain.named_parameters(), strict=True
    ):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("steps", [1, 2])
def test_hrnet_keeps_outputs_gradients_and_statistics(steps):
    plain, twin = two_models(HRNET)
    for step in range(steps):
        images = pair(2, 3, 64, 64, seed=step)
        expected, found = run_backward(plain, images), run_backward(twin, images)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert_same_gradients(twin, plain)
    buffers = dict(plain.named_buffers())
    assert len(buffers) > 100
    for name, found in twin.named_buffers():
        torch.testing.assert_close(found, buffers[name], msg=name)
    assert int(twin.encoder.body.bn1.num_batches_tracked) == steps
    momenta = {m.momentum for m in twin.modules() if isinstance(m, nn.BatchNorm2d)}
    assert momenta == {m.momentum for m in plain.modules() if isinstance(m, nn.BatchNorm2d)}


def stored_bytes(model: nn.Module, images: tuple[torch.Tensor, ...]) -> int:
    """Return the size of all that a forward pass keeps for the backward pass."""
    stored = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        stored[value.untyped_storage().data_ptr()] = value
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        output = model(*images)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    del output
    return sum(v.untyped_storage().nbytes() for k, v in stored.items() if k not in parameters)


def test_hrnet_stores_less():
    plain, twin = two_models(HRNET)
    images = pair(2, 3, 64, 64)
    assert stored_bytes(twin.encoder, images[:1]) < 0.6 * stored_bytes(plain.encoder, images[:1])


@torch.no_grad()
def test_evaluation_is_untouched():
    plain, twin = two_models(HRNET)
    images = pair(1, 3, 64, 64)
    for found, expected in zip(twin.eval()(*images), plain.eval()(*images), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv2_050", "convnext_atto"])
def test_backbones_that_timm_knows(backbone):
    plain, twin = two_models(backbone)
    images = pair(2, 3, 64, 64)
    expected, found = run_backward(plain, images), run_backward(twin, images)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert_same_gradients(twin, plain)


def test_a_backbone_without_blocks_is_refused():
    model = small_model()
    model.encoder.body = nn.Sequential(nn.Conv2d(3, 8, 3))
    with pytest.raises(OptionError, match=r"--checkpoint-activations: not known for mobilenetv2"):
        checkpoint_activations(model)
