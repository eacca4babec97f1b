import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.augment import TrainTransform
from datasets.bands import Bands
from datasets.cache import CachedReader, FileReader, build_cache, cache_folder
from datasets.classes import SECOND_CLASSES, ClassList
from datasets.dataset import ChangeDetectionDataset
from datasets.loaders import training_loader
from datasets.pairs import index_pairs
from utils.errors import DataError, OptionError
from utils.pictures import save_mask

KEYS = ("image1", "image2", "label1", "label2", "change_mask")


@pytest.fixture(scope="module")
def pairs(sample_root):
    return index_pairs(sample_root / "train")


def make_dataset(pairs, reader=None, **options) -> ChangeDetectionDataset:
    return ChangeDetectionDataset(pairs, SECOND_CLASSES, reader=reader, **options)


def assert_same(sample: dict, expected: dict) -> None:
    assert sample["name"] == expected["name"]
    assert sample.keys() == expected.keys()
    for key in KEYS:
        assert sample[key].dtype == expected[key].dtype
        assert torch.equal(sample[key], expected[key]), key


def caches(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.bin"))


@pytest.fixture
def forbid_decoding(monkeypatch):
    def forbid():
        def refuse(*args, **kwargs):
            raise AssertionError("a file was decoded")

        monkeypatch.setattr(Image, "open", refuse)

    return forbid


@pytest.mark.parametrize("mode", ["disk", "ram"])
@pytest.mark.parametrize("transform", [None, TrainTransform(), TrainTransform(48)])
def test_samples_are_those_without_cache(pairs, mode, transform, tmp_path, forbid_decoding):
    expected_set = make_dataset(pairs, transform=transform, seed=3)
    expected = [expected_set[i] for i in range(len(pairs))]
    folder = cache_folder(mode, tmp_path)
    try:
        dataset = make_dataset(
            pairs, build_cache(pairs, SECOND_CLASSES, folder), transform=transform, seed=3
        )
        forbid_decoding()
        for _ in range(2):
            for i, sample in enumerate(expected):
                assert_same(dataset[i], sample)
    finally:
        shutil.rmtree(folder)


def test_disk_lies_in_the_output_folder_and_ram_does_not(tmp_path):
    assert cache_folder("disk", tmp_path) == tmp_path / "cache"
    folder = cache_folder("ram", tmp_path)
    assert folder.is_dir() and tmp_path not in folder.parents
    assert cache_folder("ram", tmp_path) != folder


def test_a_second_run_decodes_nothing(pairs, tmp_path, forbid_decoding):
    build_cache(pairs, SECOND_CLASSES, tmp_path)
    forbid_decoding()
    reader = build_cache(pairs, SECOND_CLASSES, tmp_path)
    assert reader.image(pairs[0].image1).shape == (64, 64, 3)
    assert len(caches(tmp_path)) == 1


def test_pairs_without_labels_are_cached(unlabelled_val_root, tmp_path):
    pairs = index_pairs(unlabelled_val_root / "val")
    reader = build_cache(pairs, SECOND_CLASSES, tmp_path)
    files = FileReader(SECOND_CLASSES)
    for pair in pairs:
        assert np.array_equal(reader.image(pair.image2), files.image(pair.image2))


def test_mixed_sizes_and_grey_images(write_pairs, tmp_path):
    folder = write_pairs({"a": (40, 56), "b": (33, 64)})
    Image.open(folder / "im1" / "a.png").convert("L").save(folder / "im1" / "a.png")
    pairs = index_pairs(folder)
    cached = make_dataset(pairs, build_cache(pairs, SECOND_CLASSES, tmp_path / "cache"))
    plain = make_dataset(pairs)
    for i in range(2):
        assert_same(cached[i], plain[i])


# Another data set gets another cache


def touch(path: Path, classes: ClassList) -> ClassList:
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 10**9))
    return classes


def grow(path: Path, classes: ClassList) -> ClassList:
    state = path.stat()
    with open(path, "ab") as file:
        file.write(b"\0")  # behind the end of a PNG nobody reads
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    return classes


def rename_a_class(path: Path, classes: ClassList) -> ClassList:
    return ClassList((*classes.names[:-1], "sports"), classes.colors)


