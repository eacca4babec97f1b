"""Where rasters lie on the map, and how far apart two of them are."""

from dataclasses import dataclass

import numpy as np
from rasterio import warp
from rasterio.crs import CRS
from rasterio.errors import RasterioError

MAX_SHIFT = 0.5  # pixels by which the corners of two dates may lie apart


@dataclass(frozen=True, eq=False)
class Place:
    """Where a raster lies: its coordinate system as WKT, or "", what takes (column, row, 1) there,
    (3, 3) float64, and its pixels.
    """

    crs: str
    matrix: np.ndarray
    height: int
    width: int

    def __str__(self) -> str:
        left, top = self.matrix[:2, 2]
        width, height = np.linalg.norm(self.matrix[:2, :2], axis=0)
        name = self.crs.split('"')[1] if '"' in self.crs else "no coordinate system"
        return f"{name}, pixels of {width:g} × {height:g} from {left:.10g}, {top:.10g}"


def places_apart(place: Place | None, other: Place | None) -> str:
    """Say how far another raster lies from one; "" if at most `MAX_SHIFT` or if one says nothing.

    The sides of both may have different numbers of pixels.
    """
    if not place or not other:
        return ""
    said = f"on the map they differ, {other} beside {place}"
    # The corners of the other as shares of this one's sides.
    scale, other_scale = (np.diag([p.width, p.height, 1]) for p in (place, other))
    there, matrix = np.linalg.inv(place.matrix @ scale), other.matrix @ other_scale
    corners = np.array([[0, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]])
    found = matrix @ corners
    if place.crs and other.crs and place.crs != other.crs:  # other names, maybe of the same system
        try:
            systems = CRS.from_wkt(other.crs), CRS.from_wkt(place.crs)
            found[:2] = warp.transform(*systems, *found[:2])
        except RasterioError:  # no system that is known
            return said
    shift = np.abs(scale @ (there @ found - corners)).max()
    return "" if shift <= MAX_SHIFT else f"{said}: up to {shift:.1f} pixels apart"
