"""The moving average of the weights: what it is, and that all processes have the same."""

import json

import pytest
import torch

from datasets.loaders import set_epoch
from engine.config import TrainConfig
from engine.data import TrainingData
from engine.run import Run
from engine.state import TrainState
from engine.training import training_step
from models.change_detector import ModelConfig, build_model
from models.losses import ChangeCriterion
from tests.helpers.processes import run_ranks
from tests.helpers.runs import BACKBONE, train_options
from utils import cli, dist

STEPS, SHARE = 6, 0.5


def noise_batch(seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (2, 2, 3, 64, 64), generator=generator, dtype=torch.uint8)
    labels = torch.randint(1, 7, (2, 2, 64, 64), generator=generator, dtype=torch.uint8)
    maps = {"label1": labels[0], "label2": labels[1], "change_mask": torch.ones_like(labels[0])}
    return {"name": ["a", "b"], "image1": images[0], "image2": images[1], **maps}


def new_state(ema: float, accumulate: int = 1) -> TrainState:
    torch.manual_seed(0)
    model = build_model(ModelConfig("fcn", BACKBONE))
    config = TrainConfig(amp="off", lr=0.01, ema=ema, accumulate=accumulate)
    state = TrainState(config, model, ChangeCriterion(6), STEPS)
    state.begin_epoch()
    return state


def copy_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_is_the_one_computed_by_hand(accumulate):
    state, average = new_state(SHARE, accumulate), None
    decay = 0.5 ** (1 / (SHARE * STEPS))  # after half of the steps a weight counts half
    for step in range(STEPS):
        for part in range(accumulate):
            training_step(state, noise_batch(accumulate * step + part))
        weights = copy_of(state.model)
        # It starts as a short one (timm's warm-up), so that the initial weights do not count.
        kept = min(decay, 1 - (1 + step) ** (-2 / 3))
        average = average or weights
        average = {
            name: kept * average[name] + (1 - kept) * value if value.is_floating_point() else value
            for name, value in weights.items()
        }
    torch.testing.assert_close(copy_of(state.averaged), average)
    running = [name for name in average if name.endswith("running_var")]
    assert running and not any(torch.equal(average[name], weights[name]) for name in running)
    assert state.weights_and_scores()["model"].keys() == weights.keys()


def test_what_is_trained_does_not_depend_on_it():
    found = []
    for ema in (0.0, SHARE):
        state = new_state(ema)
        for step in range(3):
            training_step(state, noise_batch(step))
        found.append(copy_of(state.model))
        assert (state.averaged is state.model) == (not ema)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_predictions_are_those_of_the_average():
    state = new_state(SHARE)
    images = noise_batch(9)["image1"], noise_batch(8)["image2"]
    for step in range(2):  # the second look gives the predictor new weights
        training_step(state, noise_batch(step))
        state.end_training()
        with torch.inference_mode():
            expected = state.averaged.eval()(*images).change_logits.sigmoid()
        found = state.predictor(tta=False)(*images).change_probs
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        state.model.train()


def test_a_model_that_is_compiled_has_an_average():
    model = build_model(ModelConfig("fcn", BACKBONE))
    model.compile()
    state = TrainState(TrainConfig(amp="off", ema=0.1), model, ChangeCriterion(6), STEPS)
    assert state.averaged is not model
    assert copy_of(state.averaged).keys() == copy_of(model).keys()


def write_average(rank, data_root, folder):
    """Train an epoch; write the sums of what this process averaged."""
    config = cli.parse(TrainConfig, train_options(data_root, folder, "--ema", SHARE))
    with dist.joined("cpu") as device:
        data = TrainingData.open(config, device)
        run = Run(config, data.task, data.split.to_dict())
        state = TrainState.build(config, data, run, device)
        set_epoch(data.train_loader, *state.begin_epoch())
        for batch in data.train_loader:
            training_step(state, batch)
        state.end_training()
        sums = {name: float(each.double().sum()) for name, each in copy_of(state.averaged).items()}
        (folder / f"{rank}.json").write_text(json.dumps(sums))


def test_two_processes_have_the_same_average(sample_root, tmp_path):
    run_ranks(2, tmp_path, write_average, sample_root, tmp_path)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0] == found[1]
