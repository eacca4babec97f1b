"""Several processes do what one does: losses, shares of the data, messages."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import train
from datasets.augment import TrainTransform
from datasets.classes import SECOND_CLASSES
from datasets.dataset import ChangeDetectionDataset
from datasets.loaders import SameSizeBatches, evaluation_loader, set_epoch, training_loader
from datasets.pairs import index_pairs, split_pairs
from datasets.task import load_classes
from engine.predictor import Predictor
from engine.training import evaluate
from models.change_detector import ModelConfig
from tests.helpers.processes import run_ranks
from tests.helpers.runs import BACKBONE, train_options
from utils.dist import World, join_world
from utils.pictures import save_change_mask

STEPS = 5


# --- losses ---------------------------------------------------------------------------------


def write_losses(rank: int, data: Path, outdir: Path, argv: tuple) -> None:
    """Train two epochs without dropout; the leading process writes the total of each batch."""
    args = train.parse_args(train_options(data, outdir, *argv))
    with join_world("cpu") as world:
        classes = load_classes(data)
        split, pairs, _ = split_pairs(data)
        loader = train.make_train_loader(args, pairs, classes, world)
        description = {"classes": classes.to_dict(), "split": split.to_dict()}
        config = ModelConfig(args.model, args.backbone, args.lightweight, classes.semantic_classes)
        trainer = train.make_trainer(args, config, description, 6, None, world)
        for module in trainer.model.modules():
            if isinstance(module, (nn.Dropout, nn.Dropout2d)):
                module.p = 0.0
        losses = []
        trainer.criterion.register_forward_hook(
            lambda _module, _inputs, terms: losses.append(
                {name: world.mean(value.detach()).item() for name, value in terms.items()}
            )
        )
        for _ in range(2):
            set_epoch(loader, trainer.epoch + 1, trainer.begin_epoch())
            trainer.train_epoch(loader, lambda: None)
            trainer.validated = True
        if world.leads:
            outdir.mkdir(parents=True, exist_ok=True)
            (outdir / "losses.json").write_text(json.dumps(losses))


def losses_of(size: int, data: Path, outdir: Path, *argv: object) -> list[dict[str, float]]:
    run_ranks(size, outdir, write_losses, data, outdir, argv)
    return json.loads((outdir / "losses.json").read_text())


@pytest.mark.parametrize("model", [(), ("--model", "pspnet", "--lightweight")])
def test_losses_of_two_processes_are_those_of_one(model, sample_root, tmp_path):
    found, expected = (
        losses_of(size, sample_root, tmp_path / str(size), *model)[:STEPS] for size in (2, 1)
    )
    assert len(found) == len(expected) == STEPS
    for step, (a, b) in enumerate(zip(found, expected, strict=True)):
        # Adam divides gradients by their own size, so that rounding grows from step to step.
        assert a == pytest.approx(b, rel=1e-5 * 10 ** min(step, 2)), step


@pytest.mark.parametrize("kind", ["binary", "one date"])
def test_two_processes_without_all_semantics(kind, broken_root, tmp_path):
    for split in ("train", "val"):
        shutil.rmtree(broken_root / split / "label2")
        if kind == "binary":
            (broken_root / split / "label1").rename(broken_root / split / "label")
            for path in (broken_root / split / "label").iterdir():
                changed = SECOND_CLASSES.to_index(np.asarray(Image.open(path))) > 0
                save_change_mask(path, changed.astype(np.uint8))
    found, expected = (losses_of(size, broken_root, tmp_path / str(size))[:2] for size in (2, 1))
    terms = {"change", "total"} if kind == "binary" else {"change", "semantic1", "total"}
    for step, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert set(a) == terms and a == pytest.approx(b, rel=1e-5 * 10**step), step


def test_accumulated_losses_of_two_processes_are_those_of_one(sample_root, tmp_path):
    # Batch norm sees one pass at a time; the passes of two processes hold the same pairs together.
    found = losses_of(2, sample_root, tmp_path / "2", "--batch-size", 4, "--accumulate", 2)
    expected = losses_of(1, sample_root, tmp_path / "1", "--batch-size", 4, "--accumulate", 2)
    assert len(found) == len(expected) == 12  # passes
    for a, b in zip(found[:4], expected[:4], strict=True):
        assert a == pytest.approx(b, rel=1e-3)


# --- shares of the data ---------------------------------------------------------------------


def pairs_of(folder: Path, count: int) -> ChangeDetectionDataset:
    return ChangeDetectionDataset(index_pairs(folder)[:count], SECOND_CLASSES)


def write_confusion(rank: int, data: Path, folder: Path, batch_size: int) -> None:
    """Evaluate five pairs; each process writes what it saw, and the scores."""
    with join_world("cpu") as world:
        torch.manual_seed(0)
        from models.change_detector import build_model

        model = build_model(ModelConfig("fcn", BACKBONE)).eval()
        loader = evaluation_loader(
            pairs_of(data / "train", 5), batch_size, 0, False, world.rank, world.size
        )
        seen = []
        metrics = evaluate(
            Predictor([model]), loader, 6, world, lambda names, *_: seen.extend(names)
        )
        (folder / f"seen{rank}.json").write_text(json.dumps([seen, metrics.to_dict()]))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_uneven_shares_have_the_confusion_of_one_process(batch_size, sample_root, tmp_path):
    scores = {}
    for size in (1, 2, 3):
        folder = tmp_path / str(size)
        run_ranks(size, folder, write_confusion, sample_root, folder, batch_size)
        parts = [json.loads((folder / f"seen{r}.json").read_text()) for r in range(size)]
        seen = sorted(name for names, _ in parts for name in names)
        assert seen == [f"{i:05d}" for i in range(5)]  # each pair once
        assert all(found == parts[0][1] for _, found in parts)
        scores[size] = parts[0][1]
    assert scores[2] == scores[1]
    assert scores[3] == scores[1]


def test_every_batch_of_a_process_is_one_of_a_single_process(sample_root):
    dataset = pairs_of(sample_root / "train", 11)
    alone = list(evaluation_loader(dataset, 3, 0, False).batch_sampler)
    for size in (2, 3, 5):
        shares = [
            list(evaluation_loader(dataset, 3, 0, False, rank, size).batch_sampler)
            for rank in range(size)
        ]
        assert sorted(batch for share in shares for batch in share) == sorted(alone)


def test_a_process_without_pairs_is_allowed():
    shares = [list(SameSizeBatches([(8, 8)] * 2, 4, rank=rank, world_size=3)) for rank in range(3)]
    assert shares == [[[0, 1]], [], []]


@pytest.mark.parametrize("skip", [0, 1, 2])
@pytest.mark.parametrize("size", [2, 3])
def test_training_batches_of_all_processes_are_those_of_one(size, skip, sample_root):
    dataset = ChangeDetectionDataset(
        index_pairs(sample_root / "train"), SECOND_CLASSES, TrainTransform(None), seed=3
    )

    def batches(rank: int, world_size: int) -> list[dict]:
        loader = training_loader(dataset, 6 // world_size, 0, 3, False, rank, world_size)
        set_epoch(loader, 2, skip)
        return list(loader)

    alone = batches(0, 1)
    assert len(alone) == 2 - skip
    shares = [batches(rank, size) for rank in range(size)]
    assert all(len(share) == len(alone) for share in shares)
    for step, expected in enumerate(alone):
        images = {
            name: image for name, image in zip(expected["name"], expected["image1"], strict=True)
        }
        found = {}
        for share in shares:
            found |= dict(zip(share[step]["name"], share[step]["image1"], strict=True))
        assert found.keys() == images.keys()
        assert all(torch.equal(found[name], image) for name, image in images.items())


# --- the world ------------------------------------------------------------------------------


def write_world(rank: int, folder: Path) -> None:
    with join_world("cpu") as world:
        found = {
            "sum": world.sum(torch.tensor([rank + 1.0])).item(),
            "mean": world.mean(torch.tensor(float(rank))).item(),
            "any": [world.any(False), world.any(rank == 1), world.any(True)],
            "gather": world.gather({"rank": rank}),
            "leader": world.from_leader(f"from {rank}"),
            "leads": world.leads,
        }
        world.wait()
        (folder / f"{rank}.json").write_text(json.dumps(found))


def test_messages_between_processes(tmp_path):
    run_ranks(3, tmp_path, write_world, tmp_path)
    for rank in range(3):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {
            "sum": 6,
            "mean": 1,
            "any": [False, True, True],
            "gather": [{"rank": 0}, {"rank": 1}, {"rank": 2}],
            "leader": "from 0",
            "leads": rank == 0,
        }


def test_a_world_of_one_sends_nothing(capsys):
    world = World(0, 1, torch.device("cpu"))
    value = torch.tensor([1.0, 2.0])
    assert world.sum(value) is value
    assert world.mean(value) is value
    assert world.any(True) and not world.any(False)
    assert world.gather(3) == [3]
    assert world.from_leader("x") == "x"
    world.wait()
    world.say("hello")
    World(1, 2, torch.device("cpu")).say("not me")
    assert capsys.readouterr().out == "hello\n"
