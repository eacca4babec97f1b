"""Damages of a sample set; each returns the findings that it must give, with their files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
from PIL import ExifTags, Image

from datasets.classes import SECOND_CLASSES
from datasets.images import save_raster
from datasets.task import load_classes
from tests.helpers.image_files import read, write
from tests.helpers.raster_files import write_tiff
from tools.checking.inspection import CheckOptions, inspect_dataset

to_index = SECOND_CLASSES.to_index
COLORS = np.asarray(SECOND_CLASSES.colors, dtype=np.uint8)
FOLDERS = ("im1", "im2", "label1", "label2")


def kinds(root: Path, **options) -> dict[str, list[str]]:
    """Files by kind of finding."""
    report = inspect_dataset(root, load_classes(root), CheckOptions(**options))
    return {
        finding.kind: list(dict.fromkeys(file for entry in finding.entries for file in entry.files))
        for finding in report.findings
    }


def all_files(kind: str) -> list[str]:
    """Images or labels of the sample set, in the order of an inspection."""
    pairs = [("train", i) for i in range(12)] + [("val", i) for i in range(4)]
    return [f"{split}/{kind}{date}/{i:05d}.png" for split, i in pairs for date in (1, 2)]


def edit(path: Path, change) -> None:
    """Apply a function of its pixels to a file."""
    write(path, np.ascontiguousarray(change(read(path))))


def indices(root: Path, name: str) -> list[np.ndarray]:
    paths = (root / f"train/label{date}/{name}.png" for date in (1, 2))
    return [to_index(read(path)) for path in paths]


def every_label(root: Path) -> list[Path]:
    return sorted(root.glob("*/label[12]/*.png"))


def rewrite_labels(root: Path, change) -> None:
    """Apply a function of the index mask to every label file."""
    for path in every_label(root):
        edit(path, lambda rgb: change(to_index(rgb)))


def write_classes(root: Path, *more: tuple[str, tuple[int, int, int]]) -> None:
    """List SECOND's classes and more in classes.json."""
    entries = [*zip(SECOND_CLASSES.names, SECOND_CLASSES.colors, strict=True), *more]
    text = json.dumps([{"name": name, "color": color} for name, color in entries])
    (root / "classes.json").write_text(text)


def rename_pair(root: Path, old: str, new: str, split: str = "train") -> None:
    for folder in FOLDERS:
        (root / split / folder / f"{old}.png").rename(root / split / folder / f"{new}.png")


def repaint(kind: str, files: list[str], change):
    """Return the damage that changes the pixels of some files, each of which is then found."""

    def damage(root):
        for file in files:
            edit(root / file, change)
        return {kind: files}

    damage.__name__ = kind
    return damage


