import copy
import random
import zipfile

import pytest
import safetensors.torch
import torch

from models.change_detector import build_model
from models.checkpoint import ABSENT, load_model, open_checkpoint
from models.weights import transfer_weights
from tests.helpers.checkpoints import latest_state, small_config, write_model
from utils.errors import CheckpointError
from utils.tensor_files import read_checkpoint, read_state_dict, save_checkpoint


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
        "nested": {"list": [1, 2.5, "x", True]},
    }
    save_checkpoint(tmp_path / "new" / "folder" / "a.pth", state)
    loaded = read_checkpoint(tmp_path / "new" / "folder" / "a.pth")
    assert equal(loaded.pop("model"), state.pop("model"))
    assert loaded.pop("format") == 1
    assert loaded == state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 5}, "does not fit fcn of test_convnext for 5 classes: "),
        ({"backbone": "resnet_18"}, "timm has no such model"),
        ({"model": "unet"}, "unknown model 'unet'"),
    ],
)
def test_configuration_that_does_not_fit_the_tensors(change, message, tmp_path):
    model = build_model(small_config())
    state = {"config": small_config(**change).to_dict(), "model": model.state_dict()}
    save_checkpoint(tmp_path / "a.pth", state)
    with pytest.raises(CheckpointError, match=rf"a\.pth: .*{message}") as caught:
        load_model(tmp_path / "a.pth")
    assert "\n" not in str(caught.value)


def places(tree: object, path: tuple = ()) -> list[tuple]:
    """The way to every key and index of a tree."""
    if not isinstance(tree, dict | list):
        return []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return [way for k, value in items for way in [(*path, k), *places(value, (*path, k))]]


def changed(state: dict, place: tuple, value: object) -> dict:
    """A copy with another value in one place, or none where it is ABSENT."""
    state = part = copy.deepcopy(state)
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    if value is ABSENT:
        del part[place[-1]]
    return state


def test_all_that_is_written_is_taken(tmp_path):
    state = latest_state()
    save_checkpoint(tmp_path / "a.pth", state)
    checkpoint = open_checkpoint(tmp_path / "a.pth")
    assert checkpoint.info.keys() == state.keys() - {"config", "model"}
    for key in (
        "training",
        "options",
        "best_file",
        "labelled_dates",
        "decoding",
    ):  # a best file of old
        del state[key]
    del state["config"]["imagery"]
    save_checkpoint(tmp_path / "a.pth", state)
    assert open_checkpoint(tmp_path / "a.pth").config == checkpoint.config


@pytest.mark.parametrize(
    "place",
    [
        *(("config",), ("config", "model"), ("config", "imagery", "bands", "bits"), ("model",)),
        *(("classes",), ("classes", "names"), ("split", "train"), ("split", "protocol"), ("run",)),
        *(("metrics",), ("epoch",), ("options",), ("best_file",), ("training", "step")),
        *(("training", "losses", "sums"), ("training", "rng"), ("training", "best")),
    ],
    ids=str,
)
def test_what_is_missing_or_of_another_type_is_named(place, tmp_path):
    for value in (ABSENT, torch.ones(2), -1.5):
        save_checkpoint(tmp_path / "a.pth", changed(latest_state(), place, value))
        with pytest.raises(CheckpointError, match=rf"a\.pth: .*{place[0]}") as caught:
            open_checkpoint(tmp_path / "a.pth")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "both"},
        {"evidence": 1.5},
        {"threshold": "x"},
        {"same_class": -0.1},
        {"evidence": None},
    ],
    ids=str,
)
def test_a_decoding_that_cannot_be_is_refused(change, tmp_path):
    state = latest_state()
    state["decoding"] |= change
    save_checkpoint(tmp_path / "a.pth", state)
    with pytest.raises(
        CheckpointError, match=rf"a\.pth: .*decoding\.{next(iter(change))} is missing"
    ):
        open_checkpoint(tmp_path / "a.pth")


