"""Files with an orientation tag come upright, images and labels alike, whatever decodes them."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from datasets.images import image_size, open_image, read_all, read_header, save_raster
from tests.helpers.raster_files import noise, write_tiff
from utils.errors import DataError

TAGS = range(1, 9)


def upright(values: np.ndarray, tag: int) -> np.ndarray:
    """Turn an array as Pillow turns an image of the places of its pixels."""
    height, width = values.shape[:2]
    places = Image.fromarray(np.arange(height * width, dtype=np.int32).reshape(height, width))
    places.getexif()[274] = tag
    places = np.asarray(ImageOps.exif_transpose(places))
    return values.reshape(height * width, -1)[places].reshape(*places.shape, *values.shape[2:])


def assert_upright(path: Path, stored: np.ndarray, tag: int) -> None:
    found, header = read_all(path)[0], read_header(path)
    assert np.array_equal(found, upright(stored, tag).reshape(found.shape))
    assert (header.height, header.width, header.bands) == found.shape
    assert image_size(path) == found.shape[:2] and header.orientation == tag


def exif(tag: int) -> Image.Exif:
    found = Image.Exif()
    found[274] = tag
    return found


GREY = noise(1, "uint8")[..., 0]
PALETTE = Image.fromarray(GREY % 4)
PALETTE.putpalette([9, 8, 7, 20, 30, 40, 1, 2, 3, 50, 60, 70])
IMAGES = [
    *(Image.fromarray(values) for values in (GREY, GREY > 99, noise(1)[..., 0])),
    *(Image.fromarray(noise(bands, "uint8")) for bands in (2, 3, 4)),
    PALETTE,
]


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.mode)
def test_as_pillow_shows_them(image, suffix, tmp_path):
    if suffix == "jpg" and image.mode not in ("L", "RGB"):
        pytest.skip("no such file")
    for tag in TAGS:
        path = tmp_path / f"{tag}.{suffix}"
        image.save(path, exif=exif(tag))
        stored = np.asarray(Image.open(path)) if suffix == "jpg" else np.asarray(image)
        shown = np.asarray(image.convert("RGB")) if image.mode == "P" else stored
        assert_upright(path, shown.astype(np.uint8) * 255 if image.mode == "1" else shown, tag)
        assert np.array_equal(np.asarray(open_image(path)), upright(stored, tag))


def add_tag(path: Path, tag: int, order: str, big: bool) -> None:
    """Give a TIFF another directory, with an orientation, at its end."""
    data = bytearray(path.read_bytes())
    place, width, entry, count = (8, "Q", 20, "Q") if big else (4, "L", 12, "H")
    (start,) = struct.unpack_from(order + width, data, place)
    (number,) = struct.unpack_from(order + count, data, start)
    start += struct.calcsize(order + count)
    entries = [bytes(data[start + i * entry :][:entry]) for i in range(number)]
    entries.append(struct.pack(f"{order}HH{width}H{'6x' if big else '2x'}", 274, 3, 1, tag))
    entries.sort(key=lambda each: struct.unpack_from(f"{order}H", each))
    struct.pack_into(order + width, data, place, len(data))
    end = struct.pack(order + width, 0)
    path.write_bytes(data + struct.pack(order + count, number + 1) + b"".join(entries) + end)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiffs_of_any_bands_and_byte_order(order, big, dtype, tmp_path):
    options = {"endianness": "big" if order == ">" else "little", "bigtiff": "yes" if big else "no"}
    for tag in TAGS:
        values = noise(1 + tag % 5, dtype, tag)
        path = write_tiff(tmp_path / f"{tag}.tif", values, photometric="minisblack", **options)
        add_tag(path, tag, order, big)
        assert_upright(path, values, tag)


def test_pngs_of_16_bits_and_a_tag_behind_the_pixels(tmp_path):
    path, values = tmp_path / "a.png", noise(4)
    for dtype in ("uint8", "uint16"):
        values = noise(4, dtype)
        save_raster(path, values)
        content = b"eXIf" + exif(6).tobytes().removeprefix(b"Exif\0\0")
        chunk = struct.pack(">I", len(content) - 4) + content
        chunk += struct.pack(">I", zlib.crc32(content))
        data = path.read_bytes()
        path.write_bytes(data[:33] + chunk + data[33:])
        assert_upright(path, values, 6)
        path.write_bytes(data[:-12] + chunk + data[-12:])
        for read in (read_all, open_image):
            if dtype == "uint8":
                with pytest.raises(DataError, match=r"a\.png: .*orientation tag behind the pixels"):
                    read(path)
