import os
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import loaders
from datasets.augment import TrainTransform
from datasets.cache import FileReader
from datasets.classes import SECOND_CLASSES
from datasets.dataset import ChangeDetectionDataset
from datasets.loaders import evaluation_loader, fit_shared_memory, set_epoch, training_loader
from datasets.pairs import index_pairs
from datasets.task import Task
from utils import cli
from utils.errors import DataError

SECOND = Task(SECOND_CLASSES)
KEYS = ("image1", "image2", "label1", "label2", "change_mask")
MIXED = {"a": (40, 56), "b": (64, 64), "c": (40, 56), "d": (50, 70), "e": (64, 64), "f": (40, 56)}


def make_dataset(folder: Path, crop_size: int | None = None, seed: int = 0, train: bool = True):
    transform = TrainTransform(crop_size) if train else None
    return ChangeDetectionDataset(index_pairs(folder), SECOND, transform=transform, seed=seed)


def make_loader(dataset: ChangeDetectionDataset, workers: int = 0, batch_size: int = 5, seed=0):
    dataset.seed = seed
    return training_loader(dataset, batch_size, workers)


def epoch_of(loader, epoch: int = 1) -> list[dict]:
    set_epoch(loader, epoch)
    return list(loader)


def names_of(batches: list[dict]) -> list[str]:
    return [name for batch in batches for name in batch["name"]]


def same(batches1: list[dict], batches2: list[dict]) -> bool:
    return names_of(batches1) == names_of(batches2) and all(
        torch.equal(batch1[key], batch2[key])
        for batch1, batch2 in zip(batches1, batches2, strict=True)
        for key in KEYS
    )


