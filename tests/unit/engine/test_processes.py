"""Several processes do what one does: losses, shares of the data, scores."""

import json
import shutil

import pytest
import torch
from torch import nn

from datasets.augment import TrainTransform
from datasets.classes import SECOND_CLASSES
from datasets.dataset import ChangeDetectionDataset
from datasets.loaders import evaluation_loader, set_epoch, training_loader
from datasets.pairs import index_pairs
from datasets.task import Task
from engine.config import TrainConfig
from engine.data import TrainingData
from engine.predictor import Predictor, evaluate
from engine.run import Run
from engine.state import TrainState
from engine.training import training_step
from models.change_detector import ModelConfig, build_model
from tests.helpers.change_sets import leave_unchanged
from tests.helpers.processes import run_ranks
from tests.helpers.runs import BACKBONE, train_options
from utils import cli, dist

TASK = Task(SECOND_CLASSES)
STEPS = 3


def write_losses(rank, data_root, outdir, argv):
    """Train an epoch without dropout and with fixed batch norms; write the terms of each batch.

    On CPUs every process normalises its own pairs; with fixed statistics nothing else differs.
    """
    config = cli.parse(TrainConfig, train_options(data_root, outdir, *argv))
    with dist.joined("cpu") as device:
        data = TrainingData.open(config, device)
        run = Run(config, data.task, data.split.to_dict())
        state = TrainState.build(config, data, run, device)
        losses = []
        state.criterion.register_forward_hook(
            lambda _module, _inputs, terms: losses.append(
                {name: dist.all_mean(value.detach()).item() for name, value in terms.items()}
            )
        )
        set_epoch(data.train_loader, *state.begin_epoch())
        for module in state.model.modules():
            if isinstance(module, nn.Dropout | nn.Dropout2d | nn.BatchNorm2d):
                module.eval()
        for batch in data.train_loader:
            training_step(state, batch)
        if dist.is_main():
            (outdir / "losses.json").write_text(json.dumps(losses))


@pytest.mark.parametrize(
    "argv",
    [
        ("--model", "pspnet", "--lightweight"),
        ("--accumulate", 2, "--change-sampling", 2),
        "one date",
    ],
)
def test_losses_of_two_processes_are_those_of_one(argv, broken_root, tmp_path):
    terms = {"change", "semantic1", "semantic2", "total"}
    leave_unchanged(broken_root, "00003", "00008")  # of which `argv` may draw fewer
    if argv == "one date":
        for split in ("train", "val"):
            shutil.rmtree(broken_root / split / "label2")
        argv, terms = (), terms - {"semantic2"}
    losses = []
    for size in (2, 1):
        outdir = tmp_path / str(size)
        run_ranks(size, outdir, write_losses, broken_root, outdir, argv)
        losses.append(json.loads((outdir / "losses.json").read_text()))
    parts = 2 if "--accumulate" in argv else 1
    assert [len(terms_of_run) for terms_of_run in losses] == [STEPS * parts] * 2
    for number, (found, expected) in enumerate(zip(*losses, strict=True)):
        assert set(found) == terms
        # Adam divides gradients by their own size, so that rounding grows from step to step.
        assert found == pytest.approx(expected, rel=1e-5 * 10 ** (number // parts)), number


def pairs_of(folder, count):
    return ChangeDetectionDataset(index_pairs(folder)[:count], TASK)


def write_confusion(rank, data, folder, batch_size):
    """Evaluate five pairs; each process writes what it saw, and the scores."""
    with dist.joined("cpu"):
        torch.manual_seed(0)
        model = build_model(ModelConfig("fcn", BACKBONE)).eval()
        loader = evaluation_loader(pairs_of(data / "train", 5), batch_size, 0)
        seen = []
        metrics = evaluate(Predictor([model]), loader, TASK, lambda names, *_: seen.extend(names))
        (folder / f"seen{rank}.json").write_text(json.dumps([seen, metrics.to_dict()]))


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_uneven_shares_have_the_confusion_of_one_process(batch_size, sample_root, tmp_path):
    scores = {}
    for size in (1, 2, 3):
        folder = tmp_path / str(size)
        run_ranks(size, folder, write_confusion, sample_root, folder, batch_size)
        parts = [json.loads((folder / f"seen{r}.json").read_text()) for r in range(size)]
        assert sorted(n for names, _ in parts for n in names) == [f"{i:05d}" for i in range(5)]
        assert all(found == parts[0][1] for _, found in parts)
        scores[size] = parts[0][1]
    assert scores[2] == scores[1]
    assert scores[3] == scores[1]


def as_rank(monkeypatch, rank, size):
    """Let this process take itself for one of several."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda *_: rank)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: size)


@pytest.mark.parametrize("size", [2, 3, 5, 13])
def test_every_batch_of_a_process_is_one_of_a_single_process(size, sample_root, monkeypatch):
    dataset = pairs_of(sample_root / "train", 11)
    alone = list(evaluation_loader(dataset, 3, 0).batch_sampler)
    shares = []
    for rank in range(size):
        as_rank(monkeypatch, rank, size)
        shares.append(list(evaluation_loader(dataset, 3, 0).batch_sampler))
    assert sorted(batch for share in shares for batch in share) == sorted(alone)


@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("size", [2, 3])
def test_training_batches_of_all_processes_are_those_of_one(size, skip, sample_root, monkeypatch):
    pairs = index_pairs(sample_root / "train")
    dataset = ChangeDetectionDataset(pairs, TASK, TrainTransform(None), seed=3)

    def batches(batch_size):
        loader = training_loader(dataset, batch_size, 0)
        set_epoch(loader, 2, skip)
        return list(loader)

    alone = batches(6)
    assert len(alone) == 2 - skip
    shares = []
    for rank in range(size):
        as_rank(monkeypatch, rank, size)
        shares.append(batches(6 // size))
    for step, expected in enumerate(alone):
        found = {}
        for share in shares:
            found |= dict(zip(share[step]["name"], share[step]["image1"], strict=True))
        assert sorted(found) == sorted(expected["name"])
        for name, image in zip(expected["name"], expected["image1"], strict=True):
            assert torch.equal(found[name], image)
