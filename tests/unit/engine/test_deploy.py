import copy
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datasets.bands import Bands, Imagery
from engine.predictor import IDENTITY, VIEWS, Predictor
from engine.runtime import build_predictor, choose_precision, compile_if_asked
from models.checkpoint import Checkpoint
from tests.helpers.band_models import STATISTICS, checkpoint_of
from tests.unit.engine.test_inference import pair
from tests.unit.models.test_models import small_model
from utils.errors import OptionError

CPU = torch.device("cpu")
FLOAT32 = choose_precision("off", CPU)


def make_checkpoint(backbone: str = "mobilenetv3_small_050", seed: int = 0) -> Checkpoint:
    model = small_model(backbone=backbone)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.1 * torch.randn(()))
    return Checkpoint(Path("none.pth"), model.config, copy.deepcopy(model.state_dict()), {})


def images(pairs: int = 2, height: int = 64, width: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    return pair(pairs, 3, height, width)


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "hrnet_w18_small"])
@pytest.mark.parametrize("tta", [False, True])
def test_the_predictor_equals_the_plain_models(backbone, tta):
    checkpoints = [make_checkpoint(backbone, seed) for seed in range(2)]
    views = VIEWS if tta else IDENTITY
    plain = Predictor([checkpoint.build() for checkpoint in checkpoints], views)
    predictor = build_predictor(checkpoints, CPU, FLOAT32, tta)
    assert predictor.views == views
    for found, expected in zip(predictor(*images()), plain(*images()), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    for model in predictor.models:
        assert not model.training
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
        stem = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
        assert stem.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backbone", ["mobilenetv2_050", "hrnet_w18_small"])
def test_stored_weights_compute_what_autocast_computes(backbone):
    precision = choose_precision("bf16", CPU)
    checkpoint = make_checkpoint(backbone)
    predictor = build_predictor([checkpoint], CPU, precision, tta=False)
    folded = build_predictor([checkpoint], CPU, FLOAT32, tta=False).models
    converted = Predictor(folded, autocast=precision.autocast)
    convolutions = [m for m in predictor.models[0].modules() if type(m) is torch.nn.Conv2d]
    assert all(m.weight.dtype == torch.bfloat16 for m in convolutions)
    torch.testing.assert_close(predictor(*images()), converted(*images()), rtol=0, atol=0)


def test_models_of_an_ensemble_see_their_own_bands():
    """Each gets its bands, in its order, under its statistics, as it would alone."""
    swapped = Imagery(Bands((4, 2), 16), (1500.0, 1000.0), (700.0, 300.0))
    checkpoints = [checkpoint_of(STATISTICS), checkpoint_of(swapped)]
    batch = np.random.default_rng(0).integers(0, 3000, (2, 1, 4, 32, 48)).astype(np.uint16)
    predictor = build_predictor(checkpoints, CPU, FLOAT32, tta=True)
    together = predictor.each_model(*map(torch.from_numpy, batch))
    for checkpoint, found in zip(checkpoints, together, strict=True):
        chosen = [number - 1 for number in checkpoint.config.imagery.bands.numbers]
        own = [torch.from_numpy(image[:, chosen]) for image in batch]
        alone = build_predictor([checkpoint], CPU, FLOAT32, tta=True)(*own)
        for a, b in zip(found, alone, strict=True):
            assert torch.equal(a, b)


@pytest.fixture
def predictor() -> Predictor:
    built = Predictor([make_checkpoint().build()], VIEWS)
    built.batches = []
    built.models[0].register_forward_pre_hook(lambda m, i: built.batches.append(len(i[0])))
    return built


def loader_of(pairs: int, batch_size: int = 8, one_size: bool = True) -> SimpleNamespace:
    image1, image2 = images(1, 64, 64)
    starts = range(0, pairs, batch_size)
    batches = [list(range(i, min(i + batch_size, pairs))) for i in starts]
    sizes = {(64, 64)} if one_size else {(64, 64), (32, 64)}
    return SimpleNamespace(
        dataset=[{"image1": image1[0], "image2": image2[0]}],
        batch_sampler=SimpleNamespace(batches=batches, sizes=sizes),
    )


@pytest.mark.parametrize(
    "case",
    [
        ("off", "cuda", 1000, True, 0),
        ("auto", "cuda", 500, True, 6 * 8),
        ("auto", "cuda", 499, True, 0),
        ("auto", "cuda", 500, False, 0),
        ("auto", "cpu", 1000, True, 0),
        ("on", "cpu", 100, True, 6 * 8),  # warmed up with a whole batch
        ("on", "cpu", 5, True, 6 * 5),
        ("on", "cpu", 0, True, 0),
    ],
)
def test_who_is_compiled(case, predictor, monkeypatch, capsys):
    mode, device, pairs, one_size, passes = case

    def compiled(model: torch.nn.Module, dynamic: bool) -> torch.nn.Module:
        predictor.device = CPU  # which the decision alone took for another
        return model

    monkeypatch.setattr(torch, "compile", compiled)
    predictor.device = torch.device(device)
    compile_if_asked(predictor, mode, loader_of(pairs, one_size=one_size))
    assert sum(predictor.batches) == passes
    said = "compiling 1 models, which takes minutes\n"
    assert capsys.readouterr().out == (said if passes else "")


def test_auto_goes_on_without_what_cannot_be_compiled(monkeypatch, capsys):
    predictor, plain = (build_predictor([make_checkpoint()], CPU, FLOAT32, True) for _ in range(2))
    compiler = torch.compile

    def fail(graph: object, inputs: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    def compiled(model: torch.nn.Module, dynamic: bool) -> torch.nn.Module:
        predictor.device = CPU
        return compiler(model, dynamic=dynamic, backend=fail)

    monkeypatch.setattr(torch, "compile", compiled)
    predictor.device = torch.device("cuda")
    compile_if_asked(predictor, "auto", loader_of(500))
    reason = "(RuntimeError: Failed to find C compiler)"
    assert f"compiling failed {reason}; going on without" in capsys.readouterr().out
    for found, expected in zip(predictor(*images()), plain(*images()), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with pytest.raises(OptionError, match=r"--compile on: compiling failed .*find C compiler"):
        compile_if_asked(predictor, "on", loader_of(9))
    with pytest.raises(OptionError, match=r"--compile on: the pairs have several sizes"):
        compile_if_asked(predictor, "on", loader_of(2, one_size=False))


class OneConvolution(torch.nn.Module):
    """The least that a predictor runs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Conv2d(3, 3, 1)

    def forward(self, image1: torch.Tensor, image2: torch.Tensor) -> tuple[torch.Tensor, ...]:
        image1, image2 = image1 / 64, image2 / 64
        return self.head(image1), self.head(image2), (image1 - image2).abs().mean(1)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@torch._dynamo.config.patch(recompile_limit=2)
def test_compiled_models_have_constant_weights_and_one_pass_size():
    torch.manual_seed(0)
    models = [OneConvolution().eval() for _ in range(3)]
    predictor = Predictor(models, VIEWS)
    plain = Predictor(copy.deepcopy(models), VIEWS)
    predictor.compile()
    inputs = images(2, 16, 16)
    expected = plain(*inputs)
    predictor(*inputs)
    with torch.no_grad():
        # Only constant weights are laid out and converted once; changes that go unseen prove it.
        for model in models:
            model.head.weight.mul_(-1)
    torch.testing.assert_close(predictor(*inputs), expected)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    one = [image[:1] for image in inputs]
    torch.testing.assert_close(predictor(*one), plain(*one))
    predictor.views = IDENTITY
    predictor(*one)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
