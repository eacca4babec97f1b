"""Models without classes: heads, losses, scores."""

import json
from pathlib import Path

import pytest
import torch

from datasets.classes import CHANGE_CLASSES
from datasets.dataset import ChangeDetectionDataset
from datasets.loaders import evaluation_loader
from datasets.pairs import index_pairs
from engine.metrics import compute_change_metrics, metrics_from_dict
from engine.predictor import VIEWS, Predictor, decode
from engine.training import evaluate
from models.change_detector import ModelConfig, build_model
from models.checkpoint import open_checkpoint
from models.losses import ChangeCriterion
from models.weights import transfer_weights
from tests.helpers.change_sets import OF_CLASSES, small_model
from tests.helpers.processes import run_ranks
from tests.helpers.runs import BACKBONE
from utils.dist import join_world

# --- model, loss, scores --------------------------------------------------------------------


def test_a_model_without_classes_has_no_semantic_head():
    model = small_model()
    assert not any(name.startswith("semantic_head") for name in model.state_dict())
    images = torch.randint(0, 256, (2, 3, 40, 33), dtype=torch.uint8)
    with torch.no_grad():
        output = model(images.float(), images.float().flip(0))
    assert output.semantic_logits1 is None and output.semantic_logits2 is None
    assert output.change_logits.shape == (2, 40, 33)
    terms = ChangeCriterion(0)(output, None, None, torch.ones(2, 40, 33))
    assert set(terms) == {"change", "total"}
    assert terms["total"] == 2 * terms["change"]


def test_views_and_models_are_averaged():
    models = [small_model(), build_model(ModelConfig("fcn", "test_convnext", num_classes=0)).eval()]
    images = torch.randint(0, 256, (2, 2, 3, 32, 48), dtype=torch.uint8)
    probs = Predictor(models, VIEWS)(*images)
    alone = [Predictor([model], VIEWS)(*images).change_probs for model in models]
    torch.testing.assert_close(probs.change_probs, torch.stack(alone).mean(0))
    (change,) = decode(probs)
    assert change.dtype == torch.uint8
    assert torch.equal(change > 0, probs.change_probs >= 0.5)


def test_the_change_part_alone_goes_from_one_kind_to_the_other(tmp_path):
    binary, semantic = small_model(), small_model(4)
    for source, target, anew in ((binary, semantic, ["semantic_head"]), (semantic, binary, [])):
        path = tmp_path / f"{bool(anew)}.pth"
        torch.save(
            {"format": 1, "config": source.config.to_dict(), "model": source.state_dict()}, path
        )
        model = build_model(target.config)
        assert transfer_weights(model, open_checkpoint(path)) == anew
        for name, value in model.state_dict().items():
            if not name.startswith("semantic_head"):
                assert torch.equal(value, source.state_dict()[name])


def test_scores_equal_their_definitions():
    unchanged, false, missed, found = 50.0, 7.0, 11.0, 32.0
    counts = torch.tensor([[unchanged, false], [missed, found]])
    metrics = compute_change_metrics(counts)
    precision, recall = found / (found + false), found / (found + missed)
    assert metrics.precision == pytest.approx(precision)
    assert metrics.recall == pytest.approx(recall)
    assert (
        metrics.f1 == metrics.rank == pytest.approx(2 * precision * recall / (precision + recall))
    )
    ious = (unchanged / (unchanged + false + missed), found / (found + false + missed))
    assert (metrics.iou_unchanged, metrics.iou_changed) == pytest.approx(ious)
    assert metrics.miou == pytest.approx(sum(ious) / 2)
    assert metrics.oa == pytest.approx(0.82)
    chance = ((57 * 61) + (43 * 39)) / 100**2
    assert metrics.kappa == pytest.approx((0.82 - chance) / (1 - chance))
    assert not any(OF_CLASSES.search(name) for name in metrics.to_dict())
    assert metrics_from_dict(metrics.to_dict()) == metrics
    assert compute_change_metrics(torch.zeros(2, 2)).f1 == 0


# --- processes ------------------------------------------------------------------------------


def write_scores(rank: int, data: Path, folder: Path) -> None:
    with join_world("cpu") as world:
        torch.manual_seed(0)
        model = build_model(ModelConfig("fcn", BACKBONE, num_classes=0)).eval()
        dataset = ChangeDetectionDataset(index_pairs(data / "train")[:3], CHANGE_CLASSES)
        loader = evaluation_loader(dataset, 1, 0, False, world.rank, world.size)
        metrics = evaluate(Predictor([model]), loader, CHANGE_CLASSES.num_classes, world)
        (folder / f"{rank}.json").write_text(json.dumps(metrics.to_dict()))


def test_two_processes_have_the_scores_of_one(binary_root, tmp_path):
    for size in (1, 2):
        run_ranks(size, tmp_path / str(size), write_scores, binary_root, tmp_path / str(size))
    found = [(tmp_path / name).read_text() for name in ("1/0.json", "2/0.json", "2/1.json")]
    assert found[0] == found[1] == found[2]
