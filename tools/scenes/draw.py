"""Canvas, geometry and colours that procedural aerial scenes are drawn with.

Geometry lives in ground coordinates: pixels, origin at the scene's centre. A ``Frame`` turns and
bends them into the image, so that streets are neither straight nor parallel to the image border.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

WATER, GROUND, LOW_VEGETATION, TREE, BUILDING, PLAYGROUND = range(1, 7)
Color = tuple[int, int, int]
Points = np.ndarray  # (N, 2) float, ground coordinates
Rng = np.random.Generator
UNIT_BORDER = np.array(  # (16, 2), around the unit square
    [(t / 4, 0) for t in range(4)]
    + [(1, t / 4) for t in range(4)]
    + [(1 - t / 4, 1) for t in range(4)]
    + [(0, 1 - t / 4) for t in range(4)]
)
SUPERSAMPLING = 2  # drawn at twice the size, so that edges are smooth once reduced


def rotation(angle: float) -> np.ndarray:
    """(2, 2) float matrix that turns points, as rows, by ``angle`` (radians)."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, sin], [-sin, cos]])


@dataclass(frozen=True)
class Frame:
    """Maps ground coordinates to pixels: a turn by ``angle`` (radians) and a gentle bend."""

    height: int
    width: int
    angle: float
    bend: float
    phase: float

    @cached_property
    def turn(self) -> np.ndarray:
        """(2, 2) float matrix that turns ground directions, as rows, into pixel directions."""
        return rotation(self.angle)

    def to_pixels(self, points: Points) -> np.ndarray:
        """Ground coordinates (..., 2) -> pixel coordinates (..., 2), each (x, y)."""
        bent = points + self.bend * np.sin(points[..., ::-1] / (37, 43) + self.phase)
        return bent @ self.turn + (self.width / 2, self.height / 2)


@dataclass(frozen=True)
class Plot:
    """A rectangle of ground: its corners (u0, v0) and (u1, v1)."""

    u0: float
    v0: float
    u1: float
    v1: float

    @property
    def size(self) -> tuple[float, float]:
        """Extent along u and v, in pixels."""
        return self.u1 - self.u0, self.v1 - self.v0

    @property
    def center(self) -> tuple[float, float]:
        """The middle (u, v)."""
        return (self.u0 + self.u1) / 2, (self.v0 + self.v1) / 2

    def outline(self) -> Points:
        """(16, 2) points around the border, close enough together to bend with the frame."""
        return UNIT_BORDER * self.size + (self.u0, self.v0)

    def split(self, share: float) -> tuple[Points, tuple["Plot", "Plot"]]:
        """Cut across the longer side: both ends of the cut, and what lies on its two sides."""
        if self.size[0] > self.size[1]:
            at = self.u0 + share * self.size[0]
            ends = np.array([[at, self.v0], [at, self.v1]])
            return ends, (replace(self, u1=at), replace(self, u0=at))
        at = self.v0 + share * self.size[1]
        ends = np.array([[self.u0, at], [self.u1, at]])
        return ends, (replace(self, v1=at), replace(self, v0=at))


class Canvas:
    """What lies where at one date: albedo, and per pixel class, elevation and tree density."""

    def __init__(self, frame: Frame, sun: tuple[float, float], color: Color, date: int) -> None:
        size = (frame.width * SUPERSAMPLING, frame.height * SUPERSAMPLING)
        self.frame = frame
        self.date = date  # 0 or 1
        self.sun = np.array(sun)
        self.base_color = color
        self._albedo = Image.new("RGB", size, color)
        self._surface = Image.new("RGB", size, (LOW_VEGETATION, 0, 0))
        self._draw_albedo = ImageDraw.Draw(self._albedo)
        self._draw_surface = ImageDraw.Draw(self._surface)

    def fill(
        self, points: Points, kind: int, color: Color, elevation: float = 0, trees: float = 0
    ) -> None:
        """Cover a polygon with class ``kind``; elevation in pixels, ``trees`` in 0..1."""
        outline = self._outline(points)
        self._draw_albedo.polygon(outline, fill=color)
        self._draw_surface.polygon(outline, fill=(kind, round(8 * elevation), round(255 * trees)))

    def shade(self, points: Points, color: Color) -> None:
        """Colour a polygon without changing what it is."""
        self._draw_albedo.polygon(self._outline(points), fill=color)

    def lines(self, points: ArrayLike, color: Color, width: float = 0.5) -> None:
        """Colour lines (L, N, 2), or one (N, 2), without changing what they lie on."""
        pixels = self.frame.to_pixels(np.array(points, ndmin=3)) * SUPERSAMPLING
        for line in pixels.reshape(len(pixels), -1).tolist():
            self._draw_albedo.line(line, fill=color, width=round(width * SUPERSAMPLING))

    def layers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Albedo (H, W, 3) float32 0..1; class (H, W) uint8; elevation, trees (H, W) float32."""
        albedo = np.asarray(self._albedo.reduce(SUPERSAMPLING), np.float32) / 255
        surface = np.asarray(self._surface)[::SUPERSAMPLING, ::SUPERSAMPLING]
        elevation = surface[..., 1].astype(np.float32) / 8
        return albedo, surface[..., 0].copy(), elevation, surface[..., 2].astype(np.float32) / 255

    def _outline(self, points: Points) -> list[float]:
        return (self.frame.to_pixels(points) * SUPERSAMPLING).ravel().tolist()


def rectangle(u: float, v: float, length: float, depth: float, angle: float = 0.0) -> Points:
    """Four corners around (u, v); ``length`` runs along ``angle`` (radians)."""
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (length / 2, depth / 2)
    return corners @ rotation(angle) + (u, v)


def pick(rng: Rng, colors: Sequence[Color], spread: int = 8) -> Color:
    """One of ``colors``, a little lighter or darker and shifted in hue."""
    color = colors[rng.integers(len(colors))]
    light, *hue = rng.integers(-spread, spread + 1, 4).tolist()
    return as_color(c + light + h // 2 for c, h in zip(color, hue, strict=True))


def scale(color: Color, factor: float) -> Color:
    """A lighter (``factor`` > 1) or darker colour."""
    return as_color(channel * factor for channel in color)


def as_color(channels: Iterable[float]) -> Color:
    """Three numbers, rounded down and limited to 0..255."""
    red, green, blue = (min(max(int(channel), 0), 255) for channel in channels)
    return red, green, blue