def by_name(batches: list[dict], key: str) -> dict[str, torch.Tensor]:
    values = [value for batch in batches for value in batch[key]]
    return dict(zip(names_of(batches), values, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_loader_over_mixed_sizes(write_pairs, workers):
    dataset = make_dataset(write_pairs(MIXED), train=False)
    loader = evaluation_loader(dataset, batch_size=2, workers=workers)
    batches = list(loader)
    assert [batch["name"] for batch in batches] == [["a", "c"], ["f"], ["b", "e"], ["d"]]
    assert len(loader) == 4
    for batch in batches:
        size = MIXED[batch["name"][0]]
        assert batch["image1"].shape == (len(batch["name"]), 3, *size)
        assert batch["label2"].shape == (len(batch["name"]), *size)
    for key in KEYS:
        for name, value in by_name(batches, key).items():
            assert torch.equal(value, dataset["abcdef".index(name)][key])


def test_training_batches_have_the_documented_form(sample_root):
    batches = epoch_of(make_loader(make_dataset(sample_root / "train")), 1)
    assert len(batches) == 2  # 12 pairs; the last two make no batch of five
    assert len(set(names_of(batches))) == 10
    for batch_size in (12, 13, 200):
        (batch,) = epoch_of(make_loader(make_dataset(sample_root / "train"), 0, batch_size))
        assert sorted(batch["name"]) == [f"{i:05d}" for i in range(12)]
    for batch in batches:
        assert set(batch) == {"name", *KEYS}
        for key in KEYS:
            assert batch[key].dtype == torch.uint8
            assert batch[key].shape == ((5, 3, 64, 64) if key in KEYS[:2] else (5, 64, 64))
        for key in KEYS[:2]:
            assert batch[key].is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch["change_mask"].bool(), batch["label1"] > 0)
        assert torch.equal(batch["change_mask"].bool(), batch["label2"] > 0)


def test_order_follows_from_seed_and_epoch(sample_root):
    dataset = make_dataset(sample_root / "train")
    orders = {
        (seed, epoch): names_of(epoch_of(make_loader(dataset, seed=seed, batch_size=12), epoch))
        for seed in (0, 7)
        for epoch in (1, 2)
    }
    torch.manual_seed(99)  # the order does not depend on what was drawn before
    for (seed, epoch), order in orders.items():
        assert names_of(epoch_of(make_loader(dataset, seed=seed, batch_size=12), epoch)) == order
        assert sorted(order) == [f"{i:05d}" for i in range(12)]
        assert order != sorted(order)
    assert len({tuple(order) for order in orders.values()}) == 4


def test_workers_that_outlive_an_epoch_see_the_next_one(sample_root):
    dataset = make_dataset(sample_root / "train")
    loader = make_loader(dataset, workers=1, batch_size=12)
    assert loader.persistent_workers
    epochs = [epoch_of(loader, epoch) for epoch in (1, 2, 1)]
    images1, images2 = by_name(epochs[0], "image1"), by_name(epochs[1], "image1")
    assert sum(torch.equal(images1[name], images2[name]) for name in images1) < 6
    assert same(epochs[0], epochs[2])
    assert same(epochs[1], epoch_of(make_loader(dataset, batch_size=12), 2))


@pytest.mark.parametrize(("accumulate", "batches"), [(1, 6), (4, 4), (5, 5), (6, 6)])
def test_batches_make_whole_steps(accumulate, batches, sample_root):
    dataset = make_dataset(sample_root / "train", crop_size=16)
    loader = training_loader(dataset, 2, 0, accumulate)
    assert len(loader) == len(epoch_of(loader, 1)) == batches
    set_epoch(loader, 1, batches - 1)
    assert len(list(loader)) == 1


def test_an_epoch_may_take_some_of_the_samples(sample_root):
    dataset = make_dataset(sample_root / "train")
    often, rare = dataset.pairs[0], dataset.pairs[1]
    dataset.pairs += [often] * 24
    loader = training_loader(dataset, 4, 0, draws=12)
    drawn = []
    for epoch in range(30):
        set_epoch(loader, epoch)
        assert len(list(loader.sampler)) == len(loader) * 4 == 12
        drawn += [dataset.pairs[index] for index in loader.sampler]
    assert 15 < drawn.count(often) / drawn.count(rare) < 40
    whole = list(loader.sampler)
    set_epoch(loader, 29, 2)  # as a resumed run
    assert list(loader.sampler) == whole[8:]


@pytest.mark.parametrize(
    ("second", "crop", "size", "remedies"),
    [
        ((64, 64), None, "64 × 64", ("a.png has 56 × 40", "--crop-size")),
        ((56, 40), None, "40 × 56", ("a.png has 56 × 40", "--crop-size")),
        ((33, 48), 34, "48 × 33", ("--crop-size 34", "--crop-size 33 or less")),
    ],
)
def test_sizes_that_make_no_batch_name_the_remedy(second, crop, size, remedies, write_pairs):
    folder = write_pairs({"a": (40, 56), "b": second})
    with pytest.raises(DataError) as caught:
        make_loader(make_dataset(folder, crop))
    message = str(caught.value)
    assert message.startswith(f"{folder / 'im1' / 'b.png'}: {size} pixels")
    assert all(remedy in message for remedy in remedies) and len(message.splitlines()) == 1


def test_sizes_are_read_from_headers_alone(sample_root, tmp_path):
    # Checking a large set must not decode it: headers of cut-off files are enough.
    folder = tmp_path / "train"
    shutil.copytree(sample_root / "train", folder)
    for path in (folder / "im1").iterdir():
        os.truncate(path, 64)
    loader = make_loader(make_dataset(folder))
    with pytest.raises(DataError, match="cannot be decoded"):
        epoch_of(loader, 1)


def test_pseudo_labels_turn_with_the_pair(sample_root, tmp_path):
    # Pseudo masks that repeat the labels must go through the same geometry as the change mask.
    for date in ("1", "2"):
        (tmp_path / f"im{date}").mkdir()
        for path in (sample_root / "train" / f"label{date}").iterdir():
            index = SECOND_CLASSES.to_index(np.asarray(Image.open(path)))
            Image.fromarray(index).save(tmp_path / f"im{date}" / path.name)
    dataset = make_dataset(sample_root / "train")
    expected = epoch_of(make_loader(dataset), 1)
    dataset.pseudo_label_root = tmp_path
    assert same(epoch_of(make_loader(dataset), 1), expected)


class Hanging(FileReader):
    def image(self, path: Path) -> np.ndarray:
        time.sleep(60)


def test_a_reader_that_hangs_is_one_line(sample_root, monkeypatch, capsys):
    monkeypatch.setattr(loaders, "READER_LIMIT_S", 1)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    pairs = index_pairs(sample_root / "train")
    dataset = ChangeDetectionDataset(pairs, SECOND, reader=Hanging(SECOND_CLASSES))
    loader = evaluation_loader(dataset, 2, workers=1)
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: next(iter(loader)))
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("error: reader processes gave no batch (DataLoader timed out after 1 s")
    assert line.count("\n") == 1


@pytest.mark.parametrize(("free_batches", "readers"), [(20, 4), (10, 2), (4, 0)])
def test_only_readers_whose_batches_fit_into_shared_memory(
    free_batches, readers, sample_root, monkeypatch, capsys
):
    loader = evaluation_loader(make_dataset(sample_root / "train", train=False), 4, 4)
    (batch, *_) = evaluation_loader(loader.dataset, 4, 0)
    usage = SimpleNamespace(free=free_batches * sum(batch[key].nbytes for key in KEYS))
    monkeypatch.setattr(loaders.shutil, "disk_usage", lambda _: usage)
    fit_shared_memory(loader)
    assert loader.num_workers == readers
    assert ("--shm-size" in capsys.readouterr().out) == (readers < 4)
    assert sum(len(batch["name"]) for batch in loader) == 12
