import copy
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from engine import runtime
from engine.predictor import IDENTITY, VIEWS, Predictor
from engine.runtime import (
    COMPILE_S,
    COMPILE_SAVES,
    build_predictor,
    choose_precision,
    compile_predictor,
)
from models.checkpoint import Checkpoint
from tests.unit.models.test_models import small_model
from utils.errors import OptionError

CPU = torch.device("cpu")
FLOAT32 = choose_precision("off", CPU)
HOURS = 3600.0


def make_checkpoint(backbone: str = "mobilenetv3_small_050", seed: int = 0) -> Checkpoint:
    model = small_model(backbone=backbone)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.1 * torch.randn(()))
    return Checkpoint(Path("none.pth"), model.config, copy.deepcopy(model.state_dict()), {})


def images(pairs: int = 2, height: int = 64, width: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (pairs, 3, height, width)
    return tuple(
        torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) for _ in range(2)
    )


def samples(number: int) -> tuple[dict, int]:
    image1, image2 = images(1, 64, 64)
    return {"image1": image1[0], "image2": image2[0]}, number


@pytest.mark.parametrize(
    "backbone", ["mobilenetv3_small_050", "hrnet_w18_small", "mobilenetv2_050"]
)
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


def test_the_predictor_computes_in_the_given_precision():
    seen = []
    checkpoint = make_checkpoint()
    predictor = build_predictor([checkpoint], CPU, choose_precision("bf16", CPU), tta=False)
    head = predictor.models[0].change_head
    head.register_forward_hook(lambda m, i, output: seen.append(output.dtype))
    probs = predictor(*images())
    assert seen == [torch.bfloat16]
    assert all(value.dtype == torch.float32 for value in probs)


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


def test_four_bands():
    model = small_model(in_channels=4)
    checkpoint = Checkpoint(Path("none.pth"), model.config, model.state_dict(), {})
    assert build_predictor([checkpoint], CPU, FLOAT32, tta=True).models[0].config.in_channels == 4


# What compile_predictor decides; nothing is compiled


@pytest.fixture
def predictor(monkeypatch) -> Predictor:
    built = build_predictor([make_checkpoint()], CPU, FLOAT32, tta=True)
    monkeypatch.delenv("CXX", raising=False)
    built.compilations = 0
    built.batches = []

    def compiled(self) -> None:
        self.compilations += 1
        self.models[0].register_forward_pre_hook(lambda m, i: self.batches.append(len(i[0])))

    monkeypatch.setattr(Predictor, "compile", compiled)
    monkeypatch.setattr(shutil, "which", lambda name: f"/{name}")
    return built


def refuse_to_say(text: str) -> None:
    raise AssertionError(text)


def test_off_does_nothing(predictor):
    compile_predictor(predictor, "off", {}, 0, 8, one_size=False, say=refuse_to_say)
    assert predictor.compilations == 0


def test_auto_leaves_little_work_alone(predictor):
    compile_predictor(predictor, "auto", *samples(3), 8, one_size=True, say=refuse_to_say)
    assert predictor.compilations == 0


@pytest.mark.parametrize(("excess", "compiled"), [(0.99, 0), (1.01, 1)])
def test_auto_compiles_where_the_saving_exceeds_the_cost(excess, compiled, predictor, monkeypatch):
    pairs = 100
    pair_s = excess * COMPILE_S * len(predictor.models) / (COMPILE_SAVES * pairs)
    monkeypatch.setattr(runtime, "_seconds", lambda *arguments: pair_s)
    said = []
    compile_predictor(predictor, "auto", *samples(pairs), 8, one_size=True, say=said.append)
    assert predictor.compilations == compiled
    assert len(said) == 2 * compiled
    if compiled:
        assert f"of {pair_s * pairs:.0f} s" in said[0]
        assert said[1].startswith("compiled 1 models in")


def test_auto_counts_no_more_than_the_time_that_is_left(predictor, monkeypatch):
    monkeypatch.setattr(runtime, "_seconds", lambda *arguments: HOURS)
    limit = 0.99 * COMPILE_S / COMPILE_SAVES
    for remaining_s, compiled in ((limit, 0), (1.02 * limit, 1)):
        compile_predictor(
            *(predictor, "auto", *samples(9), 8, True),
            say=lambda text: None,
            remaining_s=remaining_s,
        )
        assert predictor.compilations == compiled


def fail_to_compile(graph: object, inputs: object) -> None:
    raise RuntimeError("Failed to find C compiler")


def test_auto_goes_on_without_what_cannot_be_compiled(monkeypatch):
    predictor = build_predictor([make_checkpoint()], CPU, FLOAT32, tta=True)
    plain = build_predictor([make_checkpoint()], CPU, FLOAT32, tta=True)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fail_to_compile))
    monkeypatch.setattr(runtime, "_seconds", lambda *arguments: HOURS)
    said = []
    compile_predictor(predictor, "auto", *samples(9), 8, one_size=True, say=said.append)
    assert said[1:] == [
        "compiling failed (RuntimeError: Failed to find C compiler); going on without "
        "(--compile off)"
    ]
    for found, expected in zip(predictor(*images()), plain(*images()), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed):
        compile_predictor(predictor, "on", *samples(9), 8, one_size=True)


@pytest.mark.parametrize(("number", "expected"), [(100, 6 * 8), (5, 6 * 5)])
def test_on_warms_up_with_a_whole_batch(number, expected, predictor):
    compile_predictor(predictor, "on", *samples(number), 8, one_size=True, say=lambda text: None)
    assert predictor.compilations == 1
    assert sum(predictor.batches) == expected


def test_on_is_refused_for_mixed_sizes(predictor):
    with pytest.raises(OptionError, match=r"--compile on: the pairs have several sizes"):
        compile_predictor(predictor, "on", *samples(2), 8, one_size=False)
    assert predictor.compilations == 0


def test_on_is_refused_without_a_compiler(predictor, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(OptionError, match=r"--compile on: no C\+\+ compiler found; install g\+\+"):
        compile_predictor(predictor, "on", *samples(2), 8, one_size=True)


def test_on_takes_the_compiler_that_the_environment_names(predictor, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "/opt/icpx" else None)
    monkeypatch.setenv("CXX", "/opt/icpx")
    compile_predictor(predictor, "on", *samples(2), 8, one_size=True, say=lambda text: None)
    assert predictor.compilations == 1


@pytest.mark.parametrize("obstacle", ["sizes", "compiler"])
def test_auto_yields_to_obstacles_silently(obstacle, predictor, monkeypatch):
    if obstacle == "compiler":
        monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(runtime, "_seconds", lambda *arguments: HOURS)
    compile_predictor(
        predictor, "auto", *samples(9), 8, one_size=obstacle == "compiler", say=refuse_to_say
    )
    assert predictor.compilations == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_predictor_agrees_with_the_plain_one():
    checkpoint = make_checkpoint()
    plain = build_predictor([checkpoint], CPU, FLOAT32, tta=True)
    predictor = build_predictor([checkpoint], CPU, FLOAT32, tta=True)
    said = []
    compile_predictor(predictor, "on", *samples(4), 4, one_size=True, say=said.append)
    assert said
    for pairs in (4, 1):  # an incomplete batch is filled up
        inputs = images(pairs, 64, 64)
        for found, expected in zip(predictor(*inputs), plain(*inputs), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


class OneConvolution(torch.nn.Module):
    """The least that a predictor runs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Conv2d(3, 3, 1)

    def forward(self, image1: torch.Tensor, image2: torch.Tensor) -> tuple[torch.Tensor, ...]:
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
