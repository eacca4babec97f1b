"""Bi-temporal pairs composed from single-date scenes: pure functions over arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from tools.composing.nuisance import disturb
from tools.composing.regions import MIN_AREA, Tile, draw_region, feather_edge, turned
from tools.scenes.scene import Scene

MAX_PASTES = 60  # tries per pair; scenes of one class would never reach their share
PLACES = 8  # positions tried per region
CLOSE_ENOUGH = 0.05  # of the share to be changed


@dataclass(frozen=True)
class Recipe:
    """How pairs are composed."""

    changed: float = 0.2  # mean share of the known pixels; a pair's own is 0.5 to 1.5 times it
    objects: float = 0.5  # share of pastes that are one connected region; others are parcels
    distractors: float = 3.0  # mean number of pastes per pair that keep every pixel's class
    feather: int = 2  # pixels beyond its edge up to which a paste shows; 0 gives hard edges
    nuisance: float = 1.0  # strength; 0 leaves unchanged pixels equal
    size: int = 256  # side of a pair, in pixels


Donor = tuple[Tile, np.ndarray]  # regions are taken from it; and how much darker it is, (3,)


def compose_pair(
    scene: Tile, donors: Sequence[Tile], seed: int | Sequence[int], recipe: Recipe
) -> Scene:
    """Make a pair from one place and from regions of others.

    Both dates start as ``scene``. Regions of the donors are pasted into one date or the other
    until the share of pixels that differ in class is reached; other pastes keep the class of every
    pixel. Pixels without a known class, of the scene or of a donor, are neither pasted nor pasted
    over, so ``truth1`` and ``truth2`` are 0 in the same pixels. All tiles are of one size, and
    ``seed`` decides every draw.
    """
    rng = np.random.default_rng(seed)
    light = _light(scene)
    sources = [(turned(donor, rng), light - _light(donor)) for donor in donors]
    dates = [Tile(scene.image.astype(np.float32), scene.truth.copy()) for _ in range(2)]

    def paste(area: float, change: bool) -> None:
        date = dates[rng.integers(2)]
        _paste_region(date, sources[rng.integers(len(sources))], area, change, rng, recipe)

    target = recipe.changed * rng.uniform(0.5, 1.5) * np.count_nonzero(scene.truth)
    target = min(target, scene.truth.size)
    for _ in range(MAX_PASTES):
        missing = target - np.count_nonzero(dates[0].truth != dates[1].truth)
        if missing < max(MIN_AREA, CLOSE_ENOUGH * target):
            break
        paste(max(MIN_AREA, missing * rng.uniform(0.2, 0.9)), change=True)
    for _ in range(rng.poisson(recipe.distractors)):
        paste(scene.truth.size * rng.uniform(0.005, 0.06), change=False)
    images = [disturb(date.image, rng, recipe.nuisance) for date in dates]
    return Scene.of(images, [date.truth for date in dates])


def _light(tile: Tile) -> np.ndarray:
    return tile.image.reshape(-1, 3).mean(axis=0, dtype=np.float32)


def _paste_region(
    date: Tile, donor: Donor, area: float, change: bool, rng: np.random.Generator, recipe: Recipe
) -> None:
    """Paste at most ``area`` pixels: where classes differ, or where they are the same."""
    tile, tone = donor
    region = draw_region(tile.truth, area, rng, recipe.objects)
    if not region.any():
        return
    left, top, width, height = cv2.boundingRect(region.astype(np.uint8))

    def window(truth: np.ndarray, top: int, left: int) -> np.ndarray:
        return truth[top : top + height, left : left + width]

    region, source = window(region, top, left), window(tile.truth, top, left)
    best, best_count, best_place = region, 0, (0, 0)
    for _ in range(PLACES):
        room = date.truth.shape[0] - height + 1, date.truth.shape[1] - width + 1
        place = int(rng.integers(room[0])), int(rng.integers(room[1]))
        target = window(date.truth, *place)
        fits = region & ((target != source) & (target > 0) if change else target == source)
        count = np.count_nonzero(fits)
        if count > best_count:
            # A change takes the whole region along: its parts of equal class are distractors.
            best, best_count = (region & (target > 0) if change else fits), count
            best_place = place
        if 2 * count > np.count_nonzero(region):
            break
    if best_count < MIN_AREA:
        return
    feather = int(rng.integers(1, recipe.feather + 1)) if recipe.feather else 0
    # Towards the light of the scene, by a share of the way: a paste must not be told by its tone.
    tint = np.float32(rng.uniform(0, 1)) * tone
    placed = np.zeros(date.truth.shape, dtype=bool)
    window(placed, *best_place)[:] = best
    rows, columns = (np.arange(side) for side in placed.shape)
    patch = tile.image.take(rows + top - best_place[0], axis=0, mode="clip")
    patch = patch.take(columns + left - best_place[1], axis=1, mode="clip")
    opacity = feather_edge(placed, feather)[..., None]
    date.image[:] += opacity * (np.clip(patch + tint, 0, 255) - date.image)
    date.truth[placed] = source[best]
