"""Checkpoints written before the code moved into engine/ still resume, label and test.

``tests/data/checkpoints`` describes files of that time: every key, name, shape, type and plain
value is theirs, tensors are drawn here. Both runs were ended by a signal after one step of their
second and last epoch, on the data set of the `data` fixture.
"""

import json
from pathlib import Path

import pytest
import torch

import label
import test as predict
import train
from tools import make_sample_data

DESCRIBED = Path(__file__).parents[1] / "data" / "checkpoints"
RUNS = {"fcn": [], "pspnet": ["--bands", "4"]}


def rebuild(value, generator):
    """Turn a description back into what it describes."""
    if isinstance(value, list):
        return [rebuild(item, generator) for item in value]
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(rebuild(value["tuple"], generator))
    if "items" in value:
        return {key: rebuild(item, generator) for key, item in value["items"]}
    if "tensor" not in value:
        return {key: rebuild(item, generator) for key, item in value.items()}
    shape, dtype = value["tensor"], getattr(torch, value["dtype"])
    if dtype == torch.uint8:  # a random state
        return torch.get_rng_state()
    # Positive, as variances and squares must be.
    drawn = 0.01 + 0.02 * torch.rand(shape, generator=generator) if shape else torch.tensor(3.0)
    return drawn.to(dtype)


@pytest.fixture(params=RUNS)
def old(request, tmp_path):
    """Data set and outdir with the best and latest checkpoint of an old run."""
    images = ["--bands", "4", "--bits", "16", "--label-format", "index"]
    sizes = ["--train-pairs", "8", "--val-pairs", "4", "--size", "64"]
    kind = images if request.param == "pspnet" else []
    make_sample_data.main([str(tmp_path / "data"), *sizes, *kind])
    for path in DESCRIBED.glob(f"{request.param}_*.json"):
        described = json.loads(path.read_text(encoding="utf-8"))
        state = rebuild(described["state"], torch.Generator().manual_seed(0))
        file = tmp_path / "out" / "models" / described["file"]
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, file)
    common = ["--data-root", str(tmp_path / "data"), "--outdir", str(tmp_path / "out")]
    return request.param, [*common, "--amp", "off", "--workers", "0"], tmp_path / "out"


def test_an_old_run_resumes(old, capsys):
    model, common, out = old
    options = ["--model", model, "--lightweight", "--backbone", "test_efficientnet"]
    options += ["--epochs", "2", "--batch-size", "4", "--no-tensorboard", "--resume"]
    assert train.main([*common, *options, *RUNS[model]]) is not None
    assert "in epoch 2 of 2, after step 1" in capsys.readouterr().out
    [log] = (out / "logs").glob("*/metrics.csv")
    assert [row.split(",")[0] for row in log.read_text().splitlines()] == ["epoch", "1", "2"]


def test_an_old_checkpoint_labels_and_tests(old):
    _, common, out = old
    [best] = [p for p in (out / "models").glob("*.pth") if "latest" not in p.name]
    coverage = label.main([*common, "--checkpoints", str(best), "--no-tta"])
    assert coverage.labelled.sum() > 0
    assert len(list((out / "masks" / "train" / "im1").glob("*.png"))) == 8
    assert predict.main([*common, "--checkpoints", str(best)]).score is not None
    assert len(list((out / "masks" / "test" / "im2").glob("*.png"))) == 4