def painted(side: int, color) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that paints a square in the corner of a picture."""
    corner = np.arange(64) < side
    return lambda rgb: np.where((corner & corner[:, None])[..., None], np.uint8(color), rgb)


def smeared(rgb: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).integers(-8, 9, rgb.shape)
    return np.clip(rgb + noise, 0, 255).astype(np.uint8)


def black_and_white(rgb: np.ndarray) -> np.ndarray:
    return np.where((rgb == 255).all(axis=-1, keepdims=True), rgb, np.uint8(0))


IMAGE, OTHER = "train/im1/00004.png", "train/im1/00005.png"
LABEL = "train/label2/00003.png"
LABELS = ["train/label1/00003.png", LABEL]

too_few_bands = repaint("band-count", all_files("im"), lambda rgb: rgb[..., 0] * np.uint16(40))
grey_image = repaint("mixed-modes", [IMAGE], lambda rgb: rgb[..., 1])
# The two are equal, but no copies of one another.
blank = repaint("blank-image", [IMAGE, OTHER], lambda rgb: np.full_like(rgb, 9))
smear_labels = repaint("label-near-colours", LABELS, smeared)
black_and_white_label = repaint("label-binary", [LABEL], black_and_white)
foreign_colors = repaint("label-colours", [LABEL], painted(9, (255, 128, 0)))
one_index_label = repaint("mixed-formats", [LABEL], to_index)
sixteen_bit_label = repaint("label-mode", [LABEL], lambda rgb: to_index(rgb).astype(np.uint16))
same_class = repaint("same-class", LABELS, painted(4, COLORS[4]))
white_masks = repaint("all-marked", all_files("label"), lambda rgb: np.full_like(rgb[..., 0], 255))


def truncate(root):
    path = root / "train/im2/00001.png"
    path.write_bytes(path.read_bytes()[:2000])
    return {"unreadable": ["train/im2/00001.png"]}


def replace_by_text(root):
    (root / "val/label1/00002.png").write_text("no image")
    return {"unreadable": ["val/label1/00002.png"]}


def remove_partner(root):
    (root / "train/im2/00005.png").unlink()
    return {"no-partner": [f"train/{folder}/00005.png" for folder in ("im1", "label1", "label2")]}


def remove_label(root):
    (root / "val/label2/00003.png").unlink()
    return {"no-partner": [f"val/{folder}/00003.png" for folder in FOLDERS[:3]]}


def rename_partner(root):
    rename_pair(root, "00006", "b6")
    (root / "train/im2/b6.png").rename(root / "train/im2/B6.png")
    others = [f"train/{folder}/b6.png" for folder in ("im1", "label1", "label2")]
    return {"partner-case": ["train/im2/B6.png", *others]}


def names_alike(root):
    rename_pair(root, "00006", "b6")
    rename_pair(root, "00007", "B6")
    return {"name-case": [f"train/{f}/{name}.png" for f in FOLDERS for name in ("B6", "b6")]}


def same_stem(root):
    Image.open(root / "train/im1/00002.png").save(root / "train/im1/00002.bmp")
    return {"same-stem": ["train/im1/00002.bmp", "train/im1/00002.png"]}


def other_form(root):
    rename_pair(root, "00006", "caf\u00e9")
    (root / "train/im2/caf\u00e9.png").rename(root / "train/im2/cafe\u0301.png")
    others = [f"train/{folder}/caf\u00e9.png" for folder in ("im1", "label1", "label2")]
    return {"partner-form": ["train/im2/cafe\u0301.png", *others]}


def unread_format(root):
    files = [f"train/{folder}/more.webp" for folder in ("im1", "im2")]
    for name in files:
        Image.new("RGB", (64, 64)).save(root / name)
    return {"unread-pair": files, "ignored-files": files}


def other_order(root):
    """Index labels in ChangeMamba's order, with the shares that SECOND's changed pixels have."""
    rng, shares = np.random.default_rng(0), (0.215, 0.371, 0.045, 0.01, 0.351, 0.008)
    for path in root.glob("*/label1/*.png"):
        changed = (read(path) != 255).any(axis=-1)
        date1, date2 = 1 + rng.choice(6, (2, *changed.shape), p=shares)
        while (date1 == date2).any():
            other = 1 + rng.choice(6, changed.shape, p=shares)
            date2 = np.where(date1 == date2, other, date2)
        write(path, (date1 * changed).astype(np.uint8))
        write(path.parents[1] / "label2" / path.name, (date2 * changed).astype(np.uint8))
    return {"class-order": []}


def copies_apart(root):
    for split, name in (("train", "tile1"), ("val", "tile1rotate90")):
        rename_pair(root, "00003", name, split)
    return {"leak-copies": ["tile1", "tile1rotate90"]}


def foreign_file(root):
    (root / "train/im1/notes.txt").write_text("hello")
    return {"ignored-files": ["train/im1/notes.txt"]}


def no_labels(root):
    for folder in ("label1", "label2"):
        shutil.rmtree(root / "train" / folder)
    return {"no-labels": ["train"]}


def labels_of_one_date(root):
    shutil.rmtree(root / "train/label2")
    return {"one-date": ["train/label1"]}


def change_masks_in_train(root):
    """Change masks in both splits, in one file per pair or in one per date."""
    rewrite_labels(root, lambda mask: (mask > 0).astype(np.uint8) * np.uint8(255))
    (root / "train/label1").rename(root / "train/label")
    shutil.rmtree(root / "train/label2")
    return {"labels-differ": ["train/label", "val/label1", "val/label2"]}


def other_size_in_pair(root):
    edit(root / "val/im2/00001.png", lambda image: image[:48])
    files = [f"val/{folder}/00001.png" for folder in FOLDERS]
    return {"size-mismatch": files, "mixed-sizes": ["val/im2/00001.png"]}


def other_size(root):
    for folder in FOLDERS:
        edit(root / "val" / folder / "00001.png", lambda image: image[8:56])
    return {"mixed-sizes": ["val/im1/00001.png", "val/im2/00001.png"]}


def sixteen_bits(root):
    files = [file for file in all_files("im") if file.startswith("val")]
    for file in files:
        save_raster(root / file, read(root / file).astype(np.uint16) * 40)
    return {"mixed-depth": files}


def values_with_a_fraction(root):
    path = root / IMAGE
    Image.fromarray(read(path)[..., 0].astype(np.float32)).save(path.with_suffix(".tif"))
    path.unlink()
    return {"bit-depth": ["train/im1/00004.tif"], "mixed-modes": ["train/im1/00004.tif"]}


def same_dates(root):
    write(root / "train/im2/00004.png", read(root / "train/im1/00004.png"), compress_level=9)
    return {"same-image": ["train/im1/00004.png", "train/im2/00004.png"]}


def binary_labels(root):
    """Change masks in a set that lists classes; without the list they would be one of change."""
    write_classes(root)
    rewrite_labels(root, lambda mask: (mask > 0).astype(np.uint8) * 255)
    return {"label-binary": all_files("label")}


def foreign_values(root):
    rewrite_labels(root, lambda mask: np.where(mask == 6, 17, mask).astype(np.uint8))
    having = [file for file in all_files("label") if 17 in read(root / file)]
    return {"label-values": having, "class-missing": []}


def renumbered_palette(root, foreign=0):
    """Class colours in another order, and some pixels in a colour of no class."""
    mask = (indices(root, "00003")[1] + 6) % 7
    mask.ravel()[:foreign] = 7
    image = Image.fromarray(mask)
    image.putpalette(np.roll(COLORS, -1, axis=0).tobytes() + bytes([9, 200, 7]))
    image.save(root / LABEL)


def contradicting_palette(root):
    renumbered_palette(root, foreign=5)
    return {"label-palette": [LABEL]}


def disagree(root):
    mask = read(root / LABEL)
    mask[indices(root, "00003")[0] > 0] = COLORS[0]
    write(root / LABEL, mask)
    return {"labels-disagree": LABELS}


def nothing_changed(root):
    for path in (root / "val").glob("label[12]/*.png"):
        write(path, np.full((64, 64, 3), 255, np.uint8))
    return {"all-unchanged": [f"val/label1/{i:05d}.png" for i in range(4)]}


def land_cover_as_labels(root):
    for path in every_label(root):
        truth = path.parents[1] / path.parent.name.replace("label", "truth") / path.name
        write(path, COLORS[read(truth)])
    return {"all-changed": all_files("label")}


def class_never_used(root):
    write_classes(root, ("snow", (1, 2, 3)))
    return {"class-missing": []}


def exact_leak(root):
    for folder in FOLDERS:
        shutil.copy(root / "train" / folder / "00003.png", root / "val" / folder / "00001.png")
    # Other bytes, the same pixels: what counts is the decoded image.
    write(root / "val/im1/00001.png", read(root / "train/im1/00003.png"), compress_level=0)
    names = ("train/im1/00003", "val/im1/00001", "train/im2/00003", "val/im2/00001")
    return {"leak-exact": [f"{name}.png" for name in names]}


def lossy_leak(root):
    for folder in ("im1", "label1", "label2"):
        shutil.copy(root / "train" / folder / "00003.png", root / "val" / folder / "00001.png")
    path = root / "val/im1/00001.png"
    Image.open(path).save(path.with_suffix(".jpg"), quality=75)
    path.unlink()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    write(root / "val/im2/00001.png", noise)  # the other date has nothing to do with training
    return {"leak-near": ["val/im1/00001.jpg", "train/im1/00003.png"]}


def flipped_leak(root):
    for folder in FOLDERS:
        shutil.copy(root / "train" / folder / "00003.png", root / "val" / folder / "00001.png")
        edit(root / "val" / folder / "00001.png", lambda image: np.rot90(image)[:, ::-1])
    names = ("val/im1/00001", "train/im1/00003", "val/im2/00001", "train/im2/00003")
    return {"leak-near": [f"{name}.png" for name in names]}


def duplicate(root):
    shutil.copy(root / "train/im2/00003.png", root / "train/im1/00008.png")
    return {"duplicate-exact": ["train/im2/00003.png", "train/im1/00008.png"]}


def brighter_duplicate(root):
    duplicate(root)
    edit(root / "train/im1/00008.png", lambda image: (image * 0.9 + 12).astype(np.uint8))
    return {"duplicate-near": ["train/im1/00008.png", "train/im2/00003.png"]}


def transparent(root):
    path = root / IMAGE
    image = Image.open(path)
    image.save(path, transparency=image.getpixel((5, 5)))
    return {"no-data": [IMAGE]}


def turned(root):
    files = [IMAGE, "train/label2/00005.png"]
    for name in files:
        image, exif = Image.open(root / name), Image.Exif()
        exif[ExifTags.Base.Orientation] = 2
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / name, exif=exif)
    return {"orientation": files}


def _on_the_map(root, *names, left):
    for name in names:
        values = read(root / name)
        place = rasterio.transform.from_origin(left, 0, 10, 10)
        (root / name).unlink()
        write_tiff((root / name).with_suffix(".tif"), values, crs="EPSG:32632", transform=place)


def elsewhere(root):
    _on_the_map(root, "train/im1/00004.png", left=0)
    _on_the_map(root, "train/im2/00004.png", left=320)
    return {"places-differ": ["train/im1/00004.tif", "train/im2/00004.tif"]}


def label_elsewhere(root):
    _on_the_map(root, "train/im1/00004.png", "train/im2/00004.png", left=0)
    _on_the_map(root, "train/label2/00004.png", left=9)
    return {"label-place": ["train/im1/00004.tif", "train/label2/00004.tif"]}


def another_scale(root):
    for path in root.glob("*/im2/*.png"):
        edit(path, lambda rgb: rgb // 8)
    return {"dates-differ": [f"{split}/im{date}" for split in ("train", "val") for date in (1, 2)]}


def grey_date(root):
    for path in root.glob("*/im1/*.png"):
        edit(path, lambda rgb: rgb[..., 1])
    return {"dates-differ": [f"{split}/im{date}" for split in ("train", "val") for date in (1, 2)]}


DAMAGES = [
    truncate, replace_by_text, remove_partner, remove_label, rename_partner, names_alike, same_stem,
    foreign_file, other_form, unread_format, other_order, copies_apart,
    no_labels, labels_of_one_date, change_masks_in_train, other_size_in_pair,
    other_size, sixteen_bits, too_few_bands, values_with_a_fraction, grey_image, blank, same_dates,
    smear_labels, binary_labels, black_and_white_label, foreign_values, foreign_colors,
    contradicting_palette, sixteen_bit_label, one_index_label, disagree, same_class,
    nothing_changed, land_cover_as_labels, white_masks, class_never_used, exact_leak, lossy_leak,
    flipped_leak, duplicate, brighter_duplicate, transparent, turned, elsewhere, label_elsewhere,
    another_scale, grey_date,
]  # fmt: skip
