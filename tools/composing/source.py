"""Single-date segmentation sets: find scenes, read their masks, divide them by scene."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.classes import CLASSES_FILE, ClassList
from datasets.images import open_image, read_bands, read_header
from datasets.labels import inspect_label
from datasets.pairs import IMAGE_SUFFIXES, files_by_stem, require_partners
from tools.checking.class_map import ClassMap
from tools.composing.regions import Tile
from utils.errors import DataError

Color = tuple[int, int, int]

SPLITS = ("train", "val")

MIN_SCENES = 2  # per split: a pair needs a scene and a donor


@dataclass(frozen=True)
class SceneFiles:
    """One single-date scene on disk.

    Attributes:
        name: the files' common stem.
        place: what must not be in two splits; the stem, or the part of it that names the place.
        image, mask: the files.
    """

    name: str
    place: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class MaskReader:
    """Reads masks as (H, W) uint8: 1..C, and 0 where the class is not known.

    Attributes:
        classes: what indices and colours mean; 0 is kept for *unchanged*.
        ignore: values and colours of pixels without a class.
        class_map: meaning of foreign values and colours; what it maps to 0 is not known.
    """

    classes: ClassList
    ignore: tuple[int | Color, ...] = ()
    class_map: ClassMap | None = None

    def __call__(self, path: Path) -> np.ndarray:
        """Read a mask.

        Raises:
            DataError: the file cannot be decoded, or has a value or colour without a meaning.
        """
        image = open_image(path)
        if self.class_map is not None:
            try:
                return self.class_map.apply(image)
            except ValueError as error:
                raise DataError(f"{path}: {error}") from error
        if image.mode == "RGBA":
            image = image.convert("RGB")  # as in labels, transparency says nothing
        values = np.array(image)
        if values.ndim == 3 and image.mode != "RGB":
            raise DataError(
                f"{path}: mode {image.mode} is no mask format; save class indices as an 8-bit grey "
                "or palette PNG, or class colours as RGB"
            )
        ignored = self._ignored(image, values)
        values[ignored] = self.classes.colors[1] if values.ndim == 3 else 1
        cleaned = Image.fromarray(values)
        if image.mode == "P":
            cleaned.putpalette(image.getpalette("RGB"), "RGB")
        reading = inspect_label(cleaned, self.classes)
        if reading.mask is None:
            raise DataError(
                f"{path}: {reading.format}, {reading.detail}; list every class in {CLASSES_FILE}, "
                "name values without a class with --ignore, or give a --class-map"
            )
        if not reading.mask.all():
            raise DataError(
                f"{path}: {np.count_nonzero(reading.mask == 0)} pixels have value or colour 0, "
                f"{self.classes.names[0]!r}, which is no class; pass --ignore 0 (or its colour) "
                'where the class is not known, or a --class-map like {"0": "building", …} where '
                "classes count from 0"
            )
        return np.where(ignored, 0, reading.mask).astype(np.uint8)

    def _ignored(self, image: Image.Image, values: np.ndarray) -> np.ndarray:
        if values.ndim == 3:
            colors = [entry for entry in self.ignore if not isinstance(entry, int)]
            planes = np.moveaxis(values, -1, 0)
            masks = [
                np.logical_and.reduce([p == c for p, c in zip(planes, color, strict=True)])
                for color in colors
            ]
            return np.logical_or.reduce(masks) if masks else np.zeros(values.shape[:2], dtype=bool)
        numbers = [entry for entry in self.ignore if isinstance(entry, int)]
        if image.mode == "P":
            palette = np.asarray(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3).tolist()
            numbers += [i for i, color in enumerate(palette) if tuple(color) in self.ignore]
        return np.isin(values, numbers)


def find_scenes(images: Path, masks: Path, pattern: str | None = None) -> list[SceneFiles]:
    """Pair the image and mask files of two folders by stem.

    Args:
        images: folder of images.
        masks: folder of masks.
        pattern: regular expression for the part of a stem that names the place; None takes all.

    Raises:
        DataError: a folder is missing or empty, a file has no partner, a stem is there twice, or
            the pattern is not in a stem.
    """
    image_files, mask_files = (
        _find_files(Path(folder), option)
        for folder, option in ((images, "--images"), (masks, "--masks"))
    )
    require_partners(image_files, mask_files, images, masks)
    scenes = []
    for stem in sorted(image_files):
        match = re.search(pattern, stem) if pattern else None
        if pattern and not (match and match[0]):
            raise DataError(f"{image_files[stem]}: --scene-pattern {pattern!r} is not in its name")
        place = match[0] if match else stem
        scenes.append(SceneFiles(stem, place, image_files[stem], mask_files[stem]))
    return scenes


def _find_files(folder: Path, option: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; correct {option}")
    files = files_by_stem(folder, IMAGE_SUFFIXES)
    if not files:
        kinds = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
        raise DataError(f"{folder}: no images in it; expected {kinds} files")
    return files


def split_scenes(
    scenes: Sequence[SceneFiles], val: float | Sequence[str], seed: int
) -> dict[str, list[SceneFiles]]:
    """Divide scenes so that no place is in both splits.

    Args:
        scenes: what `find_scenes` found.
        val: share of the scenes to validate on, whole places drawn at random; or stems, places, or
            patterns with ``*`` of either.
        seed: decides the draw.

    Returns:
        Scenes of ``train`` and ``val``; ``val`` is empty for a share of 0.

    Raises:
        DataError: a name fits no scene.
    """
    if isinstance(val, int | float):
        places = sorted({scene.place for scene in scenes})
        order = np.random.default_rng((seed, len(SPLITS))).permutation(len(places))
        chosen: set[str] = set()
        for index in order:
            if sum(scene.place in chosen for scene in scenes) >= round(val * len(scenes)):
                break
            chosen.add(places[index])
    else:
        chosen = set()
        for pattern in val:
            fitting = {s.place for s in scenes if _fits(s, pattern)}
            if not fitting:
                raise DataError(
                    f"--val-scenes: {pattern!r} fits no scene; the first is {scenes[0].name!r}"
                )
            chosen |= fitting
    return {
        "train": [scene for scene in scenes if scene.place not in chosen],
        "val": [scene for scene in scenes if scene.place in chosen],
    }


def _fits(scene: SceneFiles, pattern: str) -> bool:
    return fnmatchcase(scene.name, pattern) or fnmatchcase(scene.place, pattern)


def require_scenes(split: str, scenes: Sequence[SceneFiles]) -> None:
    """Refuse a split that cannot give a pair.

    Raises:
        DataError: fewer than `MIN_SCENES` scenes.
    """
    if len(scenes) < MIN_SCENES:
        raise DataError(
            f"{split}: {len(scenes)} scenes, but a pair needs {MIN_SCENES}, a place and another to "
            f"paste from; change --val-scenes, add scenes, or pass --{split}-pairs 0"
        )


def check_scene(scene: SceneFiles, read_mask: MaskReader, size: int) -> np.ndarray:
    """Check a scene's sizes and mask; return its pixels per class, (C + 1) integers.

    Raises:
        DataError: the mask is not as `MaskReader` needs it, image and mask differ in size, they are
            smaller than ``size``, or the image is no 8-bit one of three bands.
    """
    header = read_header(scene.image)
    if not header.is_rgb:
        raise DataError(
            f"{scene.image}: {header.bands} bands of {header.dtype}; pairs are composed of 8-bit "
            "grey or RGB images alone: convert all, with one scale"
        )
    height, width = header.height, header.width
    truth = read_mask(scene.mask)
    if truth.shape != (height, width):
        raise DataError(
            f"{scene.mask}: {truth.shape[1]} × {truth.shape[0]} pixels, but {scene.image} has "
            f"{width} × {height}; they must be of one size"
        )
    if min(height, width) < size:
        raise DataError(
            f"{scene.image}: {width} × {height} pixels, less than --size {size}; choose a smaller "
            "--size or remove the scene"
        )
    return np.bincount(truth.ravel(), minlength=read_mask.classes.num_classes + 1)


def read_tile(
    scene: SceneFiles, read_mask: MaskReader, size: int, rng: np.random.Generator, tries: int = 4
) -> Tile:
    """Read a scene and cut a random square of it, of several the one whose class is known best."""
    image, truth = read_bands(scene.image), read_mask(scene.mask)
    best, best_known = (0, 0), -1
    for _ in range(tries):
        top, left = (int(rng.integers(side - size + 1)) for side in truth.shape)
        known = np.count_nonzero(truth[top : top + size, left : left + size])
        if known > best_known:
            best, best_known = (top, left), known
        if 2 * known > size * size:
            break
    window = tuple(slice(start, start + size) for start in best)
    return Tile(image[window], truth[window])
