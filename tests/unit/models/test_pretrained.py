import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from models.change_detector import ModelConfig, build_model
from models.encoder import build_encoder
from models.pretrained import find_pretrained
from utils.errors import CheckpointError

REPO = Path(__file__).resolve().parents[3]
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
def weights() -> dict[str, torch.Tensor]:
    return classifier(SMALL).state_dict()


@pytest.fixture(scope="module")
def hrnet_weights() -> dict[str, torch.Tensor]:
    return classifier(HRNET).state_dict()


def save(folder: Path, backbone: str, weights: dict, suffix: str = ".pth") -> Path:
    path = folder / f"{backbone}{suffix}"
    if suffix == ".pth":
        torch.save(weights, path)
    else:
        safetensors.torch.save_file(weights, path)
    return path


def load(folder: Path, backbone: str = SMALL, in_channels: int = 3) -> nn.Module:
    return build_encoder(backbone, in_channels, find_pretrained(backbone, folder)).body


def assert_filled(body: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    tensors = body.state_dict()
    assert len(tensors) > 100
    for name, value in tensors.items():
        assert torch.equal(value, weights[name]), name


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_classifier_checkpoint_fills_the_backbone(suffix, weights, tmp_path):
    save(tmp_path, SMALL, weights, suffix)
    assert_filled(load(tmp_path), weights)


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_wrapped_checkpoint(wrapper, weights, tmp_path):
    save(tmp_path, SMALL, {wrapper: weights, "epoch": 12})
    assert_filled(load(tmp_path), weights)


def test_data_parallel_checkpoint(weights, tmp_path):
    prefixed = {f"module.{name}": value for name, value in weights.items()}
    save(tmp_path, SMALL, {"state_dict": prefixed})
    assert_filled(load(tmp_path), weights)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_hrnet_classifier_checkpoint_fills_the_encoder(suffix, hrnet_weights, tmp_path):
    for part in ("incre_modules.", "downsamp_modules.", "final_layer.", "classifier."):
        assert any(name.startswith(part) for name in hrnet_weights)
    save(tmp_path, HRNET, hrnet_weights, suffix)
    assert_filled(load(tmp_path, HRNET), hrnet_weights)


def test_half_precision_file(weights, tmp_path):
    half = {n: v.half() if v.is_floating_point() else v for n, v in weights.items()}
    save(tmp_path, SMALL, half)
    body = load(tmp_path)
    assert all(v.dtype == torch.float32 for v in body.parameters())
    assert_filled(body, {n: v.to(weights[n].dtype) for n, v in half.items()})


def test_heads_stay_random_and_the_encoder_is_filled(weights, tmp_path):
    save(tmp_path, SMALL, weights)
    model = build_model(ModelConfig("fcn", SMALL), find_pretrained(SMALL, tmp_path))
    assert_filled(model.encoder.body, weights)
    assert model.semantic_head.head[0].weight.std() > 0


@pytest.mark.parametrize("other", ["mobilenetv2_100", "resnet18", "mobilenetv3_small_050"])
def test_file_of_another_backbone_is_refused(other, weights, tmp_path):
    save(tmp_path, SMALL, classifier(other).state_dict())
    with pytest.raises(CheckpointError, match=SMALL):
        load(tmp_path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_file_is_refused(suffix, weights, tmp_path):
    path = save(tmp_path, SMALL, weights, suffix)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load(tmp_path)


@pytest.mark.parametrize(
    "missing", ["conv_stem.weight", "blocks.3.1.conv_dw.weight", "blocks.5.2.bn3.running_mean"]
)
def test_file_with_one_tensor_missing_is_refused(missing, weights, tmp_path):
    assert missing in weights
    save(tmp_path, SMALL, {name: value for name, value in weights.items() if name != missing})
    with pytest.raises(CheckpointError, match="1 tensors of the backbone are not in"):
        load(tmp_path)


def test_hrnet_file_with_a_layer_missing_is_refused(hrnet_weights, tmp_path):
    layer = "stage4.0.fuse_layers.3.0.2.0."
    rest = {name: value for name, value in hrnet_weights.items() if not name.startswith(layer)}
    assert len(rest) == len(hrnet_weights) - 1
    save(tmp_path, HRNET, rest)
    with pytest.raises(CheckpointError, match="not in"):
        load(tmp_path, HRNET)


class _Attack:
    def __init__(self, path: Path) -> None:
        self.command = f"touch {path}"

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_does_not_run(zipped, weights, tmp_path):
    trace = tmp_path / "it_ran"
    torch.save(
        {**weights, "extra": _Attack(trace)},
        tmp_path / f"{SMALL}.pth",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(CheckpointError, match="refused, the file holds Python objects"):
        load(tmp_path)
    assert not trace.exists()


def test_no_file_takes_the_weights_of_timm(weights, tmp_path, monkeypatch):
    asked = []

    class Fetched:
        def state_dict(self):
            return weights

    def create_model(name, **options):
        asked.append((name, options))
        return Fetched()

    monkeypatch.setattr("models.pretrained.timm.create_model", create_model)
    assert find_pretrained(SMALL, tmp_path / "no such folder") is weights
    assert asked == [(SMALL, {"pretrained": True})]


def test_weights_of_a_deeper_backbone_are_refused(tmp_path):
    save(tmp_path, "resnet18", timm.create_model("resnet34").state_dict())
    with pytest.raises(CheckpointError, match=r"not in this backbone, layer1\.2"):
        load(tmp_path, "resnet18")


def run_offline(*command: str, home: Path) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(home),
        "TORCH_HOME": str(home),
    }
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=REPO,
        env=environment,
    )


def test_no_file_and_no_network_names_the_path_to_fill(sample_root, tmp_path):
    folder = tmp_path / "weights"
    options = ("--data-root", sample_root, "--outdir", tmp_path / "out", "--pretrained-dir", folder)
    done = run_offline(
        *("train.py", "--backbone", SMALL, "--pretrained", "--device", "cpu", "--workers", "0"),
        *map(str, options),
        home=tmp_path,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: --pretrained: no file")
    assert str(folder / f"{SMALL}.pth") in done.stderr
    assert not list(tmp_path.glob("out/models/*"))


def test_no_network_is_an_error_for_every_caller(tmp_path):
    code = (
        "from models.pretrained import find_pretrained\n"
        "from utils.errors import CheckpointError\n"
        "try:\n"
        f"    find_pretrained('{SMALL}', 'folder')\n"
        "except CheckpointError as error:\n"
        "    print(error)\n"
    )
    done = run_offline("-c", code, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert f"{SMALL}.pth" in done.stdout


@pytest.mark.parametrize(("backbone", "first"), [(SMALL, "conv_stem"), (HRNET, "conv1")])
def test_other_band_counts_adapt_the_first_convolution(
    backbone, first, weights, hrnet_weights, tmp_path
):
    trained = {SMALL: weights, HRNET: hrnet_weights}[backbone]
    save(tmp_path, backbone, trained)
    tensors = load(tmp_path, backbone, in_channels=4).state_dict()
    adapted = tensors.pop(f"{first}.weight")
    assert adapted.shape[1] == 4
    assert torch.allclose(adapted[:, :3], trained[f"{first}.weight"] * 3 / 4, atol=1e-6)
    assert all(torch.equal(value, trained[name]) for name, value in tensors.items())
