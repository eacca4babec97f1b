from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from engine.config import TrainConfig
from engine.predictor import VIEWS, Predictor
from engine.runtime import Precision, choose_precision
from engine.state import TrainState
from engine.training import training_step
from models.change_detector import ModelConfig, build_model
from models.decoding import decode
from models.losses import ChangeCriterion
from tools.scenes.scene import make_scene
from utils.errors import OptionError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "told", "expected"),
    [
        (CPU, {"avx512_bf16": True, "amx_bf16": False}, "bf16"),
        (CPU, {"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        (CPU, {"avx512_bf16": False, "amx_bf16": False, "avx2": True}, "off"),
        (CPU, {}, "off"),
        (torch.device("cuda"), (7, 5), "fp16"),
        (torch.device("cuda"), (8, 0), "bf16"),
        (torch.device("mps"), None, "off"),
    ],
)
@pytest.mark.filterwarnings("ignore:torch.cuda.amp.GradScaler is enabled")
def test_what_auto_chooses(device, told, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: told)
    precision = choose_precision("auto", device)
    assert precision.name == expected
    if expected == "off":
        assert isinstance(precision.autocast(), nullcontext)


def test_fp16_is_refused_on_cpus():
    with pytest.raises(OptionError, match=r"--amp fp16: for GPUs only"):
        choose_precision("fp16", CPU)
    assert not any(Precision(name, CPU).scaler.is_enabled() for name in ("off", "bf16"))


def test_bf16_multiplies_in_bf16_and_gives_logits_in_float32():
    torch.manual_seed(0)
    model = build_model(ModelConfig("fcn", "mobilenetv3_small_050")).eval()
    seen = []
    model.change_head.register_forward_hook(lambda m, i, output: seen.append(output.dtype))
    with torch.inference_mode(), choose_precision("bf16", CPU).autocast():
        output = model(*torch.randn(2, 1, 3, 64, 64))
    assert seen == [torch.bfloat16]
    assert all(logits.dtype == torch.float32 for logits in output)


class Plain(nn.Module):
    """No batch norm and no dropout: a batch's gradient is the mean of its pairs'."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden = nn.Conv2d(3, 8, 3, padding=1)
        self.semantic = nn.Conv2d(8, 6, 1)
        self.change = nn.Conv2d(8, 1, 1)

    def parameter_groups(self, lr: float) -> list[dict]:
        return [{"params": list(self.parameters()), "lr": lr}]

    def forward(self, image1: torch.Tensor, image2: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features1, features2 = (self.hidden(image / 64).relu() for image in (image1, image2))
        change = self.change((features1 - features2).abs()).squeeze(1)
        return self.semantic(features1), self.semantic(features2), change


def noise_batch(pairs: int, side: int = 16) -> dict:
    """Every pair has labels on the same number of pixels, so that halves weigh alike."""
    generator = torch.Generator().manual_seed(0)
    shape = (pairs, 3, side, side)
    changed = torch.arange(side * side).view(side, side) % 3 == 0
    labels = torch.randint(1, 7, (2, pairs, side, side), generator=generator) * changed
    image1, image2 = torch.randint(0, 256, (2, *shape), generator=generator).to(torch.uint8)
    return {
        "name": [str(i) for i in range(pairs)],
        "image1": image1,
        "image2": image2,
        "label1": labels[0].to(torch.uint8),
        "label2": labels[1].to(torch.uint8),
        "change_mask": changed.expand(pairs, -1, -1).to(torch.uint8),
    }


def split(batch: dict, parts: int) -> list[dict]:
    size = len(batch["name"]) // parts
    return [
        {key: value[i * size : (i + 1) * size] for key, value in batch.items()}
        for i in range(parts)
    ]


def gradient_of(batches: list[dict], accumulate: int) -> tuple[list[torch.Tensor], dict, int]:
    """Return what plain descent at rate one subtracts, the mean losses, and the steps taken."""
    model = Plain()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    config = TrainConfig(accumulate=accumulate, amp="off")
    state = TrainState(config, model, ChangeCriterion(6), steps=len(batches))
    state.optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    state.scheduler = torch.optim.lr_scheduler.ConstantLR(state.optimizer, factor=1.0)
    state.begin_epoch()
    for batch in batches:
        training_step(state, batch)
    after = [parameter.detach() for parameter in model.parameters()]
    return [a - b for a, b in zip(before, after, strict=True)], state.losses.means(), state.step


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_gives_the_gradient_of_the_whole_batch(parts):
    batch = noise_batch(4)
    expected, whole_loss, _ = gradient_of([batch], 1)
    found, loss, steps = gradient_of(split(batch, parts), parts)
    assert steps == 1
    assert all(gradient.abs().max() > 0 for gradient in expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert loss == pytest.approx(whole_loss, rel=1e-5)


def test_parts_left_over_make_no_step():
    batches = split(noise_batch(6), 3)
    expected, found = gradient_of(batches[:2], 2), gradient_of(batches, 2)
    assert expected[2] == found[2] == 1
    assert all(torch.equal(a, b) for a, b in zip(found[0], expected[0], strict=True))


def scene_batch(first: int, pairs: int) -> list[torch.Tensor]:
    """Images, labels and change masks of scenes that start at a seed."""
    scenes = [make_scene(seed, 64, 64) for seed in range(first, first + pairs)]
    names = ("image1", "image2", "truth1", "truth2", "label1")
    found = [torch.from_numpy(np.stack([getattr(s, name) for s in scenes])) for name in names]
    images = [image.permute(0, 3, 1, 2) for image in found[:2]]
    return [*images, *found[2:4], (found[4] > 0).to(torch.uint8)]


@pytest.mark.slow
def test_bf16_masks_agree_with_float32():
    torch.manual_seed(0)
    model = build_model(ModelConfig("fcn", "resnet18", lightweight=True)).train()
    criterion, steps = ChangeCriterion(6), 40
    optimizer = torch.optim.Adam(model.parameter_groups(1e-3))
    scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=0.9)
    for step in range(steps):
        image1, image2, *targets = scene_batch(8 * (step % 8), 8)
        output = model(image1, image2)
        optimizer.zero_grad()
        criterion(output, *targets)["total"].backward()
        optimizer.step()
        scheduler.step()
    model.to(memory_format=torch.channels_last).eval()
    images = scene_batch(1000, 16)[:2]
    expected = decode(Predictor([model], VIEWS)(*images))
    found = decode(Predictor([model], VIEWS, choose_precision("bf16", CPU).autocast)(*images))
    assert len(torch.stack(expected).unique()) >= 4  # it predicts changes, of several classes
    agreement = (torch.stack(found) == torch.stack(expected)).float().mean().item()
    assert agreement >= 0.998
