"""Procedural bi-temporal aerial scenes: planned once, drawn at both dates."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tools.scenes.draw import LOW_VEGETATION, WATER, Canvas, Color, Frame, Plot, Points, Rng, pick
from tools.scenes.land import DIRT_ROADS, LAND_USES, MEADOWS, ROADS, WATERS, Road, draw_road
from tools.scenes.render import light_scene, photograph, plan_nature

MIN_SIDE = 32
USE_SHARES = {  # of the plots at the first date
    "crop": 0.15, "soil": 0.11, "meadow": 0.11, "forest": 0.17, "raw ground": 0.06,
    "residential": 0.15, "industrial": 0.08, "pond": 0.10, "sports": 0.07,
}  # fmt: skip
SUCCESSORS = {  # what may take the place of a use
    "crop": ("residential", "industrial", "soil", "raw ground", "sports", "pond", "forest"),
    "soil": ("crop", "meadow", "residential", "industrial", "pond", "sports"),
    "meadow": ("residential", "industrial", "soil", "sports", "forest", "pond"),
    "forest": ("raw ground", "soil", "crop", "residential", "industrial", "sports"),
    "raw ground": ("residential", "industrial", "sports", "meadow", "pond"),
    "residential": ("raw ground", "meadow", "industrial", "sports"),
    "industrial": ("raw ground", "sports", "meadow", "residential"),
    "pond": ("soil", "meadow", "industrial", "raw ground"),
    "sports": ("residential", "industrial", "meadow", "raw ground"),
}
CHANGE_SHARE = 0.36  # of the plots
REVERSE_SHARE = 0.4  # of the changes; land is built over more often than given back
RESTYLE_SHARE = 0.35  # of the plots; new colours, the same class
# Of a scene with a wanted share of changed pixels: how near is near enough, and how often to try.
TOLERANCE, ATTEMPTS = 0.25, 8
SMALLEST_PATCH = 24  # pixels


@dataclass(frozen=True)
class Scene:
    """One pair. ``label`` is ``truth`` where the class changed between the dates, else 0."""

    image1: np.ndarray  # (H, W, 3) uint8
    image2: np.ndarray
    label1: np.ndarray  # (H, W) uint8, 0 unchanged, 1..6
    label2: np.ndarray
    truth1: np.ndarray  # (H, W) uint8, 1..6
    truth2: np.ndarray

    @classmethod
    def of(cls, images: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> "Scene":
        """Return the pair of two images and the class of every pixel in them."""
        changed = truths[0] != truths[1]
        labels = [np.where(changed, truth, 0).astype(np.uint8) for truth in truths]
        return cls(*images, *labels, *truths)


@dataclass(frozen=True)
class _Parcel:
    lot: Plot
    plot: Plot  # the lot without its verge
    hedge: float  # tree density of the verge
    uses: tuple[str, str]  # at each date; "" where it is not there
    shape_seeds: tuple[int, int]
    style_seeds: tuple[int, int]


def make_scene(
    seed: int | Sequence[int], height: int = 128, width: int = 128, changed: float | None = None
) -> Scene:
    """Draw one scene; the same ``seed`` gives the same bytes. Sides of at least 32 pixels.

    ``changed`` is the share of its pixels to change, 0..1, about; else about 0.22 on average.
    """
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"a scene is at least {MIN_SIDE} pixels high and wide: {height}x{width}")
    if not changed:
        return _draw_scene(np.random.default_rng(seed), height, width, changed)
    nearest, covered, least = None, changed, np.inf
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng((*np.atleast_1d(seed), attempt))
        scene = _draw_scene(rng, height, width, covered)
        share = float(np.mean(scene.label1 > 0))
        if abs(share - changed) < least:
            nearest, least = scene, abs(share - changed)
        if least <= TOLERANCE * changed:
            break
        covered *= np.clip(changed / max(share, 1e-9), 0.6, 1.6)
    return nearest


def _draw_scene(rng: Rng, height: int, width: int, covered: float | None) -> Scene:
    """Draw a scene; where a share of it to cover with changes is given, no other changes happen."""
    settled = covered is not None
    frame = Frame(height, width, rng.uniform(0, np.pi), rng.uniform(0, 5), rng.uniform(0, 6))
    roads, plots = _subdivide(rng, frame)
    parcels = [_plan_parcel(rng, plot, 0 if settled else CHANGE_SHARE) for plot in plots]
    if settled:
        parcels += _plan_patches(rng, parcels, frame, covered * height * width)
    river = _plan_river(rng, frame) if rng.random() < 0.15 else None
    nature = plan_nature(rng, height, width)
    sun_angle = rng.uniform(0, 2 * np.pi)
    verge = pick(rng, MEADOWS)
    images, truths = [], []
    for date in (0, 1):
        angle = sun_angle + rng.normal(0, 0.5)
        # The date of a canvas decides which houses stand in a residential area.
        canvas = Canvas(frame, (np.cos(angle), np.sin(angle)), verge, 0 if settled else date)
        for parcel in parcels:
            _draw_parcel(canvas, parcel, date)
        if river:
            canvas.fill(river[0], WATER, river[1])
        for road in sorted(roads, key=lambda road: road.width):
            if road.dates[date] or settled:
                draw_road(canvas, road)
        radiance, truth = light_scene(rng, canvas, nature)
        images.append(photograph(rng, radiance))
        truths.append(truth)
    return Scene.of(images, truths)


def _subdivide(rng: Rng, frame: Frame) -> tuple[list[Road], list[Plot]]:
    cos, sin = abs(np.cos(frame.angle)), abs(np.sin(frame.angle))
    half_u = (frame.width * cos + frame.height * sin) / 2 + frame.bend + 2
    half_v = (frame.width * sin + frame.height * cos) / 2 + frame.bend + 2
    roads, plots = [], []
    asphalt = pick(rng, ROADS)
    pending = [Plot(-half_u, -half_v, half_u, half_v)]
    while pending:
        plot = pending.pop()
        if max(plot.size) < rng.uniform(44, 72):
            plots.append(plot)
            continue
        ends, halves = plot.split(rng.uniform(0.36, 0.64))
        width = rng.uniform(6, 8.5) if max(plot.size) > 100 else rng.choice((0.0, 1.5, 4.5))
        color = asphalt if width >= 4 else pick(rng, DIRT_ROADS)
        dates = ((True, True), (False, True), (True, False))[rng.choice(3, p=(0.94, 0.05, 0.01))]
        if width:
            roads.append(Road(ends, width, color, dates))
        pending += halves
    return roads, [plot for plot in plots if _is_visible(plot, frame)]


def _is_visible(plot: Plot, frame: Frame) -> bool:
    points = frame.to_pixels(plot.outline())
    low, high = points.min(axis=0), points.max(axis=0)
    return bool((high > 0).all() and (low < (frame.width, frame.height)).all())


def _plan_parcel(rng: Rng, lot: Plot, change_share: float) -> _Parcel:
    before = after = str(rng.choice(list(USE_SHARES), p=list(USE_SHARES.values())))
    shape, shape_after, style, style_after = rng.integers(2**31, size=4).tolist()
    restyled = rng.random() < RESTYLE_SHARE
    if rng.random() < change_share:
        after = str(rng.choice(SUCCESSORS[before]))
        restyled = True
        if rng.random() < REVERSE_SHARE:
            before, after = after, before
    else:
        shape_after = shape
    margin = rng.uniform(2, 4.5)  # keeps objects off the streets
    hedge = 0.6 if rng.random() < 0.2 else 0.0
    styles = (style, style_after if restyled else style)
    plot = Plot(lot.u0 + margin, lot.v0 + margin, lot.u1 - margin, lot.v1 - margin)
    return _Parcel(lot, plot, hedge, (before, after), (shape, shape_after), styles)


def _plan_patches(rng: Rng, parcels: Sequence[_Parcel], frame: Frame, area: float) -> list[_Parcel]:
    """Return parts of parcels, ``area`` pixels together, that have another use at one date."""
    patches: list[_Parcel] = []
    for parcel in (parcels[index] for index in rng.permutation(len(parcels))):
        wanted = max(SMALLEST_PATCH, rng.uniform(0.4, 1) * area)
        room = np.array(parcel.plot.size)
        size = room * min(1, np.sqrt(wanted / room.prod()))
        corner = np.add((parcel.plot.u0, parcel.plot.v0), rng.uniform(0, room - size))
        patch = Plot(*corner, *(corner + size))
        use, seeds = str(rng.choice(SUCCESSORS[parcel.uses[0]])), rng.integers(2**31, size=2)
        uses = (use, "") if rng.random() < REVERSE_SHARE else ("", use)
        if area >= SMALLEST_PATCH and _is_visible(patch, frame):
            patches.append(_Parcel(patch, patch, 0.0, uses, tuple(seeds), tuple(seeds)))
            area -= size.prod()
    return patches


def _draw_parcel(canvas: Canvas, parcel: _Parcel, date: int) -> None:
    if not parcel.uses[date]:
        return
    if parcel.hedge:
        canvas.fill(parcel.lot.outline(), LOW_VEGETATION, canvas.base_color, trees=parcel.hedge)
    shapes = np.random.default_rng(parcel.shape_seeds[date])
    style = np.random.default_rng(parcel.style_seeds[date])
    LAND_USES[parcel.uses[date]](canvas, parcel.plot, shapes, style)


def _plan_river(rng: Rng, frame: Frame) -> tuple[Points, Color]:
    reach = (frame.height + frame.width) * 0.75
    t = np.linspace(-1, 1, 40)
    bends = rng.uniform(4, 12) * np.sin(t * rng.uniform(3, 7) + rng.uniform(0, 6))
    across = rng.uniform(-0.25, 0.25) * min(frame.height, frame.width)
    axis, side = np.stack([t * reach, bends + across], 1), np.array([0, rng.uniform(8, 16) / 2])
    return np.concatenate([axis - side, (axis + side)[::-1]]), pick(rng, WATERS)
