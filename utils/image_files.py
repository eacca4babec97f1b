"""What decoders of images leave to others: pixels upright, and no damage taken for zeros."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.ExifTags import Base

_EXIF_KEYS = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}  # of Pillow's info
# By orientation tag, as EXIF and TIFF define it: transpose, then reverse rows, then columns.
_UPRIGHT = {2: (0, 0, 1), 3: (0, 1, 1), 4: (0, 1, 0), 5: (1, 0, 0), 6: (1, 0, 1), 7: (1, 1, 1)}
_UPRIGHT |= {8: (1, 1, 0)}
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
# The first column and row of each pass of an interlaced PNG, and the steps to the next ones.
_PNG_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
_PNG_PASSES += ((0, 1, 1, 2),)


def load_whole(image: Image.Image, tag: int) -> None:
    """Decode an open image; a ValueError if its PNG is damaged or its orientation not ``tag``."""
    image.load()
    if image.format == "PNG":
        last_row = image.crop((0, image.height - 1, *image.size))
        require_whole_png(image.filename, any(np.ravel(last_row.getextrema())))
    if exif_orientation(image) != tag:  # headers are read without it
        raise ValueError("an orientation tag behind the pixels, save it anew")


def require_whole_png(path: str, last_row: bool) -> None:
    """Raise a ValueError for wrong checksums or missing rows, which decoders take for zeros.

    ``last_row`` tells of decoded pixels whether any in the last row is not 0.
    """
    data, at, kind, pixels = memoryview(Path(path).read_bytes()), 8, b"", []
    while kind != b"IEND":
        length, kind = struct.unpack_from(">L4s", data, at)
        end = at + 8 + length
        if zlib.crc32(data[at + 4 : end]) != struct.unpack_from(">L", data, end)[0]:
            raise ValueError("a wrong checksum")
        pixels += [data[at + 8 : end]] * (kind == b"IDAT")
        at = end + 4
    width, height, bits, color, *_, interlaced = struct.unpack_from(">LL5B", data, 16)
    if last_row and not interlaced:
        return
    passes = _PNG_PASSES if interlaced else ((0, 0, 1, 1),)
    sizes = [(-((x - width) // dx), -((y - height) // dy)) for x, y, dx, dy in passes]
    wanted = sum(r * (1 + -(-c * bits * _PNG_CHANNELS[color] // 8)) for c, r in sizes if c > 0)
    if len(zlib.decompressobj().decompress(b"".join(pixels), wanted)) < wanted:
        raise ValueError("rows are missing")


def exif_orientation(image: Image.Image) -> int:
    """Return the tag of an open JPEG or PNG; 1 for none."""
    if image.info.keys().isdisjoint(_EXIF_KEYS):
        return 1
    tag = Image.Image.getexif(image).get(Base.Orientation)  # PNG's own decodes all pixels first
    return tag if tag in _UPRIGHT else 1


def tiff_orientation(path: Path) -> int:
    """Return the tag of a TIFF of either kind and order; 1 for none. Damage raises anything."""
    with open(path, "rb") as file:
        start = file.read(16)
        order, big = "<" if start[:1] == b"I" else ">", 43 in start[2:4]
        (offset,) = struct.unpack_from(f"{order}{'Q' if big else 'L'}", start, 8 if big else 4)
        file.seek(offset)
        (count,) = struct.unpack(f"{order}{'Q' if big else 'H'}", file.read(8 if big else 2))
        tags = file.read(min(count, 2**16) * (20 if big else 12))
    # Number, type, count and value of each tag.
    for number, _, _, tag in struct.iter_unpack(f"{order}HH{'QH6x' if big else 'LH2x'}", tags):
        if number == Base.Orientation and tag in _UPRIGHT:
            return tag
    return 1


def upright(values: np.ndarray, tag: int) -> np.ndarray:
    """Turn (H, W, …) as an orientation tag says."""
    transpose, rows, columns = _UPRIGHT.get(tag, (0, 0, 0))
    values = values.swapaxes(0, 1) if transpose else values
    return np.ascontiguousarray(values[:: -1 if rows else 1, :: -1 if columns else 1])


def upright_size(height: int, width: int, tag: int) -> tuple[int, int]:
    """Return (height, width) once turned as an orientation tag says."""
    return (width, height) if _UPRIGHT.get(tag, (0,))[0] else (height, width)
