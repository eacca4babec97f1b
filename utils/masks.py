"""Reading images and writing masks: PNG files that are whole or absent."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from utils.errors import DataError
from utils.files import atomic_path

Palette = Sequence[tuple[int, int, int]]
CHANGE_MASKS = "change"  # folder of predicted change masks

# Masks hold few colours in large areas: level 1 costs a third of the default's time and about a
# tenth more bytes.
PNG_LEVEL = 1
PNG_KIND_AT = 24  # the byte of a PNG that tells its bits per channel; its colour type follows
TIFF_BITS_TAG = 258


def open_image(path: Path) -> Image.Image:
    """Open and fully decode an image file.

    Raises:
        DataError: the file is missing, truncated, or not an image.
    """
    try:
        image = Image.open(path)
        image.load()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path}: cannot be decoded ({reason}); copy the file again or remove its pair"
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: {error}; cut the scene into tiles") from error
    return image


def png_kind(path: Path) -> tuple[int, int]:
    """Return bits per channel and colour type of a PNG.

    Raises:
        DataError: its header is not where it has to be, which Pillow forgives.
    """
    with open(path, "rb") as file:
        start = file.read(PNG_KIND_AT + 2)
    if start[12:16] != b"IHDR" or len(start) < PNG_KIND_AT + 2:
        raise DataError(
            f"{path}: cannot be decoded (no PNG header at its start); copy the file again or "
            "remove its pair"
        )
    return start[PNG_KIND_AT], start[PNG_KIND_AT + 1]


def file_bits(path: Path, image: Image.Image) -> int:
    """Return the bits per channel in a file; Pillow hands 16-bit colours out as 8 bits.

    Raises:
        DataError: as `png_kind`.
    """
    if image.format == "PNG":
        return png_kind(path)[0]
    if image.format == "TIFF":
        bits = image.tag_v2.get(TIFF_BITS_TAG, 8)
        return int(max(bits)) if isinstance(bits, tuple) else int(bits)
    return {"1": 1, "I": 32, "F": 32}.get(image.mode, 16 if "16" in image.mode else 8)


def read_rgb(path: Path) -> np.ndarray:
    """Read an image file as (H, W, 3) uint8; grey, palette and alpha images are converted.

    Raises:
        DataError: the file cannot be decoded, or has more than 8 bits per channel.
    """
    image = open_image(path)
    bits = file_bits(path, image)
    if bits > 8:
        raise DataError(
            f"{path}: {bits} bits, but 8 bits per channel are wanted; scale it, or save all files "
            "alike"
        )
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def save_image(path: Path, array: np.ndarray) -> None:
    """Write (H, W) or (H, W, 3) uint8 as PNG."""
    with atomic_path(Path(path)) as temporary:
        Image.fromarray(np.ascontiguousarray(array)).save(
            temporary, format="PNG", compress_level=PNG_LEVEL
        )


def save_change_mask(path: Path, mask: np.ndarray) -> None:
    """Write an (H, W) uint8 map of change, 1 = changed, as a grey PNG of 0 and 255."""
    save_image(path, mask * np.uint8(255))


def save_mask(path: Path, mask: np.ndarray, palette: Palette) -> None:
    """Write an (H, W) uint8 map of class indices as a palette PNG.

    The file holds the indices, and image viewers show the class colours.

    Args:
        path: the file to write, ending in ``.png``.
        mask: (H, W) uint8, values 0..len(palette)-1.
        palette: one RGB colour per index.
    """
    image = Image.fromarray(np.ascontiguousarray(mask))
    image.putpalette([channel for color in palette for channel in color])
    with atomic_path(Path(path)) as temporary:
        image.save(temporary, format="PNG", compress_level=PNG_LEVEL)
