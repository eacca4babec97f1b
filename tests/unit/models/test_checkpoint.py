import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from engine.ensemble import (
    check_classes,
    describe,
    describe_all,
    find_best_checkpoints,
    open_ensemble,
)
from engine.run import RunFiles
from models.change_detector import ModelConfig, build_model
from models.checkpoint import Checkpoint, load_model, open_checkpoint
from models.weights import transfer_weights
from utils.errors import CheckpointError, UserError
from utils.tensor_files import read_checkpoint, read_state_dict, save_checkpoint

CLASSES = {"names": ["unchanged", "water", "forest"], "colors": [[255] * 3, [0] * 3, [0, 255, 0]]}


def small_config(**changes) -> ModelConfig:
    return ModelConfig(**{"model": "fcn", "backbone": "test_convnext", "num_classes": 2, **changes})


def write_model(path: Path, run: str = "a", score: float = 0.5, **changes) -> torch.nn.Module:
    config = small_config(**changes)
    model = build_model(config)
    state = {
        "config": config.to_dict(),
        "model": model.state_dict(),
        "classes": CLASSES,
        "run": run,
        "epoch": 7,
        "metrics": {"score": score},
    }
    save_checkpoint(path, state)
    return model


def equal(tensors: dict, others: dict) -> bool:
    return tensors.keys() == others.keys() and all(
        torch.equal(value, others[name]) for name, value in tensors.items()
    )


def test_round_trip(tmp_path):
    state = {
        "model": {"w": torch.randn(2, 3), "n": torch.tensor(4)},
        "names": ["a", "b"],
        "epoch": 3,
        "best": None,
        "score": 0.25,
        "nested": {"list": [1, 2.5, "x", True]},
    }
    save_checkpoint(tmp_path / "new" / "folder" / "a.pth", state)
    loaded = read_checkpoint(tmp_path / "new" / "folder" / "a.pth")
    assert equal(loaded.pop("model"), state.pop("model"))
    assert loaded.pop("format") == 1
    assert loaded == state


def test_failed_save_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    save_checkpoint(path, {"model": {"w": torch.ones(3)}})

    def fail(state, file):
        Path(file).write_bytes(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(UserError, match=r"cannot write .*a\.pth: No space left"):
        save_checkpoint(path, {"model": {"w": torch.zeros(3)}})
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]
    assert torch.equal(read_state_dict(path)["w"], torch.ones(3))


def test_interrupted_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    save_checkpoint(path, {"model": {"w": torch.ones(3)}})

    def interrupt(state, file):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, {"model": {"w": torch.zeros(3)}})
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]
    assert torch.equal(read_state_dict(path)["w"], torch.ones(3))


def test_model_rebuilds_itself(tmp_path):
    model = write_model(tmp_path / "a.pth").eval()
    loaded = load_model(tmp_path / "a.pth")
    assert not loaded.training
    assert loaded.config == model.config
    assert equal(loaded.state_dict(), model.state_dict())
    checkpoint = open_checkpoint(str(tmp_path / "a.pth"))
    assert checkpoint.info["classes"] == CLASSES
    assert checkpoint.info["epoch"] == 7


def test_configuration_that_does_not_fit_the_tensors(tmp_path):
    model = build_model(small_config())
    state = {"config": small_config(num_classes=5).to_dict(), "model": model.state_dict()}
    save_checkpoint(tmp_path / "a.pth", state)
    with pytest.raises(CheckpointError, match=r"a\.pth: does not fit .*num_classes=5"):
        load_model(tmp_path / "a.pth")


def test_configuration_with_an_unknown_entry(tmp_path):
    state = {"config": {**small_config().to_dict(), "dropout": 1}, "model": {"w": torch.ones(1)}}
    save_checkpoint(tmp_path / "a.pth", state)
    with pytest.raises(CheckpointError, match=r"a\.pth"):
        open_checkpoint(tmp_path / "a.pth")


