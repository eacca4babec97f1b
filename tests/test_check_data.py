import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import index_pairs
from datasets.change_detection import ChangeDetectionDataset
from datasets.class_map import load_class_map
from datasets.classes import SECOND_CLASSES, ClassList, load_classes, read_label
from datasets.conversion import Rules, convert_dataset
from datasets.duplicates import VIEWS, _count_bits, perceptual_hashes, see
from datasets.finding_kinds import KINDS
from datasets.inspection import inspect_dataset, quick_check
from datasets.label_formats import READABLE, inspect_label
from datasets.splits import k_fold
from tools import check_data
from utils.errors import DataError, OptionError, UserError
from utils.rasters import save_raster
from utils.split_options import SplitOptions

COLORS = np.asarray(SECOND_CLASSES.colors, dtype=np.uint8)


def kinds(root: Path, **options) -> dict[str, list[str]]:
    """Files by kind of finding."""
    report = inspect_dataset(root, load_classes(root), **options)
    return {finding.kind: finding.files for finding in report.findings}


def read(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def write(path: Path, array: np.ndarray, **options) -> None:
    Image.fromarray(array).save(path, **options)


def indices(root: Path, name: str, split: str = "train") -> list[np.ndarray]:
    paths = (root / split / f"label{date}" / f"{name}.png" for date in (1, 2))
    return [SECOND_CLASSES.to_index(read(path)) for path in paths]


def every_label(root: Path) -> list[Path]:
    return sorted(root.glob("*/label[12]/*.png"))


def rewrite_labels(root: Path, change) -> None:
    """Apply a function of the index mask to every label file."""
    for path in every_label(root):
        write(path, change(SECOND_CLASSES.to_index(read(path))))


def files_below(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_clean_set_has_no_findings(sample_root):
    report = inspect_dataset(sample_root, SECOND_CLASSES)
    assert report.findings == []
    assert report.splits == ["train", "val"]
    assert [pair.split for pair in report.pairs] == ["train"] * 12 + ["val"] * 4
    assert all(file.size == (64, 64) for pair in report.pairs for file in pair.images)


def test_counts_equal_a_plain_count_of_the_labels(sample_root):
    report = inspect_dataset(sample_root, SECOND_CLASSES)
    expected = np.zeros((7, 7), dtype=int)
    for path in sorted((sample_root / "train" / "label1").iterdir()):
        np.add.at(expected, tuple(indices(sample_root, path.stem)), 1)
    assert np.array_equal(report.transitions("train"), expected)
    changed = np.mean([pair.changed for pair in report.pairs if pair.split == "train"])
    assert changed == pytest.approx(1 - expected[0, 0] / expected.sum())


def test_workers_find_the_same(sample_root):
    alone = inspect_dataset(sample_root, SECOND_CLASSES, workers=1)
    together = inspect_dataset(sample_root, SECOND_CLASSES, workers=2)
    assert [pair.pair for pair in alone.pairs] == [pair.pair for pair in together.pairs]
    for a, b in zip(alone.pairs, together.pairs, strict=True):
        assert [f.digest for f in a.fingerprints] == [f.digest for f in b.fingerprints]
        assert np.array_equal(a.transitions, b.transitions)


def test_unlabelled_val_is_a_test_set_and_every_10th_is_held_out(unlabelled_val_root):
    report = inspect_dataset(unlabelled_val_root, SECOND_CLASSES)
    splits = {pair.pair.id: pair.split for pair in report.pairs}
    assert [name for name, split in splits.items() if split == "held out of train"] == [
        "train/00000",
        "train/00010",
    ]
    assert splits["val/00000"] == "val"
    assert report.findings == []


def test_few_readable_labels_say_nothing_about_the_whole_set(broken_root):
    binary_labels(broken_root)
    for date in (1, 2):
        blank_label = np.full((64, 64, 3), 255, np.uint8)
        write(broken_root / f"train/label{date}/00004.png", blank_label)
    assert set(kinds(broken_root)) == {"label-binary"}


def test_lists_decide_what_leaks(broken_root, tmp_path):
    shutil.copy(broken_root / "train/im1/00003.png", broken_root / "train/im1/00004.png")
    assert set(kinds(broken_root)) == {"duplicate-exact"}
    val_list, train_list = tmp_path / "val.txt", tmp_path / "train.txt"
    val_list.write_text("00004\n00005\n")
    found = kinds(broken_root, split=SplitOptions(val_list=val_list))
    assert found == {"leak-exact": ["train/im1/00003.png", "train/im1/00004.png"]}
    train_list.write_text("".join(f"{i:05d}\n" for i in (0, 1, 2, 6, 7, 8, 9, 10, 11)))
    assert kinds(broken_root, split=SplitOptions("lists", val_list, train_list)) == {}


def test_folds_decide_what_leaks(broken_root):
    shutil.copy(broken_root / "train/im1/00003.png", broken_root / "train/im1/00004.png")
    names = [f"train/{i:05d}" for i in range(12)]
    for fold in range(3):
        val = k_fold(names, 3, fold, 0).val
        found = set(kinds(broken_root, split=SplitOptions("k-fold", folds=3, fold=fold)))
        apart = ("train/00003" in val) != ("train/00004" in val)
        assert ("leak-exact" in found, "duplicate-exact" in found) == (apart, not apart)


# --- one damage, one finding -----------------------------------------------------------------


def truncate(root):
    path = root / "train/im2/00001.png"
    path.write_bytes(path.read_bytes()[:2000])
    return {"unreadable": ["train/im2/00001.png"]}


def replace_by_text(root):
    (root / "val/label1/00002.png").write_text("no image")
    return {"unreadable": ["val/label1/00002.png"]}


def empty_file(root):
    (root / "val/im1/00002.png").write_bytes(b"")
    return {"unreadable": ["val/im1/00002.png"]}


def remove_partner(root):
    (root / "train/im2/00005.png").unlink()
    files = [f"train/{folder}/00005.png" for folder in ("im1", "label1", "label2")]
    return {"no-partner": files}


def remove_label(root):
    (root / "val/label2/00003.png").unlink()
    return {"no-partner": [f"val/{folder}/00003.png" for folder in ("im1", "im2", "label1")]}


def rename_partner(root):
    for folder in ("im1", "im2", "label1", "label2"):
        (root / "train" / folder / "00006.png").rename(root / "train" / folder / "b6.png")
    (root / "train/im2/b6.png").rename(root / "train/im2/B6.png")
    return {
        "partner-case": ["train/im2/B6.png"]
        + [f"train/{folder}/b6.png" for folder in ("im1", "label1", "label2")]
    }


def names_alike(root):
    for folder in ("im1", "im2", "label1", "label2"):
        (root / "train" / folder / "00006.png").rename(root / "train" / folder / "b6.png")
        (root / "train" / folder / "00007.png").rename(root / "train" / folder / "B6.png")
    folders = ("im1", "im2", "label1", "label2")
    return {"name-case": [f"train/{f}/{name}.png" for f in folders for name in ("B6", "b6")]}


def same_stem(root):
    Image.open(root / "train/im1/00002.png").save(root / "train/im1/00002.bmp")
    return {"same-stem": ["train/im1/00002.bmp", "train/im1/00002.png"]}


def foreign_file(root):
    (root / "train/im1/notes.txt").write_text("hello")
    return {"ignored-files": ["train/im1/notes.txt"]}


def no_labels(root):
    for folder in ("label1", "label2"):
        shutil.rmtree(root / "train" / folder)
    return {"no-labels": ["train"]}


def other_size_in_pair(root):
    path = root / "val/im2/00001.png"
    write(path, read(path)[:48])
    return {"size-mismatch": [f"val/{f}/00001.png" for f in ("im1", "im2", "label1", "label2")],
            "mixed-sizes": ["val/im2/00001.png"]}  # fmt: skip


def other_size(root):
    for folder in ("im1", "im2", "label1", "label2"):
        path = root / "val" / folder / "00001.png"
        write(path, read(path)[8:56])
    return {"mixed-sizes": ["val/im1/00001.png", "val/im2/00001.png"]}


def sixteen_bits(root):
    for path in sorted((root / "val").glob("im[12]/*.png")):
        save_raster(path, read(path).astype(np.uint16) * 40)
    return {"mixed-depth": [f"val/im{d}/{i:05d}.png" for i in range(4) for d in (1, 2)]}


def too_few_bands(root):
    for path in sorted(root.glob("*/im[12]/*.png")):
        write(path, read(path)[..., 0].astype(np.uint16) * 40)
    names = [("train", i) for i in range(12)] + [("val", i) for i in range(4)]
    return {"band-count": [f"{s}/im{d}/{i:05d}.png" for s, i in names for d in (1, 2)]}


def values_with_a_fraction(root):
    path = root / "train/im1/00004.png"
    Image.fromarray(read(path)[..., 0].astype(np.float32)).save(path.with_suffix(".tif"))
    path.unlink()
    return {"bit-depth": ["train/im1/00004.tif"], "mixed-modes": ["train/im1/00004.tif"]}


def grey_image(root):
    path = root / "train/im1/00004.png"
    write(path, read(path)[..., 1])
    return {"mixed-modes": ["train/im1/00004.png"]}


def blank(root):
    for name in ("00004", "00005"):  # equal, but no copies of one another
        write(root / "train/im1" / f"{name}.png", np.full((64, 64, 3), 9, np.uint8))
    return {"blank-image": ["train/im1/00004.png", "train/im1/00005.png"]}


def same_dates(root):
    write(root / "train/im2/00004.png", read(root / "train/im1/00004.png"), compress_level=9)
    return {"same-image": ["train/im1/00004.png", "train/im2/00004.png"]}


def smear_labels(root):
    for date in (1, 2):
        path = root / f"train/label{date}/00004.png"
        mask = read(path)
        noise = np.random.default_rng(0).integers(-8, 9, mask.shape)
        write(path, np.clip(mask.astype(int) + noise, 0, 255).astype(np.uint8))
    return {"label-near-colours": ["train/label1/00004.png", "train/label2/00004.png"]}


def binary_labels(root):
    """Change masks in a set that lists classes; without the list they would be one of change."""
    names, colors = SECOND_CLASSES.names, SECOND_CLASSES.colors
    entries = [{"name": n, "color": c} for n, c in zip(names, colors, strict=True)]
    (root / "classes.json").write_text(json.dumps(entries))
    rewrite_labels(root, lambda mask: (mask > 0).astype(np.uint8) * 255)
    names = [("train", i) for i in range(12)] + [("val", i) for i in range(4)]
    return {"label-binary": [f"{s}/label{d}/{i:05d}.png" for s, i in names for d in (1, 2)]}


def labels_of_one_date(root):
    shutil.rmtree(root / "train/label2")
    return {"one-date": ["train/label1"]}


def black_and_white_label(root):
    path = root / "train/label1/00003.png"
    changed = SECOND_CLASSES.to_index(read(path)) > 0
    write(path, np.repeat(np.where(changed, 0, 255).astype(np.uint8)[..., None], 3, axis=2))
    return {"label-binary": ["train/label1/00003.png"]}


def foreign_values(root):
    rewrite_labels(root, lambda mask: np.where(mask == 6, 17, mask).astype(np.uint8))
    files = [path.relative_to(root).as_posix() for path in every_label(root)]
    having = {file for file in files if 17 in read(root / file)}
    names = [("train", i) for i in range(12)] + [("val", i) for i in range(4)]
    listed = [f"{s}/label{d}/{i:05d}.png" for s, i in names for d in (1, 2)]
    return {"label-values": [file for file in listed if file in having], "class-missing": []}


def foreign_colors(root):
    path = root / "train/label2/00003.png"
    mask = read(path)
    mask[:9, :9] = (255, 128, 0)
    write(path, mask)
    return {"label-colours": ["train/label2/00003.png"]}


def contradicting_palette(root):
    path = root / "train/label2/00003.png"
    image = Image.fromarray((SECOND_CLASSES.to_index(read(path)) + 6) % 7)
    image.putpalette(np.roll(COLORS, -1, axis=0).tobytes())
    image.save(path)
    assert np.array_equal(np.array(image.convert("RGB")), np.array(Image.open(path).convert("RGB")))
    return {"label-palette": ["train/label2/00003.png"]}


def sixteen_bit_label(root):
    path = root / "train/label2/00003.png"
    write(path, SECOND_CLASSES.to_index(read(path)).astype(np.uint16))
    return {"label-mode": ["train/label2/00003.png"]}


def one_index_label(root):
    path = root / "train/label2/00003.png"
    write(path, SECOND_CLASSES.to_index(read(path)))
    return {"mixed-formats": ["train/label2/00003.png"]}


def disagree(root):
    path = root / "train/label2/00003.png"
    mask = read(path)
    mask[indices(root, "00003")[0] > 0] = COLORS[0]
    write(path, mask)
    return {"labels-disagree": ["train/label1/00003.png", "train/label2/00003.png"]}


def same_class(root):
    for date in (1, 2):
        path = root / f"train/label{date}/00003.png"
        mask = read(path)
        mask[:4, :4] = COLORS[4]
        write(path, mask)
    return {"same-class": ["train/label1/00003.png", "train/label2/00003.png"]}


def nothing_changed(root):
    for path in (root / "val").glob("label[12]/*.png"):
        write(path, np.full((64, 64, 3), 255, np.uint8))
    return {"all-unchanged": [f"val/label1/{i:05d}.png" for i in range(4)]}


def land_cover_as_labels(root):
    for path in every_label(root):
        truth = read(path.parents[1] / path.parent.name.replace("label", "truth") / path.name)
        write(path, COLORS[truth])
    names = [("train", i) for i in range(12)] + [("val", i) for i in range(4)]
    return {"all-changed": [f"{s}/label{d}/{i:05d}.png" for s, i in names for d in (1, 2)]}


def white_masks(root):
    for path in every_label(root):
        write(path, np.full((64, 64), 255, np.uint8))
    names = [("train", i) for i in range(12)] + [("val", i) for i in range(4)]
    return {"all-marked": [f"{s}/label{d}/{i:05d}.png" for s, i in names for d in (1, 2)]}


def class_never_used(root):
    entries = [
        {"name": n, "color": c} for n, c in zip(*SECOND_CLASSES.to_dict().values(), strict=True)
    ]
    entries.append({"name": "snow", "color": [1, 2, 3]})
    (root / "classes.json").write_text(json.dumps(entries))
    return {"class-missing": []}


def exact_leak(root):
    for folder in ("im1", "im2", "label1", "label2"):
        shutil.copy(root / "train" / folder / "00003.png", root / "val" / folder / "00001.png")
    # Other bytes, the same pixels: what counts is the decoded image.
    write(root / "val/im1/00001.png", read(root / "train/im1/00003.png"), compress_level=0)
    dates = ("im1", "im2")
    return {
        "leak-exact": [f"{s}/{d}/0000{n}.png" for d in dates for s, n in (("train", 3), ("val", 1))]
    }


def lossy_leak(root):
    for folder in ("im1", "im2", "label1", "label2"):
        (root / "val" / folder / "00001.png").unlink()
        image = Image.open(root / "train" / folder / "00003.png")
        suffix = ".jpg" if folder == "im1" else ".png"
        image.save(root / "val" / folder / f"00001{suffix}", quality=75)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    write(root / "val/im2/00001.png", noise)  # the other date has nothing to do with training
    return {"leak-near": ["val/im1/00001.jpg", "train/im1/00003.png"]}


def flipped_leak(root):
    for folder in ("im1", "im2", "label1", "label2"):
        turned = np.rot90(read(root / "train" / folder / "00003.png"))[:, ::-1]
        write(root / "val" / folder / "00001.png", np.ascontiguousarray(turned))
    return {"leak-near": [f"{s}/im{d}/0000{n}.png" for d in (1, 2)
                          for s, n in (("val", 1), ("train", 3))]}  # fmt: skip


def duplicate(root):
    shutil.copy(root / "train/im2/00003.png", root / "train/im1/00008.png")
    return {"duplicate-exact": ["train/im2/00003.png", "train/im1/00008.png"]}


def brighter_duplicate(root):
    image = read(root / "train/im2/00003.png").astype(float)
    write(root / "train/im1/00008.png", np.clip(image * 0.9 + 12, 0, 255).astype(np.uint8))
    return {"duplicate-near": ["train/im1/00008.png", "train/im2/00003.png"]}


DAMAGES = [
    truncate, replace_by_text, empty_file, remove_partner, remove_label, rename_partner,
    names_alike, same_stem, foreign_file, no_labels, other_size_in_pair, other_size, sixteen_bits,
    grey_image, blank, same_dates, smear_labels, binary_labels, black_and_white_label,
    labels_of_one_date,
    foreign_values, foreign_colors, contradicting_palette, sixteen_bit_label, one_index_label,
    too_few_bands, values_with_a_fraction,
    disagree, same_class, nothing_changed, land_cover_as_labels, white_masks, class_never_used,
    exact_leak, lossy_leak, flipped_leak, duplicate, brighter_duplicate,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_each_damage_gives_its_finding_and_no_other(damage, broken_root):
    expected = damage(broken_root)
    assert kinds(broken_root) == expected


def test_every_kind_is_tested(broken_root, tmp_path):
    tested = set()
    for damage in DAMAGES:
        root = tmp_path / damage.__name__
        shutil.copytree(broken_root, root)
        tested |= set(damage(root))
    assert tested == set(KINDS)


def test_label_formats_agree_with_what_training_reads(sample_root, broken_root):
    """A format counts as readable exactly where read_label takes the file."""
    for damage, name in [
        (foreign_colors, "00000"),
        (contradicting_palette, "00001"),
        (one_index_label, "00002"),
        (sixteen_bit_label, "00005"),
    ]:
        damage(broken_root)
        folder = broken_root / "train/label2"
        shutil.move(folder / "00003.png", folder / f"{name}.png")
        shutil.copy(sample_root / "train/label2/00003.png", folder)
    smear_labels(broken_root)
    for path in [*every_label(sample_root), *every_label(broken_root)]:
        reading = inspect_label(Image.open(path), SECOND_CLASSES)
        if reading.format in READABLE:
            assert np.array_equal(reading.mask, read_label(path, SECOND_CLASSES))
        else:
            with pytest.raises(DataError):
                read_label(path, SECOND_CLASSES)


def test_hashes_of_views_equal_hashes_of_turned_pictures():
    rng = np.random.default_rng(1)
    thumbnails = rng.integers(0, 256, (5, 32, 32), dtype=np.uint8)
    hashes = perceptual_hashes(thumbnails)
    for number, view in enumerate(VIEWS):
        seen = np.stack([see(thumbnail, *view) for thumbnail in thumbnails])
        assert np.array_equal(perceptual_hashes(seen)[0], hashes[number])
    assert len(set(hashes.ravel().tolist())) == 40


def test_bits_are_counted_alike_without_numpy_2(monkeypatch):
    values = np.array([[0, 1, 2**63], [2**64 - 1, 0xFF00, 12345]], dtype=np.uint64)
    expected = [[0, 1, 1], [64, 8, bin(12345).count("1")]]
    assert _count_bits(values).tolist() == expected
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert _count_bits(values).tolist() == expected


# --- conversion -------------------------------------------------------------------------------


def original_masks(root: Path) -> dict[str, np.ndarray]:
    return {
        path.relative_to(root).as_posix(): SECOND_CLASSES.to_index(read(path))
        for path in every_label(root)
    }


def assert_converted(out: Path, expected: dict[str, np.ndarray]) -> None:
    for name, mask in expected.items():
        image = Image.open(out / name)
        assert image.format == "PNG" and image.mode == "P"
        assert np.array_equal(np.array(image), mask)
    assert {path.relative_to(out).as_posix() for path in every_label(out)} == set(expected)
    assert inspect_dataset(out, load_classes(out)).findings == []
    for folder in ("train", "val"):
        dataset = ChangeDetectionDataset(index_pairs(out / folder), load_classes(out))
        assert all(dataset[i]["label1"].max() <= 6 for i in range(len(dataset)))


def test_converts_rgb_and_leaves_the_source_alone(sample_root, tmp_path):
    before = files_below(sample_root)
    result = convert_dataset(sample_root, tmp_path / "out", Rules(SECOND_CLASSES), workers=2)
    assert (result.written, result.left_out) == (16, [])
    assert_converted(tmp_path / "out", original_masks(sample_root))
    assert files_below(sample_root) == before
    images = [name for name in before if "/im" in name]
    assert all((tmp_path / "out" / name).read_bytes() == before[name] for name in images)
    assert load_classes(tmp_path / "out") == SECOND_CLASSES
    assert not list((tmp_path / "out").rglob(".*"))


def degrade(root: Path) -> None:
    for path in every_label(root):
        Image.open(path).save(path.with_suffix(".jpg"), quality=97, subsampling=0)
        path.unlink()


def test_converts_jpeg_labels_within_the_distance(broken_root, tmp_path):
    expected = original_masks(broken_root)
    degrade(broken_root)
    assert "label-near-colours" in kinds(broken_root)
    near = Rules(SECOND_CLASSES, color_distance=63)  # half the distance of the two nearest colours
    result = convert_dataset(broken_root, tmp_path / "out", near)
    assert (result.written, result.left_out) == (16, [])
    assert_converted(tmp_path / "out", expected)


def test_lists_jpeg_labels_beyond_the_distance(broken_root, tmp_path):
    degrade(broken_root)
    result = convert_dataset(broken_root, tmp_path / "out", Rules(SECOND_CLASSES, color_distance=1))
    assert result.written + len(result.left_out) == 16
    assert len(result.left_out) > 8
    assert "beyond 1; raise --color-distance" in result.left_out[0].detail
    left_out = {entry.pairs[0] for entry in result.left_out}
    written = {f"{p.parents[1].name}/{p.stem}" for p in (tmp_path / "out").glob("*/im1/*")}
    assert not written & left_out


@pytest.mark.parametrize("keys", ["values", "colours", "names"])
def test_converts_by_class_map(keys, broken_root, tmp_path):
    """Labels of another data set: classes in another order, in values, colours or by name."""
    expected = original_masks(broken_root)
    order = [0, 5, 3, 1, 6, 2, 4]
    foreign = np.array([[9, 9, 9], [90, 0, 0], [0, 90, 0], [0, 0, 90], [90, 90, 0], [0, 90, 90],
                        [200, 90, 200]], np.uint8)  # fmt: skip
    names = [f"land{index}" for index in range(7)]
    if keys == "colours":
        rewrite_labels(broken_root, lambda mask: foreign[mask])
        mapping = {"#090909": 0} | {
            ",".join(map(str, foreign[i])): SECOND_CLASSES.names[i] for i in range(1, 7)
        }
    elif keys == "values":
        rewrite_labels(broken_root, lambda mask: (np.array(order, np.uint8) * 20)[mask])
        mapping = {str(20 * order[i]): i for i in range(7)}
    else:
        rewrite_labels(broken_root, lambda mask: np.array(order, np.uint8)[mask])
        mapping = {names[order[i]]: SECOND_CLASSES.names[i] for i in range(7)}
    source = ClassList(tuple(names), tuple(map(tuple, foreign.tolist())))
    (tmp_path / "map.json").write_text(json.dumps(mapping))
    class_map = load_class_map(tmp_path / "map.json", source, SECOND_CLASSES)
    result = convert_dataset(broken_root, tmp_path / "out", Rules(SECOND_CLASSES, class_map))
    assert (result.written, result.left_out) == (16, [])
    assert_converted(tmp_path / "out", expected)


def test_a_value_that_is_not_in_the_class_map_leaves_the_pair_out(broken_root, tmp_path):
    rewrite_labels(broken_root, lambda mask: mask)
    write(broken_root / "val/label1/00001.png", np.full((64, 64), 40, np.uint8))
    (tmp_path / "map.json").write_text(json.dumps({str(i): i for i in range(7)}))
    class_map = load_class_map(tmp_path / "map.json", SECOND_CLASSES, SECOND_CLASSES)
    result = convert_dataset(broken_root, tmp_path / "out", Rules(SECOND_CLASSES, class_map))
    assert result.written == 15
    assert [entry.pairs for entry in result.left_out] == [("val/00001",)]
    assert "label1/00001.png: value 40 (4096 pixels)" in result.left_out[0].detail
    assert not list((tmp_path / "out/val").rglob("00001.png"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "expected an object"),
        ("{", "cannot be read as JSON"),
        ('{"7": "forest"}', "'forest' is no class; choose an index from 0 to 6"),
        ('{"7": 9}', "9 is no class"),
        ('{"road": 1}', "'road' is no value"),
        ('{"#12345": 1}', "'#12345' is no value"),
        ('{"300,0,0": 1}', "'300,0,0' is no value"),
    ],
)
def test_class_map_errors(text, message, tmp_path):
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(DataError, match=message):
        load_class_map(tmp_path / "map.json", SECOND_CLASSES, SECOND_CLASSES)


def test_land_cover_becomes_change_labels(broken_root, tmp_path):
    expected = original_masks(broken_root)
    land_cover_as_labels(broken_root)
    rules = Rules(SECOND_CLASSES, unchanged_where_equal=True)
    assert convert_dataset(broken_root, tmp_path / "out", rules).left_out == []
    assert_converted(tmp_path / "out", expected)


def test_disagreement_is_left_out_or_resolved(broken_root, tmp_path):
    disagree(broken_root)
    result = convert_dataset(broken_root, tmp_path / "a", Rules(SECOND_CLASSES))
    assert [entry.files for entry in result.left_out] == [("train/im1/00003.png",)]
    assert "--resolve-disagreement" in result.left_out[0].detail
    rules = Rules(SECOND_CLASSES, resolve_disagreement=True)
    assert convert_dataset(broken_root, tmp_path / "b", rules).left_out == []
    assert not read(tmp_path / "b/train/label1/00003.png").any()


def test_binary_labels_become_one_class(broken_root, tmp_path):
    expected = {
        name: (mask > 0).astype(np.uint8) for name, mask in original_masks(broken_root).items()
    }
    binary_labels(broken_root)
    classes = ClassList(("unchanged", "changed"), ((0, 0, 0), (255, 255, 255)))
    assert convert_dataset(broken_root, tmp_path / "out", Rules(classes)).left_out == []
    for name, mask in expected.items():
        assert np.array_equal(read_label(tmp_path / "out" / name, classes), mask)


def test_other_images_become_png_and_incomplete_pairs_are_left_out(broken_root, tmp_path):
    jpeg = broken_root / "train/im1/00001.jpg"
    Image.open(jpeg.with_suffix(".png")).save(jpeg)
    jpeg.with_suffix(".png").unlink()
    remove_partner(broken_root)
    sixteen = broken_root / "val/im1/00000.png"
    write(sixteen, read(sixteen)[..., 0].astype(np.uint16) * 200)
    replace_by_text(broken_root)
    result = convert_dataset(broken_root, tmp_path / "out", Rules(SECOND_CLASSES))
    assert result.written == 14
    reasons = {entry.files[0]: entry.detail for entry in result.left_out}
    assert set(reasons) == {"train/im1/00005.png", "val/im1/00002.png"}
    assert reasons["train/im1/00005.png"] == "none in im2"
    assert (tmp_path / "out/val/im1/00000.png").read_bytes() == sixteen.read_bytes()
    assert "cannot be decoded" in reasons["val/im1/00002.png"]
    assert np.array_equal(read(tmp_path / "out/train/im1/00001.png"), read(jpeg))


def test_refuses_targets_that_touch_the_source(broken_root, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("precious")
    before = files_below(tmp_path)
    for out in (broken_root, broken_root / "copy", tmp_path, full, full / "mine.txt"):
        with pytest.raises(OptionError):
            convert_dataset(broken_root, out, Rules(SECOND_CLASSES))
    assert files_below(tmp_path) == before


# --- quick check ------------------------------------------------------------------------------


def test_quick_check_is_silent_on_a_clean_set_and_fast(sample_root):
    start = time.perf_counter()
    assert quick_check(index_pairs(sample_root / "train"), SECOND_CLASSES) == []
    assert time.perf_counter() - start < 1
    assert quick_check([], SECOND_CLASSES) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (binary_labels, "only 0 and 255"),
        (smear_labels, "label1/00004.png"),
        (disagree, "disagree on what changed"),
        (land_cover_as_labels, "every pixel a class"),
        (truncate, None),  # only the headers of images are read
    ],
)
def test_quick_check_warns(damage, message, broken_root):
    damage(broken_root)
    warnings = quick_check(index_pairs(broken_root / "train"), SECOND_CLASSES)
    assert len(warnings) == (message is not None)
    assert message is None or (message in warnings[0] and "\n" not in warnings[0])


def test_quick_check_sees_unchanged_sets_and_equal_dates(broken_root):
    for path in (broken_root / "train").glob("label[12]/*.png"):
        write(path, np.full((64, 64, 3), 255, np.uint8))
    shutil.copy(broken_root / "train/im1/00004.png", broken_root / "train/im2/00004.png")
    warnings = quick_check(index_pairs(broken_root / "train"), SECOND_CLASSES)
    assert len(warnings) == 2
    assert "nothing changed" in warnings[0] and "a sample of 12 pairs" in warnings[0]
    assert "same image at both dates: train/im1/00004.png + train/im2/00004.png" in warnings[1]


# --- the tool ---------------------------------------------------------------------------------


def test_tool_on_a_clean_set(sample_root, tmp_path, capsys):
    before = files_below(sample_root)
    assert check_data.main([str(sample_root), "--outdir", str(tmp_path), "--strict"]) == 0
    out = capsys.readouterr().out
    assert "train 12 12 64 × 64" in " ".join(out.split())
    assert "0 kinds of errors, 0 kinds of warnings" in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"] is True and report["findings"] == []
    assert report["splits"]["val"]["pairs"] == 4
    assert report["splits"]["train"]["label_pixels_read"] == 12 * 64 * 64
    assert report["folders"]["train/label1"]["label_formats"] == {"RGB in class colours": 12}
    assert not (tmp_path / "suspicious.png").exists()
    assert files_below(sample_root) == before
    pytest.importorskip("matplotlib")
    assert Image.open(tmp_path / "transitions.png").width > 400
    assert Image.open(tmp_path / "classes.png").width > 400


def test_tool_names_files_and_remedy_and_fails(broken_root, tmp_path, capsys):
    disagree(broken_root)
    flipped_leak(broken_root)
    same_dates(broken_root)
    assert check_data.main([str(broken_root), "--outdir", str(tmp_path / "out")]) == 1
    out = capsys.readouterr().out
    assert "ERROR labels-disagree, 2 ×: pairs whose two labels disagree on what changed" in out
    assert "train/label1/00003.png + train/label2/00003.png" in out
    assert "--resolve-disagreement" in out
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["passed"] is False
    levels = {finding["kind"]: finding["level"] for finding in report["findings"]}
    assert levels["labels-disagree"] == "error" and levels["leak-near"] == "warning"
    sheet = np.asarray(Image.open(tmp_path / "out/suspicious.png"))
    assert sheet.shape[1] > 5 * 170


def test_strict_makes_warnings_errors(broken_root, tmp_path):
    same_dates(broken_root)
    outdir = ["--outdir", str(tmp_path / "out")]
    assert check_data.main([str(broken_root), *outdir]) == 0
    assert (tmp_path / "out/suspicious.png").exists()
    assert check_data.main([str(broken_root), *outdir, "--strict"]) == 1


def test_tool_notes_missing_matplotlib(sample_root, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    assert check_data.main([str(sample_root), "--outdir", str(tmp_path)]) == 0
    assert "matplotlib is missing; pip install matplotlib" in capsys.readouterr().out
    assert not (tmp_path / "transitions.png").exists()


def test_tool_converts_and_says_what_is_left_out(broken_root, tmp_path, capsys):
    foreign_colors(broken_root)
    out, outdir = tmp_path / "out", tmp_path / "check"
    options = [str(broken_root), "--convert", str(out), "--outdir", str(outdir)]
    assert check_data.main(options) == 1
    printed = capsys.readouterr().out
    assert "left out: train/im1/00003.png: label2/00003.png: foreign colours" in printed
    assert "15 pairs written" in printed
    assert json.loads((outdir / "convert.json").read_text())["written"] == 15
    shutil.rmtree(out)
    (tmp_path / "map.json").write_text(
        json.dumps({name: name for name in SECOND_CLASSES.names} | {"#ff8000": "unchanged"})
    )
    options += ["--class-map", str(tmp_path / "map.json"), "--classes", "second"]
    options += ["--resolve-disagreement"]
    assert check_data.main(options) == 0
    assert not read(out / "train/label2/00003.png")[:9, :9].any()


def test_wrong_use_is_a_user_error(sample_root, tmp_path):
    for options, message in [
        ([tmp_path], "no image pairs in it"),
        ([sample_root, "--class-map", "m.json"], "--class-map is for --convert OUT"),
        ([sample_root, "--convert", sample_root / "x"], "inside or around the source"),
        ([sample_root, "--convert", tmp_path / "x", "--classes", "third"], "neither second nor"),
        ([sample_root, "--val-list", tmp_path / "no.txt"], "cannot be read"),
        ([sample_root, "--train-list", tmp_path / "no.txt"], "needs --val-list"),
    ]:
        with pytest.raises(UserError, match=message):
            check_data.main([str(o) for o in (*options, "--outdir", tmp_path / "out")])
    assert not list(tmp_path.iterdir())


def test_script_exits_2_with_one_line(tmp_path):
    command = [sys.executable, check_data.__file__, str(tmp_path / "none")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and "no such folder" in result.stderr
    assert result.stderr.count("\n") == 1
