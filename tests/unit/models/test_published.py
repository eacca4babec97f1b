import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.predictor import VIEWS, apply_view, undo_view
from models.change_detector import ModelConfig, build_model
from models.checkpoint import load_model, open_checkpoint
from utils.errors import CheckpointError

DATA = Path(__file__).parents[2] / "data"
CONFIGS = {
    "fcn_hrnet_w18": ModelConfig("fcn", "hrnet_w18"),
    "pspnet_hrnet_w18_lightweight": ModelConfig("pspnet", "hrnet_w18", lightweight=True),
}
PREFIXES = {"encoder.body.": "backbone.", "semantic_head.": "head.", "change_head.": "head_bin."}


def published_weights(name: str) -> dict[str, torch.Tensor]:
    """The weights that data/README.md describes."""
    shapes = json.loads((DATA / f"{name}.keys.json").read_text(encoding="utf-8"))
    weights = {}
    for i, key in enumerate(sorted(shapes)):
        generator = torch.Generator().manual_seed(1000 + i)
        shape = shapes[key]
        if key.endswith("num_batches_tracked"):
            weights[key] = torch.tensor(0)
        elif key.endswith("running_var") or (len(shape) == 1 and key.endswith("weight")):
            weights[key] = torch.rand(shape, generator=generator) * 0.5 + 0.75
        elif len(shape) == 1:
            weights[key] = torch.randn(shape, generator=generator) * 0.1
        else:
            fan_in = math.prod(shape[1:])
            weights[key] = torch.randn(shape, generator=generator) * math.sqrt(0.7 / fan_in)
    return weights


def to_published_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our state dict under the published names."""
    renamed = {}
    for name, value in tensors.items():
        ours = next(prefix for prefix in PREFIXES if name.startswith(prefix))
        renamed[PREFIXES[ours] + name.removeprefix(ours)] = value
    return renamed


def assert_close(actual: torch.Tensor, expected: np.ndarray) -> None:
    """Largest error at most 1e-4 of the largest value."""
    expected = torch.from_numpy(expected).double()
    assert actual.shape == expected.shape
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error <= 1e-4


@pytest.fixture(scope="module", params=CONFIGS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def golden(name) -> dict[str, np.ndarray]:
    with np.load(DATA / f"{name}.npz") as figures:
        return dict(figures)


@pytest.fixture(scope="module")
def path(name, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("published") / "net.pth"
    torch.save(published_weights(name), path)
    return path


@pytest.fixture(scope="module")
def network(path) -> torch.nn.Module:
    return open_checkpoint(path).build()


@pytest.fixture(scope="module")
def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 3, 64, 96, generator=generator) for _ in range(2))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_configuration_is_inferred(prefix, name, path, tmp_path):
    weights = {f"{prefix}{key}": value for key, value in published_weights(name).items()}
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "wrapped.pth")
    for checkpoint in (open_checkpoint(path), open_checkpoint(tmp_path / "wrapped.pth")):
        assert checkpoint.config == CONFIGS[name]
        assert checkpoint.info == {}
        checkpoint.build()


@torch.inference_mode()
def test_same_function_as_published(network, images, golden):
    assert not network.training
    output = network(*images)
    assert_close(output.semantic_logits1, golden["semantic_logits1"])
    assert_close(output.semantic_logits2, golden["semantic_logits2"])
    changed = 1 - golden["unchanged_probs"].astype(np.float64)
    assert_close(output.change_logits.double().sigmoid(), changed)
    assert_close(output.change_logits, np.log(changed / (1 - changed)))


@torch.inference_mode()
def test_same_test_time_augmentation_as_published(network, images, golden):
    image1, image2 = (image[..., :64] for image in images)
    sums = [0.0, 0.0, 0.0]
    for view in VIEWS:
        output = network(apply_view(image1, view), apply_view(image2, view))
        probs = (
            output.semantic_logits1.softmax(dim=1),
            output.semantic_logits2.softmax(dim=1),
            output.change_logits.sigmoid(),
        )
        sums = [mean + undo_view(p, view).double() for mean, p in zip(sums, probs, strict=True)]
    semantic1, semantic2, changed = (mean / len(VIEWS) for mean in sums)
    assert_close(semantic1, golden["tta_semantic_probs1"])
    assert_close(semantic2, golden["tta_semantic_probs2"])
    assert_close(1 - changed, golden["tta_unchanged_probs"])


@pytest.mark.parametrize(
    "missing",
    [
        "backbone.stage3.1.branches.2.0.conv2.weight",
        "backbone.stage4.0.branches.0.0.conv1.weight",
        "backbone.bn1.running_mean",
        "backbone.conv1.weight",
        "head.head.4.weight",
        "head.head.4.bias",
        *("head_bin.", "head.", "backbone."),
    ],
)
def test_missing_tensor_or_part_is_an_error(missing, tmp_path):
    weights = published_weights("fcn_hrnet_w18")
    weights = {key: value for key, value in weights.items() if not key.startswith(missing)}
    torch.save(weights, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"net\.pth"):
        load_model(tmp_path / "net.pth")


@pytest.mark.parametrize("backbone", ["hrnet_w18_small", "hrnet_w18_small_v2"])
@pytest.mark.parametrize(("model", "lightweight"), [("fcn", True), ("pspnet", False)])
def test_small_hrnets_are_told_apart_and_load(backbone, model, lightweight, tmp_path):
    config = ModelConfig(model, backbone, lightweight, num_classes=4, in_channels=5)
    network = build_model(config).eval()
    torch.save(to_published_names(network.state_dict()), tmp_path / "net.pth")
    loaded = load_model(tmp_path / "net.pth")
    assert loaded.config == config
    # The published head speaks of "unchanged": only the sign of its last layer turns.
    tensors = loaded.state_dict()
    last = "change_head.head.4." if model == "fcn" else "change_head.conv5.5."
    for name, value in network.state_dict().items():
        assert torch.equal(tensors[name], -value if name.startswith(last) else value), name
    images = torch.randn(1, 5, 32, 32), torch.randn(1, 5, 32, 32)
    with torch.inference_mode():
        output, expected = loaded(*images), network(*images)
    assert_close(output.semantic_logits1, expected.semantic_logits1.numpy())
    assert_close(output.change_logits, -expected.change_logits.numpy())


@pytest.mark.parametrize("width", ["w18", "w30", "w32", "w40", "w44", "w48", "w64"])
def test_every_hrnet_is_recognised_by_its_shapes(width, tmp_path, monkeypatch):
    config = ModelConfig("pspnet", f"hrnet_{width}", lightweight=True)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in build_model(config).state_dict().items()}
    tensors = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    monkeypatch.setattr(
        "models.checkpoint.read_checkpoint", lambda path: to_published_names(tensors)
    )
    checkpoint = open_checkpoint(tmp_path / "net.pth")
    assert checkpoint.config == config
    assert checkpoint.tensors.keys() == tensors.keys()


def test_hrnet_of_unknown_width_is_an_error(tmp_path):
    weights = published_weights("fcn_hrnet_w18")
    weights["backbone.stage4.0.branches.0.0.conv1.weight"] = torch.zeros(19, 19, 3, 3)
    torch.save(weights, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="HRNet of width 19"):
        open_checkpoint(tmp_path / "net.pth")
