"""Damages of a sample set; each returns the findings that it must give, with their files."""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.classes import SECOND_CLASSES
from datasets.images import save_raster
from datasets.task import load_classes
from tests.helpers.image_files import read, write
from tools.checking.inspection import inspect_dataset

COLORS = np.asarray(SECOND_CLASSES.colors, dtype=np.uint8)


def kinds(root: Path, **options) -> dict[str, list[str]]:
    """Files by kind of finding."""
    report = inspect_dataset(root, load_classes(root), **options)
    return {
        finding.kind: list(dict.fromkeys(file for entry in finding.entries for file in entry.files))
        for finding in report.findings
    }


def indices(root: Path, name: str, split: str = "train") -> list[np.ndarray]:
    paths = (root / split / f"label{date}" / f"{name}.png" for date in (1, 2))
    return [SECOND_CLASSES.to_index(read(path)) for path in paths]


def every_label(root: Path) -> list[Path]:
    return sorted(root.glob("*/label[12]/*.png"))


def rewrite_labels(root: Path, change) -> None:
    """Apply a function of the index mask to every label file."""
    for path in every_label(root):
        write(path, change(SECOND_CLASSES.to_index(read(path))))


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


def change_masks_in_train(root):
    """Change masks in both splits, in one file per pair or in one per date."""
    for path in every_label(root):
        mask = SECOND_CLASSES.to_index(read(path)) > 0
        target = path if "val" in path.parts else path.parents[1] / "label" / path.name
        target.parent.mkdir(exist_ok=True)
        write(target, mask.astype(np.uint8) * np.uint8(255))
    for folder in ("label1", "label2"):
        shutil.rmtree(root / "train" / folder)
    return {"labels-differ": ["train/label", "val/label1", "val/label2"]}


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
    labels_of_one_date, change_masks_in_train,
    foreign_values, foreign_colors, contradicting_palette, sixteen_bit_label, one_index_label,
    too_few_bands, values_with_a_fraction,
    disagree, same_class, nothing_changed, land_cover_as_labels, white_masks, class_never_used,
    exact_leak, lossy_leak, flipped_leak, duplicate, brighter_duplicate,
]  # fmt: skip
