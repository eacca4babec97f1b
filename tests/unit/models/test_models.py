import numpy as np
import pytest
import timm
import torch
from torch import nn

from datasets.bands import IMAGENET_MEAN, IMAGENET_STD, Bands, Imagery
from models.change_detector import ModelConfig, build_model, pad_to_multiple
from models.encoder import MAX_CHANNELS, build_encoder
from models.heads import HEADS, PyramidPooling
from utils.errors import OptionError

# One small member of each family: name → sum of the channels at strides of 4 and more.
FAMILIES = {
    "hrnet_w18_small": 240,
    "mobilenetv2_050": 240,
    "mobilenetv3_small_050": 336,
    "resnet18": 960,
    "convnext_atto": 600,
    "test_mambaout": 160,  # hands its maps over as (N, H, W, C)
    "swin_tiny_patch4_window7_224": 800,  # so does this one, and its widest maps are projected
    "swinv2_cr_tiny_ns_224": 800,
}
SMALL = "mobilenetv2_050"


def pair(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def small_model(model: str = "pspnet", lightweight: bool = False, **config) -> nn.Module:
    torch.manual_seed(0)
    return build_model(ModelConfig(model, config.pop("backbone", SMALL), lightweight, **config))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> nn.Module:
    return small_model(backbone=request.param, num_classes=4).eval()


@pytest.mark.parametrize(("height", "width"), [(64, 96), (50, 70)])
@torch.inference_mode()
def test_logits_have_the_size_of_the_images(family, height, width):
    output = family(*pair(1, 3, height, width))
    assert output.semantic_logits1.shape == (1, 4, height, width)
    assert output.semantic_logits2.shape == (1, 4, height, width)
    assert output.change_logits.shape == (1, height, width)
    assert all(logits.isfinite().all() for logits in output)


@torch.inference_mode()
def test_swapped_dates_swap_semantics_and_keep_change(family):
    image1, image2 = pair(1, 3, 64, 96)
    forth, back = family(image1, image2), family(image2, image1)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(forth.semantic_logits1, back.semantic_logits2, **close)
    torch.testing.assert_close(forth.semantic_logits2, back.semantic_logits1, **close)
    torch.testing.assert_close(forth.change_logits, back.change_logits, **close)
    assert not torch.allclose(forth.semantic_logits1, forth.semantic_logits2, **close)


@torch.inference_mode()
def test_features_have_the_promised_channels_and_stride(family):
    features = family.encoder(pair(1, 3, 64, 96)[0])
    assert family.encoder.out_channels == FAMILIES[family.config.backbone]
    assert features.shape == (1, family.encoder.out_channels, 16, 24)


@torch.inference_mode()
def test_whole_numbers_are_normalised_by_the_model():
    """In the arithmetic of float32, and floating input is taken as it is."""
    network = small_model("fcn").eval()
    images = torch.randint(0, 256, (2, 2, 3, 64, 96), generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    expected = network(*((images.float() - mean) / std))
    whole = images.to(torch.uint8)
    for found, wanted in zip(network(*whole), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(whole, images)  # the batch itself is left alone
    assert not {"mean", "std"} & network.state_dict().keys()


def test_a_model_reads_its_bands_of_a_batch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60_000, (2, 4, 32, 64)).astype(np.uint16)
    imagery = Imagery(Bands((4, 2), 16), (30_000.0, 20_000.0), (15_000.0, 9_000.0))
    network = small_model("fcn", in_channels=2, imagery=imagery).eval()
    seen = []
    network.encoder.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network.read_from(Bands((1, 2, 3, 4), 16))
        network(*[torch.from_numpy(images)] * 2)
        network.read_from(imagery.bands)
        network(*[torch.from_numpy(images[:, [3, 1]])] * 2)
    mean, std = (np.reshape(v, (1, 2, 1, 1)) for v in (imagery.mean, imagery.std))
    expected = (images[:, [3, 1]] - mean) / std
    np.testing.assert_allclose(seen[0][:2].numpy(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(seen[0], seen[1])
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("model", HEADS)
@pytest.mark.parametrize("lightweight", [False, True])
@torch.inference_mode()
def test_every_head_predicts_several_pairs(model, lightweight):
    network = small_model(model, lightweight).eval()
    output = network(*pair(3, 3, 32, 64))
    assert output.semantic_logits1.shape == (3, 6, 32, 64)
    assert output.change_logits.shape == (3, 32, 64)
    heavy = sum(p.numel() for p in small_model(model).change_head.parameters())
    size = sum(p.numel() for p in network.change_head.parameters())
    assert size < heavy / 2 if lightweight else size == heavy


@torch.inference_mode()
def test_padding_repeats_the_last_row_and_column_and_moves_no_prediction():
    whole = torch.randn(2, 3, 64, 96)
    assert pad_to_multiple(whole, 32) is whole
    images = torch.randn(1, 3, 50, 70)
    padded = pad_to_multiple(images, 32)
    assert padded.shape == (1, 3, 64, 96)
    assert torch.equal(padded[..., :50, :70], images)
    assert torch.equal(padded[..., 50:, :70], images[..., -1:, :].expand(1, 3, 14, 70))
    assert torch.equal(padded[..., 70:], padded[..., 69:70].expand(1, 3, 64, 26))
    network = small_model("fcn").eval()
    for cut, whole in zip(network(*[images] * 2), network(*[padded] * 2), strict=True):
        torch.testing.assert_close(cut, whole[..., :50, :70])


def test_channels_last_maps_are_recognised_whatever_their_size():
    # At 128 pixels the first map has 32 rows, the second 32 channels: shapes alone mislead.
    encoder = build_encoder("test_mambaout").eval()
    first_channels = encoder.level_channels[0]
    side = 4 * first_channels  # the first map is then as high as it has channels
    image, _ = pair(1, 3, side, side)
    with torch.inference_mode():
        features = encoder(image)
        expected = encoder.body(image)[0].permute(0, 3, 1, 2)
    torch.testing.assert_close(features[:, :first_channels], expected)


@pytest.mark.parametrize(
    "backbone", ["resnet50", "convnext_tiny", "efficientnet_b0", "hrnet_w48", "hrnet_w64"]
)
def test_wide_maps_are_projected_and_hrnet_never_is(backbone):
    with torch.device("meta"):
        encoder = build_encoder(backbone)
        features = encoder(torch.empty(1, 3, 64, 64))
    assert encoder.out_channels <= MAX_CHANNELS == 1024
    assert features.shape == (1, encoder.out_channels, 16, 16)
    projected = any(not isinstance(p, nn.Identity) for p in encoder.projections)
    assert projected == (sum(encoder.level_channels) > MAX_CHANNELS)
    assert not (backbone.startswith("hrnet") and projected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"backbone": "resnet_18"}, r"--backbone resnet_18: .*did you mean .*resnet18"),
        ({"backbone": "#"}, r"no such model; see timm.list_models"),
        ({"model": "unet"}, r"unknown model 'unet'; choose from \['fcn', 'pspnet'\]"),
    ],
)
def test_unknown_names_are_refused(config, message):
    with pytest.raises(OptionError, match=message):
        build_model(ModelConfig(**config))


@pytest.mark.parametrize("error", [RuntimeError, AttributeError, AssertionError, TypeError])
def test_backbone_without_feature_maps_is_refused(error, monkeypatch):
    def refuse(*args, **kwargs):
        raise error("features_only not implemented")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(OptionError, match=f"--backbone {SMALL}: timm gives no feature maps for it"):
        build_encoder(SMALL)


@pytest.mark.parametrize("backbone", [SMALL, "resnet50"])
def test_parameter_groups_cover_each_parameter_once(backbone):
    with torch.device("meta"):
        network = build_model(ModelConfig(backbone=backbone))
    groups = network.parameter_groups(0.5)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in network.parameters()}
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        assert rates[id(parameter)] == (0.5 if name.startswith("encoder.body.") else 5.0), name


@pytest.mark.parametrize("model", HEADS)
@pytest.mark.parametrize("backbone", [SMALL, "hrnet_w18_small", "test_mambaout"])
def test_gradients_reach_all_parameters(model, backbone):
    network = small_model(model, backbone=backbone).train()
    output = network(*pair(2, 3, 64, 64))
    sum(logits.square().mean() for logits in output).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.semantic_head.parameters())


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_pyramid_pooling_keeps_the_memory_layout(layout):
    features = pair(2, 8, 12, 12)[0].contiguous(memory_format=layout)
    pooled = PyramidPooling(8).eval()(features)
    assert pooled.is_contiguous(memory_format=layout)