@pytest.mark.parametrize("change", [touch, grow, rename_a_class])
def test_the_key_follows_files_and_classes(change, broken_root, tmp_path):
    pairs = index_pairs(broken_root / "train")
    build_cache(pairs, SECOND_CLASSES, tmp_path)
    build_cache(pairs, SECOND_CLASSES, tmp_path)
    assert len(caches(tmp_path)) == 1
    classes = change(pairs[3].label2, SECOND_CLASSES)
    build_cache(pairs, classes, tmp_path)
    assert len(caches(tmp_path)) == 2


def test_other_pairs_get_another_cache(pairs, tmp_path):
    build_cache(pairs, SECOND_CLASSES, tmp_path)
    build_cache(pairs[1:], SECOND_CLASSES, tmp_path)
    assert len(caches(tmp_path)) == 2


def test_changed_pixels_are_seen(broken_root, tmp_path):
    pairs = index_pairs(broken_root / "train")
    old = build_cache(pairs, SECOND_CLASSES, tmp_path).image(pairs[0].image1).copy()
    Image.fromarray(255 - old).save(pairs[0].image1)
    new = build_cache(pairs, SECOND_CLASSES, tmp_path).image(pairs[0].image1)
    assert np.array_equal(new, 255 - old)


# Damage


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def forget_index(path: Path) -> None:
    path.with_suffix(".json").unlink()


def empty_index(path: Path) -> None:
    path.with_suffix(".json").write_text("")


def old_index(path: Path) -> None:
    index = path.with_suffix(".json")
    index.write_text(json.dumps({"entries": json.loads(index.read_text())["entries"]}))


@pytest.mark.parametrize("damage", [cut_off, forget_index, empty_index, old_index, Path.unlink])
def test_a_damaged_cache_is_built_again(damage, pairs, tmp_path):
    build_cache(pairs, SECOND_CLASSES, tmp_path)
    damage(caches(tmp_path)[0])
    cached = make_dataset(pairs, build_cache(pairs, SECOND_CLASSES, tmp_path))
    plain = make_dataset(pairs)
    for i in range(len(pairs)):
        assert_same(cached[i], plain[i])


