"""Images of a test's data set: read, written, compared in every byte."""

from pathlib import Path

import numpy as np
from PIL import Image


def read(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def write(path: Path, array: np.ndarray, **options) -> None:
    Image.fromarray(array).save(path, **options)


def files_below(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