def test_no_change_of_a_value_ends_in_a_traceback(tmp_path):
    rng = random.Random(0)
    state = latest_state() | {"format": 1, "model": {"w": torch.ones(1)}}
    values = (None, -1, 2**70, 0.5, "x", [], {}, [None], {"x": 1}, True, torch.ones(1), [[1]])
    for place in places(state):
        torch.save(changed(state, place, rng.choice(values)), tmp_path / "a.pth")
        read = load_model if place[0] in ("config", "model") else open_checkpoint
        try:
            read(tmp_path / "a.pth")
        except CheckpointError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["../a.pth", "..", ".", "", "a/b", ".hidden", "a\0", "x" * 300, 3])
@pytest.mark.parametrize("key", ["run", "best_file"])
def test_names_are_plain_file_names(key, name, tmp_path):
    save_checkpoint(tmp_path / "a.pth", latest_state() | {key: name})
    with pytest.raises(CheckpointError, match=rf"a\.pth: .*\({key} is missing or no such value\)"):
        open_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-30],  # the archive's directory
        lambda content: content[:200] + bytes(400) + content[600:],
        lambda content: b"",
        lambda content: content.replace(bytes(range(100, 200)), b"\xff" + bytes(range(101, 200))),
    ],
    ids=["half", "directory", "zeros", "empty", "bit"],
)
def test_damaged_file(damage, tmp_path):
    path = tmp_path / "a.pth"
    values = torch.arange(100, 200, dtype=torch.uint8)
    save_checkpoint(path, {"model": {"w": values}, "note": "x" * 300})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"a\.pth: damaged or no torch checkpoint"):
        read_checkpoint(path)


def test_files_without_an_archive_are_read(tmp_path):
    tensors = {"w": torch.randn(3)}
    torch.save(tensors, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(tmp_path / "a.pth")
    assert equal(read_state_dict(tmp_path / "a.pth"), tensors)
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    assert equal(read_state_dict(tmp_path / "a.safetensors"), tensors)


@pytest.mark.parametrize(
    "content",
    [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        b"<!DOCTYPE html><html><body>Sign in</body></html>",
        bytes(range(256)),
        b"\x80\x02}q\x00.",
        b"\x80\x02K\x01.",
        bytes(1000),
    ],
    ids=["git-lfs", "html", "bytes", "empty-dict", "number", "zeros"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_file_of_another_kind(content, suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"a\{suffix}: damaged or no torch checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["none.pth", ".", "x" * 300, "a\0b"])
def test_missing_file_and_impossible_name(name, tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (torch.ones(3), "holds a Tensor, not a state dict"),
        ({"epoch": 3}, "no tensors in it"),
        ({"conv1.weight": torch.ones(3)}, "use --pretrained for backbone weights"),
    ],
)
def test_files_that_hold_no_model(state, message, tmp_path):
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["", "module.", "module.module.", "_orig_mod.module."])
def test_wrappers_and_prefixes_are_removed(wrapper, prefix, tmp_path):
    tensors = {f"{prefix}conv.weight": torch.ones(2)}
    torch.save({wrapper: tensors} if wrapper else tensors, tmp_path / "a.pth")
    assert equal(read_state_dict(tmp_path / "a.pth"), {"conv.weight": torch.ones(2)})


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


@pytest.mark.parametrize("change", [torch.Tensor.to_sparse, lambda t: t.to("meta")])
def test_tensors_without_plain_values_are_named(change, tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"model": {"a.weight": change(torch.zeros(2, 3))}}, path)
    with pytest.raises(CheckpointError, match=rf"^{path}: a\.weight is sparse, quantised or"):
        read_state_dict(path)


def test_a_file_that_cannot_be_read_is_not_called_damaged():
    with pytest.raises(CheckpointError, match=r"^/proc/self/mem: cannot be read \(Input/output"):
        read_checkpoint("/proc/self/mem")
