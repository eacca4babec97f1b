from collections.abc import Callable
from functools import partial

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
    assert fold_batch_norm(model, *pair(1, 3, 64, 64, seed=1)) > 0
    assert fold_batch_norm(model, *images) == 0
    assert_close(model(*images), expected)


@pytest.mark.parametrize("lightweight", [False, True])
@pytest.mark.parametrize("head", ["fcn", "pspnet"])
@torch.no_grad()
def test_hrnets_and_heads_fold_completely(head, lightweight):
    model = with_statistics(small_model(head, lightweight, backbone="hrnet_w18_small"))
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    images = pair(1, 3, 64, 64)
    expected = model(*images)
    assert fold_batch_norm(model, *images) == norms
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert_close(model(*images), expected)


class TwoNorms(nn.Module):
    """One convolution whose output two batch norms read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm1, self.norm2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.conv(x)
        return self.norm1(features) - 2 * self.norm2(features)


class OneNormTwice(nn.Module):
    """One batch norm behind two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv1(x)) - 2 * self.norm(self.conv2(x))


class SharedConvolution(nn.Module):
    """One convolution that is called twice, for a batch norm and for another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm1, self.norm2 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm2(self.conv(self.norm1(self.conv(x))))


class NormFirst(nn.Module):
    """A batch norm of the input, and one behind an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.conv, self.norm2 = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm2(self.conv(self.norm1(x)).relu())


class Residual(nn.Module):
    """One convolution whose output a batch norm reads, and something else as well."""

    def __init__(self, join: Callable) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.join = join

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.conv(x)
        return self.join(features, self.norm)


def change_first(features: torch.Tensor, norm: nn.Module) -> torch.Tensor:
    features += 1
    return norm(features)


RESIDUALS = {
    "sum": lambda features, norm: norm(features) + features,
    "list": lambda features, norm: torch.cat([norm(features), features], dim=1),
    "keyword": lambda features, norm: torch.add(norm(features), other=features),
    "view": lambda features, norm: norm(features).flatten() + features.view(-1),
    "function": lambda features, norm: (
        norm(features) + F.batch_norm(features, norm.running_mean, norm.running_var)
    ),
    "changed in place": change_first,
}


class CalledTwice(nn.Module):
    """One convolution whose first output a batch norm reads, the second an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(self.conv(x))).relu()


class NormOfTwoNames(nn.Module):
    """One batch norm that is known under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.alias = self.norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.alias(self.conv(x))


@pytest.mark.parametrize(
    "kind",
    [
        *(TwoNorms, OneNormTwice, SharedConvolution, NormFirst, CalledTwice, NormOfTwoNames),
        *(pytest.param(partial(Residual, join), id=name) for name, join in RESIDUALS.items()),
    ],
)
@torch.no_grad()
def test_what_cannot_be_folded_is_left_alone(kind):
    torch.manual_seed(0)
    model = with_statistics(kind())
    image, _ = pair(1, 3, 8, 8)
    expected = model(image)
    assert fold_batch_norm(model, image) == 0
    assert torch.equal(model(image), expected)


@pytest.mark.parametrize(
    "wrap", [lambda *parts: parts, lambda *parts: [{"parts": parts}]], ids=["tuple", "nested"]
)
@torch.no_grad()
def test_a_convolution_whose_output_is_returned_is_left_alone(wrap):
    model = with_statistics(Residual(lambda features, norm: wrap(norm(features), features)))
    assert fold_batch_norm(model, pair(1, 3, 8, 8)[0]) == 0


@torch.no_grad()
def test_reading_the_shape_does_not_hinder_folding():
    model = with_statistics(
        Residual(lambda features, norm: norm(features)[..., : features.shape[-1] - 1])
    )
    image, _ = pair(1, 3, 8, 8)
    expected = model(image)
    assert fold_batch_norm(model, image) == 1
    assert_close((model(image),), (expected,))


@torch.no_grad()
def test_a_norm_keeps_the_activation_it_carries():
    torch.manual_seed(0)
    model = with_statistics(
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), BatchNormAct2d(4, act_layer=nn.SiLU))
    )
    image, _ = pair(1, 3, 8, 8)
    expected = model(image)
    assert fold_batch_norm(model, image) == 1
    assert isinstance(model[1], nn.SiLU)
    assert_close((model(image),), (expected,))


@torch.no_grad()
def test_biases_groups_and_strides_fold():
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 6, 3, stride=2, bias=True),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 6, 3, groups=6, bias=False),
        nn.BatchNorm2d(6),
    ]
    model = with_statistics(nn.Sequential(*layers))
    image, _ = pair(2, 3, 17, 23)
    expected = model(image)
    assert fold_batch_norm(model, image) == 2
    assert_close((model(image),), (expected,))
