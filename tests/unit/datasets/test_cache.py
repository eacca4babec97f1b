"""Decoded files kept: the same samples, another cache for other data, nothing left behind."""

import atexit
import os
import shutil
import signal
import socket
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import cache
from datasets.augment import TrainTransform
from datasets.bands import Bands
from datasets.cache import CachedReader, FileReader, build_cache, cache_folder, make_reader
from datasets.classes import SECOND_CLASSES, ClassList
from datasets.dataset import ChangeDetectionDataset
from datasets.loaders import training_loader
from datasets.pairs import index_pairs
from datasets.task import Task
from tests.helpers.processes import Child, ended, eventually
from utils.errors import DataError, OptionError
from utils.pictures import save_mask

SECOND = Task(SECOND_CLASSES)
KEYS = ("image1", "image2", "label1", "label2", "change_mask")


@pytest.fixture(scope="module")
def pairs(sample_root):
    return index_pairs(sample_root / "train")


def make_dataset(pairs, reader=None, **options) -> ChangeDetectionDataset:
    return ChangeDetectionDataset(pairs, SECOND, reader=reader, **options)


def samples_of(dataset: ChangeDetectionDataset) -> list[dict]:
    return [dataset[index] for index in range(len(dataset))]


def assert_same(samples: list[dict], expected: list[dict]) -> None:
    for one, other in zip(samples, expected, strict=True):
        assert one["name"] == other["name"] and one.keys() == other.keys()
        for key in KEYS:
            assert one[key].dtype == other[key].dtype
            assert torch.equal(one[key], other[key]), key


def caches(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.bin"))


@pytest.fixture
def forbid_decoding(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a file was decoded")

    return lambda: monkeypatch.setattr(Image, "open", refuse)


@pytest.mark.parametrize("mode", ["disk", "ram"])
@pytest.mark.parametrize("transform", [None, TrainTransform(), TrainTransform(48)])
def test_samples_are_those_without_cache(pairs, mode, transform, tmp_path, forbid_decoding):
    expected = samples_of(make_dataset(pairs, transform=transform, seed=3))
    folder = cache_folder(mode, tmp_path)
    try:
        reader = build_cache(pairs, SECOND_CLASSES, folder)
        forbid_decoding()
        dataset = make_dataset(pairs, reader, transform=transform, seed=3)
        for _ in range(2):
            assert_same(samples_of(dataset), expected)
    finally:
        shutil.rmtree(folder)


def test_the_mode_chooses_the_reader(pairs, tmp_path, forbid_decoding):
    assert isinstance(make_reader("off", tmp_path, pairs, SECOND), FileReader)
    make_reader("disk", tmp_path, pairs, SECOND)
    forbid_decoding()  # by a second run
    reader = make_reader("disk", tmp_path, pairs, SECOND)
    assert reader.image(pairs[0].image1)[0].shape == (64, 64, 3)
    assert len(caches(tmp_path / "cache")) == 1


def test_mixed_sizes_grey_images_and_pairs_without_labels(
    write_pairs, unlabelled_val_root, tmp_path
):
    folder = write_pairs({"a": (40, 56), "b": (33, 64)})
    Image.open(folder / "im1" / "a.png").convert("L").save(folder / "im1" / "a.png")
    pairs = index_pairs(folder)
    cached = make_dataset(pairs, build_cache(pairs, SECOND_CLASSES, tmp_path / "cache"))
    assert_same(samples_of(cached), samples_of(make_dataset(pairs)))
    pairs = index_pairs(unlabelled_val_root / "val")
    reader = build_cache(pairs, SECOND_CLASSES, tmp_path / "cache")
    image = pairs[3].image2
    assert np.array_equal(reader.image(image)[0], FileReader(SECOND_CLASSES).image(image)[0])


def test_the_key_follows_files_classes_and_pairs(broken_root, tmp_path):
    pairs = index_pairs(broken_root / "train")
    path, state = pairs[3].label2, pairs[3].label2.stat()

    def build(pairs: list = pairs, classes: ClassList = SECOND_CLASSES) -> int:
        build_cache(pairs, classes, tmp_path)
        return len(caches(tmp_path))

    assert [build(), build()] == [1, 1]
    with open(path, "ab") as file:
        file.write(b"\0")  # behind the end of a PNG nobody reads
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert build() == 2
    path.write_bytes(path.read_bytes())  # as an archive does that sets one time for all
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert build() == 3
    names = (*SECOND_CLASSES.names[:-1], "sports")
    assert build(classes=ClassList(names, SECOND_CLASSES.colors)) == 4
    assert build(pairs[1:]) == 5


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, path.stat().st_size // 2),
        lambda path: path.with_suffix(".json").unlink(),
        lambda path: path.with_suffix(".json").write_text(""),
        lambda path: path.with_suffix(".json").write_text('{"entries": {}}'),
        Path.unlink,
    ],
)
def test_a_damaged_cache_is_built_again(damage, pairs, tmp_path):
    build_cache(pairs, SECOND_CLASSES, tmp_path)
    damage(caches(tmp_path)[0])
    cached = make_dataset(pairs, build_cache(pairs, SECOND_CLASSES, tmp_path))
    assert_same(samples_of(cached), samples_of(make_dataset(pairs)))


