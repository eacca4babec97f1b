"""Land uses of a procedural aerial scene: fields, woods, houses, halls, ponds, courts, roads."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tools.scenes.draw import (
    BUILDING,
    GROUND,
    LOW_VEGETATION,
    PLAYGROUND,
    WATER,
    Canvas,
    Color,
    Plot,
    Points,
    Rng,
    as_color,
    pick,
    rectangle,
    rotation,
    scale,
)

Point = tuple[float, float]
CROPS = ((98, 124, 62), (122, 136, 74), (80, 110, 56), (138, 142, 86), (110, 126, 60))
MEADOWS = ((104, 124, 72), (90, 116, 66), (118, 130, 82))
SOILS = ((150, 126, 98), (130, 106, 84), (170, 150, 120), (142, 112, 84))
PAVEMENTS = ((150, 148, 144), (128, 128, 130), (166, 160, 150))
RAW_GROUNDS = ((188, 168, 138), (176, 158, 134), (198, 184, 160))
ROADS = ((122, 122, 124), (106, 106, 110), (140, 136, 130))
DIRT_ROADS = ((170, 152, 122),)
WATERS = ((46, 72, 86), (56, 80, 72), (40, 60, 94), (66, 88, 84))
TILE_ROOFS = ((164, 88, 68), (134, 76, 62), (104, 100, 104), (176, 112, 84), (122, 96, 82))
FLAT_ROOFS = ((196, 194, 190), (92, 116, 148), (214, 210, 202), (122, 124, 130), (168, 84, 72))
COURTS = ((186, 78, 62), (74, 132, 84), (70, 104, 158), (196, 104, 66))
PAINT = (226, 224, 216)


@dataclass(frozen=True)
class Road:
    """A street between two points ``ends`` (2, 2), and the dates 0 and 1 at which it exists."""

    ends: Points
    width: float
    color: Color
    dates: tuple[bool, bool]


def draw_road(canvas: Canvas, road: Road) -> None:
    """Draw a street, with a dashed line if it is wide enough."""
    (start, end), width = road.ends, road.width
    axis = start + np.linspace(0, 1, 13)[:, None] * (end - start)
    length = np.linalg.norm(end - start)
    along = (end - start) / length
    side = np.array([-along[1], along[0]]) * width / 2
    canvas.fill(np.concatenate([axis + side, (axis - side)[::-1]]), GROUND, road.color)
    if width >= 6:
        canvas.lines(np.stack([axis - 0.9 * side, axis + 0.9 * side]), scale(road.color, 1.3))
        dashes = np.arange(0, length, 9.0)[:, None] + (0, 4)
        canvas.lines(start + dashes[..., None] * along, PAINT)


def _rows(canvas: Canvas, plot: Plot, color: Color, step: float, along_u: bool) -> None:
    low, high = (plot.v0, plot.v1) if along_u else (plot.u0, plot.u1)
    ends = np.linspace(plot.u0, plot.u1, 5) if along_u else np.linspace(plot.v0, plot.v1, 5)
    side = np.arange(low + step / 2, high - 1, step)
    ends, side = np.broadcast_arrays(ends, side[:, None])
    canvas.lines(np.stack([ends, side] if along_u else [side, ends], axis=2), color)


def _crop(canvas: Canvas, plot: Plot, rng: Rng, style: Rng) -> None:
    color = pick(style, CROPS, 12)
    canvas.fill(plot.outline(), LOW_VEGETATION, color, trees=0.005)
    _rows(canvas, plot, scale(color, 0.9), rng.uniform(2.5, 4.5), bool(rng.integers(2)))


def _soil(canvas: Canvas, plot: Plot, rng: Rng, style: Rng) -> None:
    color = pick(style, SOILS, 12)
    canvas.fill(plot.outline(), GROUND, color)
    _rows(canvas, plot, scale(color, 0.92), rng.uniform(2, 4), bool(rng.integers(2)))


def _meadow(canvas: Canvas, plot: Plot, rng: Rng, style: Rng) -> None:
    canvas.fill(plot.outline(), LOW_VEGETATION, pick(style, MEADOWS), trees=rng.uniform(0.01, 0.1))


def _forest(canvas: Canvas, plot: Plot, rng: Rng, style: Rng) -> None:
    canvas.fill(plot.outline(), LOW_VEGETATION, pick(style, ((74, 90, 54),)), trees=0.97)


def _raw_ground(canvas: Canvas, plot: Plot, rng: Rng, style: Rng) -> None:
    color = pick(style, RAW_GROUNDS)
    canvas.fill(plot.outline(), GROUND, color)
    for _ in range(4):
        u, v = rng.uniform(plot.u0, plot.u1), rng.uniform(plot.v0, plot.v1)
        canvas.shade(_blob(rng, u, v, 2, 6), scale(color, rng.uniform(0.85, 1.1)))
    ends = rng.uniform(0, 1, (4, 2)) * plot.size + (plot.u0, plot.v0)
    canvas.lines(ends, scale(color, 0.86), 1)


def _residential(canvas: Canvas, plot: Plot, rng: Rng, style: Rng) -> None:
    canvas.fill(plot.outline(), LOW_VEGETATION, pick(style, MEADOWS), trees=rng.uniform(0.1, 0.3))
    lane = pick(style, PAVEMENTS)
    step = rng.uniform(15, 19)
    columns = max(1, round((plot.size[0] - 4) / step))
    rows = max(1, round((plot.size[1] - 4) / step))
    for column in range(columns):
        for row in range(rows):
            u = plot.u0 + (column + 0.5) * plot.size[0] / columns + rng.uniform(-1, 1)
            v = plot.v0 + (row + 0.5) * plot.size[1] / rows + rng.uniform(-1, 1)
            length, depth = rng.uniform(9.5, 13), rng.uniform(7, 9.5)
            angle = rng.integers(2) * np.pi / 2 + rng.normal(0, 0.06)
            fate, hipped, color = rng.random(), rng.random() < 0.5, pick(style, TILE_ROOFS)
            if (fate < 0.08, fate > 0.92)[canvas.date]:  # yet to be built, or pulled down
                continue
            canvas.fill(rectangle(u, v + depth / 2 + 2, 3, depth), GROUND, lane)
            _pitched_roof(canvas, rectangle(u, v, length, depth, angle), color, hipped)


def _pitched_roof(canvas: Canvas, corners: Points, color: Color, hipped: bool) -> None:
    canvas.fill(corners, BUILDING, color, elevation=3.5)
    a, b, c, d = corners  # a-b and c-d are the long sides
    inset = 0.28 if hipped else 0.0
    start, end = (a + d) / 2, (b + c) / 2
    start, end = start + inset * (end - start), end + inset * (start - end)
    middle = corners.mean(axis=0)
    for face in ([a, b, end, start], [c, d, start, end], [b, c, end], [d, a, start]):
        outward = (face[0] + face[1]) / 2 - middle
        light = float(outward / np.linalg.norm(outward) @ canvas.frame.turn @ canvas.sun)
        canvas.shade(np.array(face), scale(color, 1 + 0.3 * light))
    canvas.lines([start, end], scale(color, 1.25))


def _industrial(canvas: Canvas, plot: Plot, rng: Rng, style: Rng) -> None:
    canvas.fill(plot.outline(), GROUND, pick(style, PAVEMENTS))
    u, v = plot.center
    share = rng.uniform(0.45, 0.72)
    halls = 1 + int(min(plot.size) > 34 and rng.random() < 0.6)
    for hall in range(halls):
        shift = (hall - (halls - 1) / 2) * plot.size[0] / 2
        center = u + shift, v - plot.size[1] * (0.42 - share / 2)
        size = plot.size[0] / halls * 0.8, plot.size[1] * share
        _flat_roof(canvas, rng, center, size, pick(style, FLAT_ROOFS, 12))
    _parked_cars(canvas, rng, plot)


def _flat_roof(canvas: Canvas, rng: Rng, center: Point, size: Point, color: Color) -> None:
    (u, v), (length, depth) = center, size
    canvas.fill(rectangle(u, v, length, depth), BUILDING, scale(color, 1.15), elevation=5)
    canvas.shade(rectangle(u, v, length - 2, depth - 2), color)
    reach = depth / 2 - 1.5
    for x in u + np.arange(-length / 2 + 4, length / 2 - 2, rng.uniform(4, 7)):
        canvas.lines([(x, v - reach), (x, v + reach)], scale(color, 0.9))
    for _ in range(3):
        at = rng.uniform(-0.35, 0.35, 2) * size + center
        canvas.shade(rectangle(*np.add(at, 0.7), 2.5, 2), scale(color, 0.6))
        canvas.shade(rectangle(*at, 2.5, 2), scale(color, 1.25))


def _parked_cars(canvas: Canvas, rng: Rng, plot: Plot) -> None:
    spaces = np.arange(plot.u0 + 3, plot.u1 - 2, 3.2)
    for u in spaces:
        canvas.lines([(u + 1.6, plot.v1 - 6), (u + 1.6, plot.v1 - 2)], PAINT)
    for u in spaces:
        if rng.random() < 0.5:
            car = as_color(rng.integers(30, 230) + rng.integers(-20, 21, 3))
            canvas.shade(rectangle(u, plot.v1 - 4, 1.6, 3.2), car)


def _blob(rng: Rng, u: float, v: float, radius_u: float, radius_v: float) -> Points:
    angle = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    waves = sum(rng.uniform(0, 0.4 / k) * np.sin(k * angle + rng.uniform(0, 6)) for k in (2, 3, 5))
    radius = (1 + waves)[:, None] * (radius_u, radius_v)
    return np.stack([np.cos(angle), np.sin(angle)], 1) * radius + (u, v)


def _pond(canvas: Canvas, plot: Plot, rng: Rng, style: Rng) -> None:
    canvas.fill(plot.outline(), LOW_VEGETATION, pick(style, MEADOWS), trees=0.08)
    outline = _blob(rng, *plot.center, plot.size[0] * 0.45, plot.size[1] * 0.45)
    canvas.fill((outline - plot.center) * 1.07 + plot.center, GROUND, pick(style, SOILS))
    canvas.fill(outline, WATER, pick(style, WATERS))


def _sports(canvas: Canvas, plot: Plot, rng: Rng, style: Rng) -> None:
    base = ((LOW_VEGETATION, MEADOWS), (GROUND, PAVEMENTS))[rng.integers(2)]
    canvas.fill(plot.outline(), base[0], pick(style, base[1]), trees=0.04)
    turned = plot.size[1] > plot.size[0]
    length, depth = sorted(plot.size, reverse=True)
    angle = np.pi / 2 if turned else 0.0
    if depth > 26 and rng.random() < 0.5:
        _stadium(canvas, plot.center, length * 0.86, depth * 0.8, angle, style)
        return
    count = max(1, round(length / 20))
    surface, border = pick(style, COURTS), pick(style, COURTS)
    for index in range(count):
        offset = (index + 0.5) / count * length - length / 2
        u = plot.center[0] + offset * np.cos(angle)
        v = plot.center[1] + offset * np.sin(angle)
        court = rectangle(u, v, length / count * 0.86, depth * 0.82, angle)
        canvas.fill(court, PLAYGROUND, border)
        center = court.mean(axis=0)
        inner = (court - center) * 0.78 + center
        canvas.shade(inner, surface)
        _markings(canvas, inner)


def _stadium(
    canvas: Canvas, center: Point, length: float, depth: float, angle: float, style: Rng
) -> None:
    turn = np.linspace(-np.pi / 2, np.pi / 2, 9)
    cap = np.stack([np.cos(turn), np.sin(turn)], 1)

    def oval(inset: float) -> Points:
        right = cap * (depth / 2 - inset) + (length / 2 - depth / 2, 0)
        return np.concatenate([right, -right]) @ rotation(angle) + center

    canvas.fill(oval(0), PLAYGROUND, pick(style, COURTS[:1]))
    for inset in (1.2, 2.6):
        canvas.lines(oval(inset), PAINT)
    canvas.shade(oval(4.5), (86, 138, 74))
    _markings(canvas, rectangle(*center, length - depth, depth - 13, angle))


def _markings(canvas: Canvas, corners: Points) -> None:
    a, b, c, d = corners
    canvas.lines([a, b, c, d, a], PAINT)
    canvas.lines([(a + b) / 2, (c + d) / 2], PAINT)


# Name -> draw(canvas, plot, rng, style): rng settles the shapes, style the colours.
LAND_USES: dict[str, Callable[[Canvas, Plot, Rng, Rng], None]] = {
    "crop": _crop, "soil": _soil, "meadow": _meadow, "forest": _forest, "raw ground": _raw_ground,
    "residential": _residential, "industrial": _industrial, "pond": _pond, "sports": _sports,
}  # fmt: skip
