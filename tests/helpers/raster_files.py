"""Rasters of noise, as values and as TIFF."""

import warnings
from pathlib import Path

import numpy as np
import rasterio

HEIGHT, WIDTH = 9, 13


def noise(bands: int, dtype: str = "uint16", seed: int = 0) -> np.ndarray:
    """Every bit matters: the upper and the lower byte of each value are random."""
    top = np.iinfo(dtype).max
    values = np.random.default_rng(seed).integers(0, top, (HEIGHT, WIDTH, bands), endpoint=True)
    return values.astype(dtype)


def write_tiff(path: Path, values: np.ndarray, **options: object) -> Path:
    height, width, bands = values.shape
    size = {"height": height, "width": width, "count": bands}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", driver="GTiff", dtype=values.dtype, **size, **options
        ) as file:
            file.write(np.moveaxis(values, -1, 0))
    return path
