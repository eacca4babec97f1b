"""Regions of single-date scenes that are pasted elsewhere: objects and parcels, with soft edges."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

MIN_AREA = 16  # pixels; smaller regions are not worth a paste
CORNERS = (2, 4, 16)  # exponents of the parcels' outline: ellipse, rounded, nearly a rectangle


@dataclass(frozen=True)
class Tile:
    """A single-date scene."""

    image: np.ndarray  # (H, W, 3) in 0..255
    truth: np.ndarray  # (H, W) uint8, the class 1..C of every pixel; 0 where it is not known


def turned(tile: Tile, rng: np.random.Generator) -> Tile:
    """Flip and turn a tile at random; one that is not square by 180 degrees only."""
    height, width = tile.truth.shape
    turns = int(rng.integers(4)) if height == width else 2 * int(rng.integers(2))
    flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
    return Tile(np.rot90(tile.image, turns)[:, flip], np.rot90(tile.truth, turns)[:, flip])


def draw_region(
    truth: np.ndarray, area: float, rng: np.random.Generator, objects: float
) -> np.ndarray:
    """Choose a part of a tile, of ``area`` pixels at the most, as a (H, W) bool mask.

    With a chance of ``objects`` it is one connected region of a class, or a part of one; else it is
    a parcel with whatever classes there are. All False where no class is known.
    """
    if rng.random() >= objects:
        return (truth > 0) & parcel(truth.shape, area, rng)
    mask = class_object(truth, rng)
    return _part_of(mask, area, rng) if np.count_nonzero(mask) > area else mask


def parcel(shape: tuple[int, int], area: float, rng: np.random.Generator) -> np.ndarray:
    """Return a (H, W) bool mask of one turned ellipse or rounded rectangle.

    It has ``area`` pixels, or less where it crosses the frame.
    """
    height, width = shape
    power = int(rng.choice(CORNERS))
    unit = 4 * math.gamma(1 + 1 / power) ** 2 / math.gamma(1 + 2 / power)
    aspect, angle = math.exp(rng.uniform(-0.7, 0.7)), rng.uniform(0, math.pi)
    y = np.arange(height, dtype=np.float32)[:, None] - rng.uniform(0, height)
    x = np.arange(width, dtype=np.float32)[None] - rng.uniform(0, width)
    u = (math.cos(angle) * x + math.sin(angle) * y) / math.sqrt(area / unit * aspect)
    v = (math.cos(angle) * y - math.sin(angle) * x) / math.sqrt(area / unit / aspect)
    u, v = np.minimum(u * u, 4), np.minimum(v * v, 4)  # 4: outside, and no power overflows
    while power > 2:
        u, v, power = u * u, v * v, power // 2
    return u + v < 1


def class_object(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a (H, W) bool mask of one connected region of a class; each class is as likely.

    All False where no class is known.
    """
    classes = np.flatnonzero(np.bincount(truth.ravel())[1:]) + 1
    if not len(classes):
        return np.zeros(truth.shape, dtype=bool)
    of_class = np.ascontiguousarray(truth == rng.choice(classes))
    _, regions = cv2.connectedComponents(of_class.astype(np.uint8), connectivity=4)
    areas = np.bincount(regions.ravel())
    areas[0] = 0  # the other classes
    return regions == rng.choice(np.flatnonzero(areas >= min(MIN_AREA, areas.max())))


def _part_of(mask: np.ndarray, area: float, rng: np.random.Generator) -> np.ndarray:
    """A parcel of a large region, about one of its pixels."""
    height, width = mask.shape
    pixels = np.argwhere(mask)
    chosen = pixels[rng.integers(len(pixels))]
    around = parcel(mask.shape, area, rng)
    middle = np.argwhere(around).mean(axis=0) if around.any() else np.zeros(2)
    down, right = (chosen - middle).round().astype(int)
    moved = np.pad(around, ((height, height), (width, width)))
    return mask & moved[height - down :, width - right :][:height, :width]


def feather_edge(mask: np.ndarray, radius: int) -> np.ndarray:
    """Return the opacity of a paste, (H, W) float32 in 0..1.

    At least 0.6 inside the mask, at most 0.5 outside, and 0 where the mask is more than ``radius``
    rows or columns away, so that a label never contradicts what is mostly seen.
    """
    if radius == 0:
        return mask.astype(np.float32)
    height, width = mask.shape
    soft = np.pad(mask.astype(np.float32), radius)
    weights = np.minimum(np.arange(1, 2 * radius + 2), np.arange(2 * radius + 1, 0, -1))
    weights = (weights / weights.sum()).astype(np.float32)
    soft = sum(w * soft[i : i + height] for i, w in enumerate(weights))
    soft = sum(w * soft[:, i : i + width] for i, w in enumerate(weights))
    return np.where(mask, np.clip(soft, 0.6, 1), np.minimum(soft, 0.5)).astype(np.float32)