def test_a_failed_build_leaves_nothing(broken_root, tmp_path):
    pairs = index_pairs(broken_root / "train")
    path = pairs[5].label1
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=f"{path}: cannot be decoded"):
        build_cache(pairs, SECOND_CLASSES, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    path.unlink()
    with pytest.raises(OptionError, match=f"{path}: cannot be cached"):
        build_cache(pairs, SECOND_CLASSES, tmp_path / "cache")


def test_too_little_room_is_noticed_before_decoding(pairs, tmp_path, monkeypatch):
    needed = len(pairs) * 64 * 64 * (3 + 3 + 1 + 1)
    free = [needed]
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, *free))
    build_cache(pairs, SECOND_CLASSES, tmp_path / "fits")
    assert caches(tmp_path / "fits")[0].stat().st_size == needed
    free[0] = needed - 1
    with pytest.raises(OptionError, match=r"--cache: .*free, the decoded data set needs 0.0 GB"):
        build_cache(pairs, SECOND_CLASSES, tmp_path / "full")
    assert caches(tmp_path / "full") == []


def write_pseudo_masks(root: Path, pairs: list, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for date in ("im1", "im2"):
        for pair in pairs:
            mask = rng.integers(1, 7, (64, 64), dtype=np.uint8)
            save_mask(root / date / f"{pair.name}.png", mask, SECOND_CLASSES.colors)


def test_pseudo_masks_are_cached_for_runs_of_any_bands(pairs, tmp_path, forbid_decoding):
    root, folder = tmp_path / "masks", tmp_path / "cache"
    write_pseudo_masks(root, pairs)
    expected = samples_of(make_dataset(pairs, pseudo_label_root=root))
    assert all(sample["label1"].min() > 0 for sample in expected)  # not the ground truth
    reader = build_cache(pairs, SECOND_CLASSES, folder, Path(root), Bands((2, 1)))
    assert reader.image(pairs[0].image1)[0].shape[-1] == 2
    masks = set(folder.glob("pseudo-*"))
    reader = build_cache(pairs, SECOND_CLASSES, folder, root)
    forbid_decoding()
    assert_same(samples_of(make_dataset(pairs, reader, pseudo_label_root=root)), expected)
    assert set(folder.glob("pseudo-*")) == masks and len(caches(folder)) == 3


def test_a_new_round_decodes_the_masks_alone(pairs, tmp_path, monkeypatch):
    root, folder = tmp_path / "masks", tmp_path / "cache"
    build_cache(pairs, SECOND_CLASSES, folder)  # of the teachers
    write_pseudo_masks(root, pairs)
    build_cache(pairs, SECOND_CLASSES, folder, root)
    first = set(folder.iterdir())
    build_cache(pairs[1:], SECOND_CLASSES, folder, root)  # of other pairs, which are another fold
    fold = set(folder.iterdir()) - first
    write_pseudo_masks(root, pairs, seed=1)
    build_cache(pairs, SECOND_CLASSES, folder, root)
    assert first <= set(folder.iterdir())  # young, so that another machine may be using them
    second = set(folder.iterdir()) - first - fold
    for path in (*first, *second):
        os.utime(path, (0, 0))
    write_pseudo_masks(root, pairs, seed=2)
    expected = samples_of(make_dataset(pairs, pseudo_label_root=root))
    decoded, open_file = [], Image.open

    def opened(path, *arguments, **options):
        decoded.append(Path(path))
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(Image, "open", opened)
    reader = build_cache(pairs, SECOND_CLASSES, folder, root)
    assert decoded and all(root in path.parents for path in decoded)
    assert_same(samples_of(make_dataset(pairs, reader, pseudo_label_root=root)), expected)
    # Masks of old rounds are gone, the teachers' cache and those of other pairs are not.
    assert len(caches(folder)) == 4
    assert len(first - set(folder.iterdir())) == 2
    assert not second & set(folder.iterdir())
    assert fold <= set(folder.iterdir())


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_share_the_cache(workers, pairs, tmp_path):
    reader = build_cache(pairs, SECOND_CLASSES, tmp_path)
    cached, plain = (
        list(training_loader(make_dataset(pairs, r, transform=TrainTransform()), 4, workers))
        for r in (reader, None)
    )
    assert_same(cached, plain)


def test_writing_into_a_sample_changes_no_file(pairs, tmp_path):
    reader = build_cache(pairs, SECOND_CLASSES, tmp_path)
    path = caches(tmp_path)[0]
    path.chmod(0o444)
    before = path.read_bytes()
    reader.image(pairs[0].image1)[0][:] = 0
    reader.label(pairs[0].label1)[:] = 9
    make_dataset(pairs, reader)[1]["image1"].zero_()
    assert path.read_bytes() == before
    fresh, files = CachedReader(path), FileReader(SECOND_CLASSES)
    assert np.array_equal(fresh.image(pairs[0].image1)[0], files.image(pairs[0].image1)[0])
    assert np.array_equal(fresh.label(pairs[0].label1), files.label(pairs[0].label1))


@pytest.fixture
def memory(tmp_path, monkeypatch) -> Path:
    """A folder that stands for the shared memory."""
    folder = tmp_path / "memory"
    folder.mkdir()
    monkeypatch.setattr(cache, "SHARED_MEMORY", folder)
    return folder


def hold(memory: Path) -> None:
    """Take a folder as a program does, and stay."""
    cache.SHARED_MEMORY = memory
    (cache_folder("ram", memory) / "decoded.bin").write_bytes(b"0" * 1000)
    time.sleep(300)


def test_the_folder_of_a_killed_program_goes_and_that_of_a_running_one_stays(memory, tmp_path):
    for other in ("other", f"scd-cache-{socket.gethostname()}x-{2**22 + 1}-a"):
        (memory / other).mkdir()
    foreign = set(memory.iterdir())
    with ended(Child(tmp_path / "printed", hold, memory)) as child:
        eventually(lambda: list(memory.glob("*/decoded.bin")))
        (held,) = set(memory.iterdir()) - foreign
        own = cache_folder("ram", tmp_path)
        assert set(memory.iterdir()) == {held, own, *foreign}
        child.send(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert (held / "decoded.bin").exists()
        other = cache_folder("ram", tmp_path)
        assert set(memory.iterdir()) == {own, other, *foreign}


def test_a_program_that_ends_removes_its_folder(memory, tmp_path, monkeypatch):
    at_exit = []
    monkeypatch.setattr(
        atexit, "register", lambda *call, **kw: at_exit.append(partial(*call, **kw))
    )
    (folder,) = {cache_folder("ram", tmp_path), *memory.iterdir()}
    (folder / "decoded.bin").write_bytes(b"0")
    for call in at_exit:
        call()
    assert list(memory.iterdir()) == []
