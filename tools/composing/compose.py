"""Bi-temporal pairs composed from single-date scenes: pure functions over arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tools.composing.nuisance import disturb
from tools.composing.regions import MIN_AREA, Region, Tile, draw_region, feather_edge, turned
from tools.scenes.scene import Scene

MAX_PASTES = 60  # tries per pair; scenes of one class would never reach their share

PLACES = 8  # positions tried per region

CLOSE_ENOUGH = 0.05  # of the share to be changed


@dataclass(frozen=True)
class Recipe:
    """How pairs are composed.

    Attributes:
        changed: mean share of the pixels of known class that change, 0..1; a pair's own share is
            0.5 to 1.5 times it.
        objects: share of the pastes that are one connected region of a class; others are parcels.
        distractors: mean number of pastes per pair that keep every pixel's class.
        feather: pixels beyond its edge up to which a paste shows; 0 gives hard edges.
        nuisance: strength of what differs between the dates without being a change; 1 is usual, 0
            leaves unchanged pixels equal.

    Raises:
        ValueError: a number outside its range.
    """

    changed: float = 0.2
    objects: float = 0.5
    distractors: float = 3.0
    feather: int = 2
    nuisance: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.changed <= 1 and 0 <= self.objects <= 1):
            raise ValueError("changed and objects are shares, 0 to 1")
        if min(self.distractors, self.feather, self.nuisance) < 0:
            raise ValueError("distractors, feather and nuisance are at least 0")


@dataclass(frozen=True)
class Date:
    """What one date shows so far, changed in place: (H, W, 3) float32 in 0..255, (H, W) uint8."""

    image: np.ndarray
    truth: np.ndarray


@dataclass(frozen=True)
class Donor:
    """A tile that regions are taken from, and how much brighter the scene is, (3,) float32."""

    tile: Tile
    tone: np.ndarray


def compose_pair(
    scene: Tile,
    donors: Sequence[Tile],
    seed: int | Sequence[int],
    recipe: Recipe | None = None,
) -> Scene:
    """Make a pair from one place and from regions of others.

    Both dates start as ``scene``. Regions of the donors are pasted into one date or the other
    until the share of pixels that differ in class is reached; other pastes keep the class of every
    pixel. Pixels without a known class, of the scene or of a donor, are neither pasted nor pasted
    over, so ``truth1`` and ``truth2`` are 0 in the same pixels.

    Args:
        scene: the place.
        donors: one or more other scenes of the same size.
        seed: decides every draw.
        recipe: how much of what; None takes the defaults.

    Returns:
        A pair whose labels are the truth exactly where it differs between the dates, else 0.

    Raises:
        ValueError: no donor, or sizes differ.
    """
    recipe = recipe or Recipe()
    _require_same_size(scene, donors)
    rng = np.random.default_rng(seed)
    light = _light(scene)
    sources = [Donor(turned(donor, rng), light - _light(donor)) for donor in donors]
    dates = [Date(scene.image.astype(np.float32), scene.truth.copy()) for _ in range(2)]
    target = recipe.changed * rng.uniform(0.5, 1.5) * np.count_nonzero(scene.truth)
    target = min(target, scene.truth.size)
    for _ in range(MAX_PASTES):
        missing = target - np.count_nonzero(dates[0].truth != dates[1].truth)
        if missing < max(MIN_AREA, CLOSE_ENOUGH * target):
            break
        area = max(MIN_AREA, missing * rng.uniform(0.2, 0.9))
        _paste_region(dates[rng.integers(2)], _pick(sources, rng), area, True, rng, recipe)
    for _ in range(rng.poisson(recipe.distractors)):
        area = scene.truth.size * rng.uniform(0.005, 0.06)
        _paste_region(dates[rng.integers(2)], _pick(sources, rng), area, False, rng, recipe)
    images = [disturb(date.image, rng, recipe.nuisance) for date in dates]
    truths = [date.truth for date in dates]
    changed = truths[0] != truths[1]
    labels = [np.where(changed, truth, 0).astype(np.uint8) for truth in truths]
    return Scene(*images, *labels, *truths)


def _require_same_size(scene: Tile, donors: Sequence[Tile]) -> None:
    if not donors:
        raise ValueError("a pair needs at least one donor")
    for tile in (scene, *donors):
        if tile.truth.shape != scene.truth.shape or tile.image.shape != (*scene.truth.shape, 3):
            raise ValueError(
                f"image {tile.image.shape} and truth {tile.truth.shape} do not fit a scene of "
                f"{scene.truth.shape}"
            )


def _light(tile: Tile) -> np.ndarray:
    return tile.image.reshape(-1, 3).mean(axis=0, dtype=np.float32)


def _pick(donors: Sequence[Donor], rng: np.random.Generator) -> Donor:
    return donors[rng.integers(len(donors))]


def _paste_region(
    date: Date, donor: Donor, area: float, change: bool, rng: np.random.Generator, recipe: Recipe
) -> None:
    """Paste at most ``area`` pixels: where classes differ, or where they are the same."""
    region = draw_region(donor.tile, area, rng, recipe.objects)
    if region is None:
        return
    source = donor.tile.truth[_window(region, (region.top, region.left))]
    best, best_count, best_place = None, 0, (0, 0)
    for _ in range(PLACES):
        place = tuple(
            int(rng.integers(whole - part + 1))
            for whole, part in zip(date.truth.shape, region.mask.shape, strict=True)
        )
        target = date.truth[_window(region, place)]
        fits = region.mask & ((target != source) & (target > 0) if change else target == source)
        count = np.count_nonzero(fits)
        if count > best_count:
            # A change takes the whole region along: its parts of equal class are distractors.
            best, best_count = (region.mask & (target > 0) if change else fits), count
            best_place = place
        if 2 * count > np.count_nonzero(region.mask):
            break
    if best_count < MIN_AREA:
        return
    feather = int(rng.integers(1, recipe.feather + 1)) if recipe.feather else 0
    # Towards the light of the scene, by a share of the way: a paste must not be told by its tone.
    tint = np.float32(rng.uniform(0, 1)) * donor.tone
    _paste(date, donor.tile, Region(best, region.top, region.left), best_place, feather, tint)


def _window(region: Region, place: tuple[int, int]) -> tuple[slice, slice]:
    height, width = region.mask.shape
    return slice(place[0], place[0] + height), slice(place[1], place[1] + width)


def _paste(
    date: Date,
    donor: Tile,
    region: Region,
    place: tuple[int, int],
    feather: int,
    tint: np.ndarray,
) -> None:
    """Put a region into a date, with ``feather`` pixels of its surroundings fading out."""
    opacity = feather_edge(np.pad(region.mask, feather), feather)
    windows = []
    for start, side, whole in zip(place, region.mask.shape, date.truth.shape, strict=True):
        steps = np.arange(-feather, side + feather)
        windows.append((steps, (start + steps >= 0) & (start + steps < whole)))
    (rows, seen_rows), (columns, seen_columns) = windows
    opacity = opacity[seen_rows][:, seen_columns, None]
    rows, columns = rows[seen_rows], columns[seen_columns]
    height, width = date.truth.shape
    patch = donor.image[
        np.ix_(
            np.clip(region.top + rows, 0, height - 1), np.clip(region.left + columns, 0, width - 1)
        )
    ]
    there = np.ix_(place[0] + rows, place[1] + columns)
    patch = np.clip(patch + tint, 0, 255)
    date.image[there] += opacity * (patch - date.image[there])
    window = date.truth[_window(region, place)]
    window[region.mask] = donor.truth[_window(region, (region.top, region.left))][region.mask]
