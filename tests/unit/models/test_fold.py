from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn

from models.fold import fold_batch_norm
from tests.unit.models.test_models import FAMILIES, pair, small_model


def with_statistics(model: nn.Module) -> nn.Module:
    """Give every batch norm statistics and weights that folding has to carry over."""
    generator = torch.Generator().manual_seed(0)

    def uniform(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=generator)

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(uniform(module.running_mean, -0.3, 0.3))
            module.running_var.copy_(uniform(module.running_var, 0.7, 1.4))
            with torch.no_grad():
                module.weight.copy_(uniform(module.weight, 0.8, 1.2))
                module.bias.copy_(uniform(module.bias, -0.2, 0.2))
    return model.eval()


def assert_close(found: tuple, expected: tuple, relative: float = 1e-4) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= relative * b.abs().max()


@pytest.mark.parametrize("backbone", FAMILIES)
@torch.no_grad()
def test_folding_keeps_the_outputs(backbone):
    model = with_statistics(small_model(backbone=backbone))
    images = pair(1, 3, 64, 96)
    expected = model(*images)
    assert fold_batch_norm(model, *pair(1, 3, 64, 64, seed=1))
    assert not fold_batch_norm(model, *images)
    assert_close(model(*images), expected)


@pytest.mark.parametrize("lightweight", [False, True])
@pytest.mark.parametrize("head", ["fcn", "pspnet"])
@torch.no_grad()
def test_hrnets_and_heads_fold_completely(head, lightweight):
    model = with_statistics(small_model(head, lightweight, backbone="hrnet_w18_small"))
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    images = pair(1, 3, 64, 64)
    expected = model(*images)
    assert len(fold_batch_norm(model, *images)) == norms
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert_close(model(*images), expected)


class Joined(nn.Module):
    """Convolutions and batch norms of three channels, joined by a function."""

    def __init__(self, join: Callable, convolutions: int = 1, norms: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolutions = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(convolutions))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(norms))
        self.join = join

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.join(x, *self.convolutions, *self.norms)


def changed_in_place(x: torch.Tensor, conv: nn.Module, norm: nn.Module) -> torch.Tensor:
    features = conv(x)
    features += 1
    return norm(features)


def residual(join: Callable) -> Callable:
    """Let a batch norm read what a convolution gives, and something else as well."""
    return lambda x, conv, norm: join(conv(x), norm)


LEFT_ALONE = {
    "two norms": (lambda x, conv, a, b: a(f := conv(x)) - 2 * b(f), 1, 2),
    "one norm twice": (lambda x, a, b, norm: norm(a(x)) - 2 * norm(b(x)), 2, 1),
    "shared convolution": (lambda x, conv, a, b: b(conv(a(conv(x)))), 1, 2),
    "norm first, activation between": (lambda x, conv, a, b: b(conv(a(x)).relu()), 1, 2),
    "called twice": (lambda x, conv, norm: conv(norm(conv(x))).relu(),),
    "sum": (residual(lambda f, norm: norm(f) + f),),
    "list": (residual(lambda f, norm: torch.cat([norm(f), f], dim=1)),),
    "keyword": (residual(lambda f, norm: torch.add(norm(f), other=f)),),
    "view": (residual(lambda f, norm: norm(f).flatten() + f.view(-1)),),
    "function": (
        residual(lambda f, norm: norm(f) + F.batch_norm(f, norm.running_mean, norm.running_var)),
    ),
    "changed in place": (changed_in_place,),
    "norm of two names": (lambda x, conv, norm: norm(conv(x)),),
}


@pytest.mark.parametrize("kind", LEFT_ALONE)
@torch.no_grad()
def test_what_cannot_be_folded_is_left_alone(kind):
    model = with_statistics(Joined(*LEFT_ALONE[kind]))
    if kind == "norm of two names":
        model.alias = model.norms[0]
    image, _ = pair(1, 3, 8, 8)
    expected = model(image)
    assert not fold_batch_norm(model, image)
    assert torch.equal(model(image), expected)


@pytest.mark.parametrize(
    "wrap", [lambda *parts: parts, lambda *parts: [{"parts": parts}]], ids=["tuple", "nested"]
)
@torch.no_grad()
def test_a_convolution_whose_output_is_returned_is_left_alone(wrap):
    model = with_statistics(Joined(residual(lambda f, norm: wrap(norm(f), f))))
    assert not fold_batch_norm(model, pair(1, 3, 8, 8)[0])


@pytest.mark.parametrize(
    ("layers", "folded"),
    [
        ((Joined(residual(lambda f, norm: norm(f)[..., : f.shape[-1] - 1])),), 1),
        ((nn.Conv2d(3, 4, 3, bias=False), BatchNormAct2d(4, act_layer=nn.SiLU)), 1),
        (
            (
                *(nn.Conv2d(3, 6, 3, stride=2, bias=True), nn.BatchNorm2d(6)),
                *(nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.BatchNorm2d(6)),
            ),
            2,
        ),
    ],
    ids=["shape is read", "activation in the norm", "bias, groups and strides"],
)
@torch.no_grad()
def test_what_folds_keeps_its_output(layers, folded):
    model = with_statistics(nn.Sequential(*layers))
    image, _ = pair(2, 3, 17, 23)
    expected = model(image)
    assert len(fold_batch_norm(model, image)) == folded
    assert_close((model(image),), (expected,))
    assert isinstance(model[-1], nn.SiLU) == isinstance(layers[-1], BatchNormAct2d)
