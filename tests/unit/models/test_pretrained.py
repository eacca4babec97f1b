from pathlib import Path
from unittest.mock import Mock

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from models.change_detector import ModelConfig, build_model
from models.encoder import build_encoder
from models.pretrained import find_pretrained
from utils.errors import CheckpointError

SMALL = "mobilenetv2_050"
HRNET = "hrnet_w18_small"


def classifier(backbone: str) -> nn.Module:
    """A full classifier whose tensors all differ, as those of a trained one do."""
    torch.manual_seed(0)
    network = timm.create_model(backbone)
    for name, value in network.state_dict().items():
        if value.is_floating_point() and value.dim() < 2:
            value.copy_(torch.rand(value.shape) + (0.5 if name.endswith("var") else 0))
    return network


@pytest.fixture(scope="module")
def trained() -> dict[str, dict[str, torch.Tensor]]:
    return {name: classifier(name).state_dict() for name in (SMALL, HRNET)}


def save(folder: Path, backbone: str, weights: dict, suffix: str = ".pth") -> None:
    write = torch.save if suffix == ".pth" else safetensors.torch.save_file
    write(weights, folder / f"{backbone}{suffix}")


def load(folder: Path, backbone: str = SMALL, in_channels: int = 3) -> nn.Module:
    return build_encoder(backbone, in_channels, find_pretrained(backbone, folder)).body


def assert_filled(body: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    tensors = body.state_dict()
    assert len(tensors) > 100
    for name, value in tensors.items():
        assert torch.equal(value, weights[name]), name


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("backbone", [SMALL, HRNET])
def test_classifier_checkpoint_fills_the_backbone(backbone, suffix, trained, tmp_path):
    save(tmp_path, backbone, trained[backbone], suffix)
    assert_filled(load(tmp_path, backbone), trained[backbone])


def test_half_precision_file(trained, tmp_path):
    weights = trained[SMALL]
    half = {n: v.half() if v.is_floating_point() else v for n, v in weights.items()}
    save(tmp_path, SMALL, half)
    body = load(tmp_path)
    assert all(v.dtype == torch.float32 for v in body.parameters())
    assert_filled(body, {n: v.to(weights[n].dtype) for n, v in half.items()})


def test_heads_stay_random_and_the_encoder_is_filled(trained, tmp_path):
    save(tmp_path, SMALL, trained[SMALL])
    model = build_model(ModelConfig("fcn", SMALL), find_pretrained(SMALL, tmp_path))
    assert_filled(model.encoder.body, trained[SMALL])
    assert model.semantic_head.head[0].weight.std() > 0


@pytest.mark.parametrize("other", ["mobilenetv2_100", "resnet18"])
def test_file_of_another_backbone_is_refused(other, tmp_path):
    save(tmp_path, SMALL, classifier(other).state_dict())
    with pytest.raises(CheckpointError, match=SMALL):
        load(tmp_path)
    save(tmp_path, "resnet18", timm.create_model("resnet34").state_dict())  # holds all and more
    with pytest.raises(CheckpointError, match=r"not in this backbone, layer1\.2"):
        load(tmp_path, "resnet18")


@pytest.mark.parametrize(
    ("backbone", "missing"),
    [(SMALL, "blocks.5.2.bn3.running_mean"), (HRNET, "stage4.0.fuse_layers.3.0.2.0.weight")],
)
def test_file_with_one_tensor_missing_is_refused(backbone, missing, trained, tmp_path):
    assert missing in trained[backbone]
    save(tmp_path, backbone, {n: v for n, v in trained[backbone].items() if n != missing})
    with pytest.raises(CheckpointError, match="1 tensors of the backbone are not in"):
        load(tmp_path, backbone)


def test_no_file_takes_the_weights_of_timm(trained, tmp_path, monkeypatch):
    fetched = Mock(return_value=Mock(state_dict=lambda: trained[SMALL]))
    monkeypatch.setattr(timm, "create_model", fetched)
    assert find_pretrained(SMALL, tmp_path / "no such folder") is trained[SMALL]
    fetched.assert_called_once_with(SMALL, pretrained=True)


def test_no_file_and_no_network_names_the_path_to_fill(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="--pretrained: no file") as caught:
        find_pretrained(SMALL, tmp_path / "weights")
    assert str(tmp_path / "weights" / f"{SMALL}.pth") in str(caught.value)
    assert "\n" not in str(caught.value)