class _Attack:
    def __init__(self, path: Path) -> None:
        self.command = f"touch {path}"

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))])
def test_code_is_refused_and_does_not_run(write, tmp_path):
    trace = tmp_path / "it_ran"
    write({"model": _Attack(trace)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: refused"):
        read_checkpoint(tmp_path / "a.pth")
    assert not trace.exists()


def test_whole_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: refused"):
        read_checkpoint(tmp_path / "a.pth")


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def without_directory(content: bytes) -> bytes:
    return content[:-30]


def with_zeros(content: bytes) -> bytes:
    return content[:200] + bytes(400) + content[600:]


@pytest.mark.parametrize("damage", [cut, without_directory, with_zeros, lambda content: b""])
def test_damaged_file(damage, tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(path, {"model": {"w": torch.randn(100)}, "note": "x" * 300})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"a\.pth: damaged or no torch checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "content",
    [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        b"<!DOCTYPE html><html><body>Sign in</body></html>",
        b"hello",
        bytes(range(256)),
        b"\x80\x02}q\x00.",
        b"\x80\x02K\x01.",
        bytes(1000),
    ],
    ids=["git-lfs", "html", "text", "bytes", "empty-dict", "number", "zeros"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_file_of_another_kind(content, suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"a\{suffix}: damaged or no torch checkpoint"):
        read_checkpoint(path)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(CheckpointError, match="no such checkpoint"):
            read_checkpoint(path)


def test_tensor_alone_is_no_state_dict(tmp_path):
    torch.save(torch.ones(3), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="holds a Tensor, not a state dict"):
        read_checkpoint(tmp_path / "a.pth")


def test_no_tensors(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="no tensors in it"):
        read_state_dict(tmp_path / "a.pth")


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappers_and_prefixes_are_removed(wrapper, prefix, tmp_path):
    tensors = {f"{prefix}conv.weight": torch.ones(2)}
    torch.save({wrapper: tensors} if wrapper else tensors, tmp_path / "a.pth")
    assert equal(read_state_dict(tmp_path / "a.pth"), {"conv.weight": torch.ones(2)})


def test_safetensors(tmp_path):
    tensors = {"w": torch.randn(3, 4)}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    assert equal(read_state_dict(tmp_path / "a.safetensors"), tensors)


def test_backbone_weights_are_no_model(tmp_path):
    torch.save({"conv1.weight": torch.ones(3)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="use --pretrained for backbone weights"):
        open_checkpoint(tmp_path / "a.pth")


def test_a_run_keeps_one_best_and_leaves_others_alone(tmp_path):
    first, second = RunFiles(tmp_path, "fcn_x"), RunFiles(tmp_path, "fcn_x")
    state = {"model": {"w": torch.ones(1)}}
    first.save_best(state, 0.25)
    second.save_best(state, 0.25)
    assert names(tmp_path) == ["fcn_x_25.00-2.pth", "fcn_x_25.00.pth"]
    second.save_best(state, 0.31234)
    assert names(tmp_path) == ["fcn_x_25.00.pth", "fcn_x_31.23.pth"]
    second.save_best(state, 0.31235)
    assert len(names(tmp_path)) == 2
    assert second.best.exists() and first.best.exists()
    second.save_latest(state)
    assert second.latest == tmp_path / "fcn_x_latest.pth"
    assert second.latest.exists()


def test_older_best_goes_only_after_the_newer_is_written(tmp_path, monkeypatch):
    files = RunFiles(tmp_path, "fcn_x")
    files.save_best({"model": {"w": torch.ones(1)}}, 0.25)

    def fail(state, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(UserError):
        files.save_best({"model": {"w": torch.ones(1)}}, 0.5)
    assert names(tmp_path) == ["fcn_x_25.00.pth"]
    assert files.best == tmp_path / "fcn_x_25.00.pth"


def best_of(run: str, epoch: int) -> dict:
    return {"model": {"w": torch.full((1,), float(epoch))}, "run": run, "epoch": epoch}


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize("older", ["there", "removed", "none"])
def test_a_best_that_the_latest_does_not_know_does_not_stay(older, validated, tmp_path):
    files = RunFiles(tmp_path, "fcn_x")
    if older != "none":
        files.save_best(best_of("a", 1), 0.25)
    # Saved after epoch 1, or within epoch 2.
    training = {"epoch": 1 if validated else 2, "validated": validated}
    files.save_latest({**best_of("a", 1), "training": training})
    files.save_best(best_of("a", 2), 0.5)  # and the run is killed
    if older == "there":
        RunFiles(tmp_path, "fcn_x").save_best(best_of("a", 1), 0.25)
    others = RunFiles(tmp_path, "fcn_x"), RunFiles(tmp_path, "fcn_x")
    others[0].save_best(best_of("b", 2), 0.5)
    others[1].save_best(best_of("a", 5), 0.75)  # the run went on, and is resumed from an old copy
    (tmp_path / "fcn_x_1.pth").write_bytes(b"half")
    kept = {"fcn_x_latest.pth", "fcn_x_1.pth", *(other.best.name for other in others)}

    saved = read_checkpoint(files.latest)
    resumed = RunFiles(tmp_path, "fcn_x")
    resumed.best = tmp_path / saved["best_file"] if saved["best_file"] else None
    everything = names(tmp_path)
    resumed.settle_interrupted_save(saved, resume=str(tmp_path / "an_older_copy.pth"))
    assert names(tmp_path) == everything
    resumed.settle_interrupted_save(saved, resume="auto")
    own = set(names(tmp_path)) - kept
    assert own == {"fcn_x_25.00.pth" if older == "there" else "fcn_x_50.00.pth"}
    assert resumed.best == tmp_path / own.pop()
    resumed.save_best(best_of("a", 2), 0.5)
    assert set(names(tmp_path)) - kept == {"fcn_x_50.00.pth"}
    resumed.save_best(best_of("a", 3), 0.6)
    assert set(names(tmp_path)) - kept == {"fcn_x_60.00.pth"}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_best_of_every_run_forms_the_ensemble(tmp_path):
    write_model(tmp_path / "x_10.00.pth", run="a", score=0.10)
    write_model(tmp_path / "x_30.00.pth", run="a", score=0.30)  # a killed run left two
    write_model(tmp_path / "y_20.00.pth", run="b", score=0.20)
    write_model(tmp_path / "y_latest.pth", run="b", score=0.40)
    write_model(tmp_path / "z_-1.00.pth", run="c", score=-0.01)
    (tmp_path / ".x_40.00.pth.abc.tmp").write_bytes(b"half")
    found = find_best_checkpoints(tmp_path)
    names = [checkpoint.path.name for checkpoint in found]
    assert names == ["x_30.00.pth", "y_20.00.pth", "z_-1.00.pth"]


def test_no_checkpoints_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoints in it; train a model first"):
        find_best_checkpoints(tmp_path / "models")


def test_other_classes_are_refused(tmp_path):
    write_model(tmp_path / "a.pth")
    assert len(open_ensemble([tmp_path / "a.pth"] * 2, CLASSES)) == 2
    renamed = {**CLASSES, "names": ["unchanged", "forest", "water"]}
    with pytest.raises(CheckpointError, match=r"a\.pth: trained on the classes unchanged, water"):
        open_ensemble([tmp_path / "a.pth"], renamed)


def test_foreign_checkpoint_must_predict_as_many_classes(tmp_path):
    write_model(tmp_path / "a.pth")
    foreign = open_checkpoint(tmp_path / "a.pth")._replace(info={})
    check_classes(foreign, CLASSES)
    with pytest.raises(CheckpointError, match="predicts 2 classes, the data set has 3"):
        check_classes(foreign, {"names": ["unchanged", "a", "b", "c"]})


def test_description_of_a_checkpoint(tmp_path):
    write_model(tmp_path / "a.pth", score=0.3874, lightweight=True)
    text = describe(open_checkpoint(tmp_path / "a.pth"))
    assert text.endswith("a.pth  (fcn test_convnext lightweight, epoch 7, Score 38.74)")


def test_scores_on_other_pairs_are_not_listed_without_saying_so(tmp_path):
    write_model(tmp_path / "a.pth", score=0.3874)
    opened = open_checkpoint(tmp_path / "a.pth")

    def validated_on(protocol: str, name: str) -> Checkpoint:
        split = {"protocol": protocol, "train": [], "val": [name]}
        return opened._replace(info={**opened.info, "split": split})

    same, foreign = validated_on("folders", "val/1"), opened._replace(info={})
    other = validated_on("k-fold(k=5, fold=0, seed=0)", "train/1")
    lines = describe_all([same, foreign, same]).splitlines()
    assert len(lines) == 3 and "Score 38.74 on split folders)" in lines[0]
    lines = describe_all([same, other]).splitlines()
    assert lines[1].endswith("Score 38.74 on split k-fold(k=5, fold=0, seed=0))")
    assert "different validation pairs" in lines[2]


def test_transfer_copies_all_but_a_classifier_of_other_classes(tmp_path):
    trained = write_model(tmp_path / "a.pth")
    checkpoint = open_checkpoint(tmp_path / "a.pth")
    same = build_model(small_config())
    assert transfer_weights(same, checkpoint) == []
    assert equal(same.state_dict(), trained.state_dict())
    other = build_model(small_config(num_classes=4))
    assert transfer_weights(other, checkpoint) == ["semantic_head.head.4"]
    tensors = trained.state_dict()
    for name, value in other.state_dict().items():
        assert name.startswith("semantic_head.head.4.") or torch.equal(value, tensors[name])


@pytest.mark.parametrize("change", [{"model": "pspnet"}, {"lightweight": True}])
def test_transfer_between_architectures_is_refused(change, tmp_path):
    write_model(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=next(iter(change))):
        transfer_weights(build_model(small_config(**change)), open_checkpoint(tmp_path / "a.pth"))
