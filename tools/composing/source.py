"""Single-date segmentation sets: find scenes, read their masks, divide them by scene."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from datasets.classes import CLASSES_FILE, ClassList, classes_file, read_classes
from datasets.images import fill_gaps, open_image, read_header, read_masked
from datasets.pairs import IMAGE_SUFFIXES, files_by_stem, require_partners
from tools.checking.class_map import ClassMap, parse_class_map
from tools.composing.regions import Tile
from tools.scenes.folders import SPLITS
from utils.errors import DataError, OptionError

TILE_TRIES = 4  # squares that are looked at before one of a scene is cut


@dataclass(frozen=True)
class SceneFiles:
    """One single-date scene on disk."""

    name: str  # the files' common stem
    place: str  # what must not be in two splits; the stem, or the part that names the place
    image: Path
    mask: Path


@dataclass(frozen=True)
class MaskReader:
    """Reads masks as (H, W) uint8: 1..C, and 0 where the class is not known."""

    classes: ClassList
    class_map: ClassMap

    def __call__(self, path: Path) -> np.ndarray:
        """Read a mask; a value or colour without a meaning is a DataError."""
        try:
            return self.class_map.apply(open_image(path))
        except ValueError as error:
            raise DataError(
                f"{path}: {error}; {CLASSES_FILE}, --ignore or --class-map say what values and "
                f"colours mean, and 0 is {self.classes.names[0]!r}, which is no class"
            ) from error


def ignoring(classes: ClassList, ignore: Sequence[str]) -> ClassMap:
    """Return the meaning of masks that hold class indices or colours, where ``ignore`` means none.

    ``ignore`` are values, colours and names; a class goes by its value and its colour alike.
    """
    ignored = parse_class_map("--ignore", dict.fromkeys(ignore, 0), classes, classes)
    values, colors = dict(ignored.values), dict(ignored.colors)
    for index, color in enumerate(classes.colors):
        unknown = index in ignored.values or color in ignored.colors
        if index or unknown:
            values[index] = colors[color] = 0 if unknown else index
    return ClassMap(values, colors)


def find_classes(path: Path | None, images: Path) -> ClassList:
    """Read two or more classes: of the file that is named, else of a classes.json at the images."""
    if path is None:
        candidates = [folder / CLASSES_FILE for folder in (images, images.absolute().parent)]
        path = next((file for file in candidates if file.is_file()), None)
        if path is None:
            raise DataError(
                f"no {CLASSES_FILE} in {images} or the folder above; name one with --classes"
            )
    classes = read_classes(classes_file(path))
    if classes.num_classes < 2:
        raise DataError(
            f"the class list has one class beside {classes.names[0]!r}; a change needs two classes"
        )
    return classes


def find_scenes(images: Path, masks: Path, pattern: str = ".*") -> list[SceneFiles]:
    """Pair the image and mask files of two folders by stem.

    ``pattern`` is a regular expression for the part of a stem that names the place.

    Raises:
        DataError: a folder is missing or empty, a file has no partner, a stem is there twice, or
            the pattern is not in a stem.
        OptionError: the pattern is no regular expression.
    """
    try:
        place = re.compile(pattern)
    except re.error as error:
        raise OptionError(f"--scene-pattern {pattern!r}: {error}; correct the regex") from error
    for folder, option in ((images, "--images"), (masks, "--masks")):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; correct {option}")
    image_files, mask_files = (files_by_stem(folder, IMAGE_SUFFIXES) for folder in (images, masks))
    if not (image_files and mask_files):
        kinds = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
        raise DataError(f"{masks if image_files else images}: no images in it; expected {kinds}")
    require_partners(image_files, mask_files, images, masks)
    scenes = []
    for stem in sorted(image_files):
        match = place.search(stem)
        if not (match and match[0]):
            raise DataError(f"{image_files[stem]}: --scene-pattern {pattern!r} is not in its name")
        scenes.append(SceneFiles(stem, match[0], image_files[stem], mask_files[stem]))
    return scenes


def split_scenes(
    scenes: Sequence[SceneFiles], val: float | Sequence[str], seed: int
) -> dict[str, list[SceneFiles]]:
    """Divide scenes into ``train`` and ``val`` so that no place is in both.

    ``val`` is the share of the scenes to validate on, whole places drawn at random by ``seed``; or
    stems, places, or patterns with ``*`` of either, each of which has to fit a scene.
    """
    chosen: set[str] = set()
    if isinstance(val, float):
        places = sorted({scene.place for scene in scenes})
        for index in np.random.default_rng((seed, len(SPLITS))).permutation(len(places)):
            if sum(scene.place in chosen for scene in scenes) >= round(val * len(scenes)):
                break
            chosen.add(places[index])
    else:
        for pattern in val:
            fits = [any(fnmatchcase(n, pattern) for n in (s.name, s.place)) for s in scenes]
            fitting = {scene.place for scene, fit in zip(scenes, fits, strict=True) if fit}
            if not fitting:
                raise DataError(
                    f"--val-scenes: {pattern!r} fits no scene; the first is {scenes[0].name!r}"
                )
            chosen |= fitting
    return {
        "train": [scene for scene in scenes if scene.place not in chosen],
        "val": [scene for scene in scenes if scene.place in chosen],
    }


def check_scene(scene: SceneFiles, read_mask: MaskReader, size: int) -> np.ndarray:
    """Check image, mask and their sizes; return the pixels per class, (C + 1) integers."""
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
    scene: SceneFiles, read_mask: MaskReader, size: int, rng: np.random.Generator
) -> Tile:
    """Read a scene and cut a random square of it, of several the one whose class is known best."""
    (image, valid), truth = read_masked(scene.image), read_mask(scene.mask)
    if valid is not None:
        image, truth = fill_gaps(image, valid), truth * valid
    best, best_known = None, -1
    for _ in range(TILE_TRIES):
        top, left = (int(rng.integers(side - size + 1)) for side in truth.shape)
        window = slice(top, top + size), slice(left, left + size)
        known = np.count_nonzero(truth[window])
        if known > best_known:
            best, best_known = Tile(image[window], truth[window]), known
        if 2 * known > size * size:
            break
    return best