@pytest.mark.parametrize("folder", ["im2", "label1"])
def test_a_failed_build_leaves_nothing(folder, broken_root, tmp_path):
    pairs = index_pairs(broken_root / "train")
    path = broken_root / "train" / folder / f"{pairs[5].name}.png"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=f"{path}: cannot be decoded"):
        build_cache(pairs, SECOND_CLASSES, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_missing_file_is_named(broken_root, tmp_path):
    pairs = index_pairs(broken_root / "train")
    pairs[2].image2.unlink()
    with pytest.raises(OptionError, match=f"{pairs[2].image2}: cannot be cached"):
        build_cache(pairs, SECOND_CLASSES, tmp_path)


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


# Pseudo masks


def write_pseudo_masks(root: Path, pairs: list, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for date in ("im1", "im2"):
        for pair in pairs:
            mask = rng.integers(1, 7, (64, 64), dtype=np.uint8)
            save_mask(root / date / f"{pair.name}.png", mask, SECOND_CLASSES.colors)


def test_pseudo_masks_are_cached(pairs, tmp_path, forbid_decoding):
    root = tmp_path / "masks"
    write_pseudo_masks(root, pairs)
    plain = make_dataset(pairs, pseudo_label_root=root)
    expected = [plain[i] for i in range(len(pairs))]
    reader = build_cache(pairs, SECOND_CLASSES, tmp_path / "cache", pseudo_label_root=root)
    dataset = make_dataset(pairs, reader, pseudo_label_root=root)
    forbid_decoding()
    for i, sample in enumerate(expected):
        assert_same(dataset[i], sample)
        assert sample["label1"].min() > 0  # the pseudo mask, not the ground truth
    build_cache_again = build_cache(pairs, SECOND_CLASSES, tmp_path / "cache", root)
    assert np.array_equal(
        build_cache_again.label(root / "im1" / f"{pairs[0].name}.png"), expected[0]["label1"]
    )


def test_pseudo_masks_serve_runs_of_any_bands(pairs, tmp_path):
    root, folder = tmp_path / "masks", tmp_path / "cache"
    write_pseudo_masks(root, pairs)
    build_cache(pairs, SECOND_CLASSES, folder, root)
    masks = set(folder.glob("pseudo-*"))
    reader = build_cache(pairs, SECOND_CLASSES, folder, root, bands=Bands((2, 1)))
    assert set(folder.glob("pseudo-*")) == masks and len(set(folder.glob("*.bin"))) == 3
    assert reader.image(pairs[0].image1).shape[-1] == 2
    assert reader.label(root / "im1" / f"{pairs[0].name}.png").dtype == np.uint8


def test_a_new_round_decodes_the_masks_alone(pairs, tmp_path, monkeypatch):
    root, folder = tmp_path / "masks", tmp_path / "cache"
    build_cache(pairs, SECOND_CLASSES, folder)  # of the teachers
    write_pseudo_masks(root, pairs)
    build_cache(pairs, SECOND_CLASSES, folder, root)
    first = set(folder.iterdir())
    build_cache(pairs[1:], SECOND_CLASSES, folder, root)  # of other pairs, which are another fold
    fold = set(folder.iterdir()) - first
    assert len(caches(folder)) == 4

    write_pseudo_masks(root, pairs, seed=1)
    build_cache(pairs, SECOND_CLASSES, folder, root)
    assert first <= set(folder.iterdir())  # young, so that another machine may be using them
    second = set(folder.iterdir()) - first - fold
    for path in (*first, *second):
        os.utime(path, (0, 0))
    write_pseudo_masks(root, pairs, seed=2)
    plain = make_dataset(pairs, pseudo_label_root=root)
    expected = [plain[i] for i in range(len(pairs))]
    decoded = []
    open_file = Image.open

    def opened(path, *arguments):
        decoded.append(Path(path))
        return open_file(path, *arguments)

    monkeypatch.setattr(Image, "open", opened)
    reader = build_cache(pairs, SECOND_CLASSES, folder, root)
    assert decoded and all(root in path.parents for path in decoded)
    dataset = make_dataset(pairs, reader, pseudo_label_root=root)
    for i, sample in enumerate(expected):
        assert_same(dataset[i], sample)
    # Masks of old rounds are gone, the teachers' cache and those of other pairs are not.
    assert len(caches(folder)) == 4
    assert len(first - set(folder.iterdir())) == 2
    assert not second & set(folder.iterdir())
    assert fold <= set(folder.iterdir())


def test_masks_that_look_older_than_a_cache_do_not_remove_it(pairs, tmp_path):
    root, folder = tmp_path / "masks", tmp_path / "cache"
    write_pseudo_masks(root, pairs)
    build_cache(pairs, SECOND_CLASSES, folder, root)
    for mask in root.glob("im*/*.png"):  # as another machine may see them for some seconds
        os.utime(mask, (0, 0))
    build_cache(pairs, SECOND_CLASSES, folder, root)
    assert len(caches(folder)) == 3


def test_what_a_killed_program_left_of_a_cache_is_removed_when_it_is_old(pairs, tmp_path):
    old, young = tmp_path / ".a.bin.abcdefgh.tmp", tmp_path / ".b.bin.abcdefgh.tmp"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    build_cache(pairs, SECOND_CLASSES, tmp_path)
    assert not old.exists()
    assert young.exists()


# Processes and memory


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_share_the_cache(workers, pairs, tmp_path):
    reader = build_cache(pairs, SECOND_CLASSES, tmp_path)
    loaders = [
        training_loader(
            make_dataset(pairs, r, transform=TrainTransform(), seed=1), 4, workers, 0, False
        )
        for r in (reader, None)
    ]
    for cached, plain in zip(*loaders, strict=True):
        assert cached["name"] == plain["name"]
        assert all(torch.equal(cached[key], plain[key]) for key in KEYS)


def test_writing_into_a_sample_changes_no_file(pairs, tmp_path):
    reader = build_cache(pairs, SECOND_CLASSES, tmp_path)
    path = caches(tmp_path)[0]
    before = path.read_bytes()
    reader.image(pairs[0].image1)[:] = 0
    reader.label(pairs[0].label1)[:] = 9
    make_dataset(pairs, reader)[1]["image1"].zero_()
    assert path.read_bytes() == before
    fresh, files = CachedReader(path), FileReader(SECOND_CLASSES)
    assert np.array_equal(fresh.image(pairs[0].image1), files.image(pairs[0].image1))
    assert np.array_equal(fresh.label(pairs[0].label1), files.label(pairs[0].label1))


def test_a_read_only_cache_can_be_read(pairs, tmp_path):
    build_cache(pairs, SECOND_CLASSES, tmp_path)
    caches(tmp_path)[0].chmod(0o444)
    assert build_cache(pairs, SECOND_CLASSES, tmp_path).image(pairs[0].image1).any()
