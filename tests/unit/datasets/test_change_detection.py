import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from datasets.classes import SECOND_CLASSES
from datasets.dataset import ChangeDetectionDataset
from datasets.images import image_size
from datasets.loaders import collate
from datasets.pairs import index_pairs
from utils.errors import DataError, one_line
from utils.pictures import save_mask

FOLDERS = ("im1", "im2", "label1", "label2")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def index_error(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        index_pairs(folder)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def read(folder: Path, index: int = 0, **options: object) -> dict:
    return ChangeDetectionDataset(index_pairs(folder), SECOND_CLASSES, **options)[index]


def read_error(folder: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read(folder, **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def read_array(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_text(path: Path) -> None:
    path.write_text("<html>Not found</html>")


def shrink(path: Path) -> None:
    Image.open(path).crop((0, 0, 20, 30)).save(path)


# Index a folder


@pytest.mark.parametrize("suffix", [*SUFFIXES, *(suffix.upper() for suffix in SUFFIXES)])
def test_every_suffix_is_an_image(write_pairs, suffix):
    folder = write_pairs({"b": (20, 30), "a": (20, 30)})
    for name in FOLDERS:
        for path in list((folder / name).iterdir()):
            lossy = name.startswith("label") and suffix.lower() in (".jpg", ".jpeg")
            Image.open(path).save(path.with_suffix(".png" if lossy else suffix))
            if path.with_suffix(suffix) != path and not lossy:
                path.unlink()
    pairs = index_pairs(folder)
    assert [pair.id for pair in pairs] == ["train/a", "train/b"]
    assert [pair.name for pair in pairs] == ["a", "b"]
    assert pairs[0].image1 == folder / "im1" / f"a{suffix}"
    sample = ChangeDetectionDataset(pairs, SECOND_CLASSES)[0]
    assert sample["image2"].shape == (3, 20, 30)
    assert sample["label1"].any()


def test_partners_are_found_by_stem(write_pairs):
    folder = write_pairs({"a": (20, 30), "a.1": (20, 30)})
    for stem in ("a", "a.1"):
        (folder / "im1" / f"{stem}.png").rename(folder / "im1" / f"{stem}.PNG")
        (folder / "label2" / f"{stem}.png").rename(folder / "label2" / f"{stem}.tif")
        Image.open(folder / "im2" / f"{stem}.png").save(folder / "im2" / f"{stem}.JPG")
        (folder / "im2" / f"{stem}.png").unlink()
    pairs = index_pairs(folder)
    assert [pair.name for pair in pairs] == ["a", "a.1"]
    for pair in pairs:
        assert pair.image1 == folder / "im1" / f"{pair.name}.PNG"
        assert pair.image2 == folder / "im2" / f"{pair.name}.JPG"
        assert pair.label1 == folder / "label1" / f"{pair.name}.png"
        assert pair.label2 == folder / "label2" / f"{pair.name}.tif"


def test_other_files_are_ignored(write_pairs):
    folder = write_pairs({"a": (20, 30)})
    for name in (".a.png", "._b.png", "Thumbs.db", "notes.txt", "a.png.xml", "png", ".DS_Store"):
        for kind in ("im1", "label2"):
            (folder / kind / name).write_text("no image")
    (folder / "im2" / "more").mkdir()
    assert [pair.name for pair in index_pairs(folder)] == ["a"]


def test_pairs_are_sorted_by_name(write_pairs):
    folder = write_pairs(dict.fromkeys(("10", "9", "b", "a", "B"), (4, 4)))
    assert [pair.name for pair in index_pairs(folder)] == ["10", "9", "B", "a", "b"]


def test_sample_set_is_indexed(sample_root, unlabelled_val_root):
    pairs = index_pairs(sample_root / "val")
    assert [pair.id for pair in pairs] == [f"val/{i:05d}" for i in range(4)]
    assert all(pair.label1.is_file() and pair.label2.is_file() for pair in pairs)
    unlabelled = index_pairs(unlabelled_val_root / "val")
    assert [pair.id for pair in unlabelled] == [pair.id for pair in pairs]
    assert all(pair.label1 is None and pair.label2 is None for pair in unlabelled)


def test_missing_root(tmp_path):
    message = index_error(tmp_path / "train")
    assert message.startswith(f"{tmp_path / 'train'}: no such folder") and "--data-root" in message


@pytest.mark.parametrize("name", FOLDERS[:2])
def test_missing_folder(broken_root, name):
    shutil.rmtree(broken_root / "train" / name)
    message = index_error(broken_root / "train")
    assert message.startswith(f"{broken_root / 'train' / name}: no such folder")


def test_empty_folders(tmp_path):
    for name in ("im1", "im2"):
        (tmp_path / name).mkdir()
    message = index_error(tmp_path)
    assert message.startswith(f"{tmp_path}/im1: no images")
    assert all(suffix[1:] in message for suffix in SUFFIXES)


@pytest.mark.parametrize(
    ("removed", "alone", "missing_in"),
    [
        ("im1", "im2", "im1"),
        ("im2", "im1", "im2"),
        ("label1", "im1", "label1"),
        ("label2", "im1", "label2"),
    ],
)
def test_file_without_partner(broken_root, removed, alone, missing_in):
    folder = broken_root / "train"
    (folder / removed / "00003.png").unlink()
    message = index_error(folder)
    assert message.startswith(
        f"{folder / alone / '00003.png'}: no partner in {folder / missing_in}"
    )
    assert "more" not in message and "add the file or remove this one" in message
    for i in (5, 7):
        (folder / removed / f"{i:05d}.png").unlink()
    message = index_error(folder)
    assert str(folder / alone / "00003.png") in message and "(and 2 more)" in message


@pytest.mark.parametrize(("name", "missing_in"), [("label1", "im1"), ("label2", "im1")])
def test_label_without_image(broken_root, name, missing_in):
    folder = broken_root / "train"
    shutil.copy(folder / name / "00003.png", folder / name / "extra.png")
    message = index_error(folder)
    assert message.startswith(f"{folder / name / 'extra.png'}: no partner in {folder / missing_in}")


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("suffix", [".tif", ".JPG"])
def test_same_stem_twice(broken_root, name, suffix):
    folder = broken_root / "train" / name
    Image.open(folder / "00003.png").save(folder / f"00003{suffix}")
    message = index_error(broken_root / "train")
    assert str(folder) in message and "00003.png" in message and f"00003{suffix}" in message
    assert "same name twice; remove one" in message


# Read one pair


def test_sample_is_what_the_files_hold(sample_root):
    folder = sample_root / "train"
    sample = read(folder, 3)
    assert set(sample) == {"name", "image1", "image2", "label1", "label2", "change_mask"}
    assert sample["name"] == "00003"
    for date in ("1", "2"):
        image = read_array(folder / f"im{date}" / "00003.png")
        assert sample[f"image{date}"].dtype == torch.uint8
        assert np.array_equal(sample[f"image{date}"].permute(1, 2, 0), image)
        label = SECOND_CLASSES.to_index(read_array(folder / f"label{date}" / "00003.png"))
        assert sample[f"label{date}"].dtype == torch.uint8
        assert np.array_equal(sample[f"label{date}"], label)
        assert np.array_equal(sample["change_mask"], label > 0)
    assert sample["change_mask"].dtype == torch.uint8
    assert set(sample["change_mask"].unique().tolist()) == {0, 1}


def test_sample_without_labels(unlabelled_val_root):
    assert set(read(unlabelled_val_root / "val")) == {"name", "image1", "image2"}


@pytest.mark.parametrize("size", [(50, 70), (70, 50), (33, 97), (1, 5)])
def test_any_size_is_kept(write_pairs, size):
    sample = read(write_pairs({"a": size}))
    assert sample["image1"].shape == sample["image2"].shape == (3, *size)
    for key in ("label1", "label2", "change_mask"):
        assert sample[key].shape == size


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "PA"])
def test_other_images_become_three_channels(write_pairs, mode):
    folder = write_pairs({"a": (20, 30)})
    path = folder / "im1" / "a.png"
    image = Image.open(path).convert("L" if mode != "P" else "RGB").convert(mode.rstrip("A"))
    image = image.convert(mode)
    path = path.with_suffix(".tif") if mode == "PA" else path
    (folder / "im1" / "a.png").unlink()
    image.save(path)
    pixels = read(folder)["image1"]
    assert pixels.shape == (3, 20, 30)
    assert np.array_equal(pixels.permute(1, 2, 0), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("damage", [truncate, empty, replace_by_text])
def test_file_that_cannot_be_decoded(broken_root, name, damage):
    path = broken_root / "train" / name / "00000.png"
    damage(path)
    message = read_error(broken_root / "train")
    assert message.startswith(f"{path}: cannot be decoded (")
    assert "copy the file again or remove its pair" in message


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_truncated_file_of_every_format(write_pairs, suffix):
    folder = write_pairs({"a": (40, 40)})
    path = (folder / "im2" / "a.png").with_suffix(suffix)
    Image.open(folder / "im2" / "a.png").save(path)
    if suffix != ".png":
        (folder / "im2" / "a.png").unlink()
    whole = path.read_bytes()
    for share in (0.02, 0.3, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert read_error(folder).startswith(f"{path}: cannot be decoded (")


@pytest.mark.parametrize("name", FOLDERS[1:])
def test_sizes_that_differ_inside_a_pair(broken_root, name):
    path = broken_root / "train" / name / "00000.png"
    shrink(path)
    message = read_error(broken_root / "train")
    assert message.startswith(f"{path}: 20 × 30 pixels, but ")
    assert str(broken_root / "train" / "im1" / "00000.png") in message
    assert "64 × 64" in message and "one size" in message


@pytest.mark.parametrize("damaged", ["label1", "label2"])
@pytest.mark.parametrize("pixels", [1, 5])
def test_labels_that_disagree_on_what_changed(write_pairs, damaged, pixels):
    folder = write_pairs({"a": (20, 30)})
    path = folder / damaged / "a.png"
    label = read_array(path).copy()
    rows, columns = np.nonzero(label)
    label[rows[:pixels], columns[:pixels]] = 0
    Image.fromarray(label).save(path)
    message = read_error(folder)
    assert message.startswith(f"{folder / 'label1' / 'a.png'} and {folder / 'label2' / 'a.png'}: ")
    assert f"in {pixels} pixels" in message
    assert "correct the masks or remove the pair" in message


def test_unknown_label_value_names_the_file(write_pairs):
    folder = write_pairs({"a": (20, 30)})
    Image.fromarray(np.full((20, 30), 7, np.uint8)).save(folder / "label2" / "a.png")
    assert read_error(folder).startswith(f"{folder / 'label2' / 'a.png'}: label value 7")


# Pseudo labels


def write_pseudo_masks(root: Path, stem: str, mask1: np.ndarray, mask2: np.ndarray) -> Path:
    for name, mask in (("im1", mask1), ("im2", mask2)):
        save_mask(root / name / f"{stem}.png", mask, SECOND_CLASSES.colors)
    return root


def test_change_mask_is_ground_truth_beside_pseudo_labels(write_pairs, tmp_path):
    folder = write_pairs({"a": (20, 30)})
    mask1, mask2 = np.random.default_rng(9).integers(1, 7, (2, 20, 30), dtype=np.uint8)
    root = write_pseudo_masks(tmp_path / "pseudo", "a", mask1, mask2)
    truth = read(folder)
    sample = read(folder, pseudo_label_root=root)
    assert np.array_equal(sample["label1"], mask1) and np.array_equal(sample["label2"], mask2)
    assert 0 < truth["change_mask"].float().mean() < 1
    assert torch.equal(sample["change_mask"], truth["change_mask"])
    assert torch.equal(sample["image1"], truth["image1"])


def test_pseudo_labels_may_leave_pixels_open_at_one_date(write_pairs, tmp_path):
    folder = write_pairs({"a": (20, 30)})
    mask1, mask2 = np.random.default_rng(9).integers(0, 7, (2, 20, 30), dtype=np.uint8)
    root = write_pseudo_masks(tmp_path / "pseudo", "a", mask1, mask2)
    sample = read(folder, pseudo_label_root=root)
    assert np.array_equal(sample["label1"], mask1) and np.array_equal(sample["label2"], mask2)


def test_pseudo_labels_are_png_whatever_the_image_is(write_pairs, tmp_path):
    folder = write_pairs({"a": (20, 30)})
    (folder / "im1" / "a.png").rename(folder / "im1" / "a.PNG")
    ones = np.ones((20, 30), np.uint8)
    root = write_pseudo_masks(tmp_path / "pseudo", "a", ones, ones)
    assert read(folder, pseudo_label_root=root)["label1"].eq(1).all()


def test_labels_are_still_checked_beside_pseudo_labels(write_pairs, tmp_path):
    folder = write_pairs({"a": (20, 30)})
    ones = np.ones((20, 30), np.uint8)
    root = write_pseudo_masks(tmp_path / "pseudo", "a", ones, ones)
    Image.fromarray(ones * 0).save(folder / "label1" / "a.png")
    assert "disagree" in read_error(folder, pseudo_label_root=root)


@pytest.mark.parametrize("name", ["im1", "im2"])
def test_missing_pseudo_mask(write_pairs, tmp_path, name):
    folder = write_pairs({"a": (20, 30)})
    ones = np.ones((20, 30), np.uint8)
    root = write_pseudo_masks(tmp_path / "pseudo", "a", ones, ones)
    (root / name / "a.png").unlink()
    message = read_error(folder, pseudo_label_root=root)
    assert message.startswith(f"{root / name / 'a.png'}: no pseudo mask") and "label.py" in message


def test_pseudo_mask_of_another_size(write_pairs, tmp_path):
    folder = write_pairs({"a": (20, 30)})
    ones = np.ones((30, 20), np.uint8)
    root = write_pseudo_masks(tmp_path / "pseudo", "a", ones, ones)
    message = read_error(folder, pseudo_label_root=root)
    assert message.startswith(f"{root / 'im1' / 'a.png'}: 20 × 30 pixels")
    assert "30 × 20" in message


# Errors in worker processes


@pytest.fixture
def impatient(monkeypatch):
    """Do not wait five seconds for the end of a worker that has failed."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)


def unlist_a_colour(path: Path) -> None:
    Image.new("RGB", (64, 64), (1, 2, 3)).save(path)


def forget_all_changes(path: Path) -> None:
    Image.new("L", (64, 64)).save(path)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("im1", truncate),
        ("im2", replace_by_text),
        ("im2", shrink),
        ("label1", unlist_a_colour),
        ("label2", forget_all_changes),
    ],
)
def test_error_in_a_worker_is_the_same_one_line(broken_root, impatient, name, damage):
    damage(broken_root / "train" / name / "00000.png")
    expected = read_error(broken_root / "train")
    dataset = ChangeDetectionDataset(index_pairs(broken_root / "train"), SECOND_CLASSES)
    with pytest.raises(DataError) as caught:
        next(iter(DataLoader(dataset, batch_size=2, num_workers=1, collate_fn=collate)))
    assert one_line(caught.value) == expected


# Sizes from headers


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_image_size_is_height_and_width(tmp_path, suffix):
    Image.new("RGB", (70, 50)).save(tmp_path / f"a{suffix}")
    assert image_size(tmp_path / f"a{suffix}") == (50, 70)


@pytest.mark.parametrize("damage", [empty, replace_by_text])
def test_image_size_of_no_image(tmp_path, damage):
    damage(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: cannot be decoded .*copy the file again"):
        image_size(tmp_path / "a.png")
