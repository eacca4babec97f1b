"""Images of any bands and depth: read as written, or refused with a clear error."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.bands import RGB, Bands
from datasets.images import (
    image_size,
    lacks_bands,
    read_bands,
    read_header,
    read_raster,
    save_raster,
)
from datasets.pairs import index_pairs
from tests.helpers.raster_files import HEIGHT, WIDTH, noise, write_tiff
from utils.errors import DataError


def assert_read(path: Path, values: np.ndarray) -> None:
    found = read_raster(path)
    assert found.dtype == values.dtype and np.array_equal(found, values)
    header = read_header(path)
    assert (header.height, header.width, header.bands) == values.shape
    assert header.dtype == values.dtype.name and header.bits == 8 * values.itemsize
    assert image_size(path) == values.shape[:2]


# --- each format -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("bands", [1, 3, 4])
def test_png(bands, dtype, tmp_path):
    values = noise(bands, dtype)
    save_raster(tmp_path / "a.png", values)
    assert_read(tmp_path / "a.png", values)


@pytest.mark.parametrize(("bands", "color_type"), [(1, 0), (2, 4), (3, 2), (4, 6)])
def test_png_of_16_bits_has_red_first(bands, color_type, tmp_path):
    """Files made by hand, so that no library's own order of bands can hide an error."""
    values = noise(bands)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    sizes = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, color_type, 0, 0, 0)
    body = chunk(b"IHDR", sizes) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert_read(tmp_path / "a.png", values)


def test_png_of_grey_and_alpha(tmp_path):
    values = noise(2, "uint8")
    Image.fromarray(values, "LA").save(tmp_path / "a.png")
    assert_read(tmp_path / "a.png", values)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("kind", ["L", "RGB", "I;16"])
def test_tiff_that_pillow_reads(kind, compression, tmp_path):
    values = noise({"L": 1, "RGB": 3, "I;16": 1}[kind], "uint16" if "16" in kind else "uint8")
    Image.fromarray(values.squeeze()).save(tmp_path / "a.tif", compression=compression)
    assert_read(tmp_path / "a.tif", values)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("bands", [1, 2, 3, 4, 5, 13])
def test_tiff_of_any_bands(bands, dtype, tmp_path):
    values = noise(bands, dtype)
    assert_read(write_tiff(tmp_path / "a.tif", values), values)


@pytest.mark.parametrize(
    "options",
    [
        {"compress": "lzw"},
        {"compress": "deflate", "predictor": 2},
        {"compress": "lzw", "predictor": 2, "interleave": "band"},
        {"interleave": "pixel", "bigtiff": "yes"},
        {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "zstd"},
        {"photometric": "rgb", "alpha": "premultiplied"},
        {"endianness": "big"},
    ],
    ids=str,
)
def test_tiff_as_gis_programs_write_it(options, tmp_path):
    for bands in (4, 6):
        values = noise(bands)
        assert_read(write_tiff(tmp_path / f"{bands}.tif", values, **options), values)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numpy_file(order, dtype, tmp_path):
    values = noise(7, "uint8" if dtype == "uint8" else "uint16")
    np.save(tmp_path / "a.npy", np.asarray(values, dtype=dtype, order=order))
    assert_read(tmp_path / "a.npy", values)
    np.save(tmp_path / "a.npy", values[..., 0].astype(dtype))
    assert_read(tmp_path / "a.npy", values[..., :1])


def test_numpy_images_are_indexed_and_numpy_labels_are_not(write_pairs):
    folder = write_pairs({"a": (HEIGHT, WIDTH)})
    for name in ("im1", "im2"):
        values = read_raster(folder / name / "a.png")
        (folder / name / "a.png").unlink()
        np.save(folder / name / "a.npy", values)
    (pair,) = index_pairs(folder)
    assert pair.image1.name == "a.npy" and pair.name == "a"
    (folder / "label1" / "a.png").rename(folder / "label1" / "a.npy")
    with pytest.raises(DataError, match=r"no partner in .*label1"):
        index_pairs(folder)


# --- the chosen bands ------------------------------------------------------------------------


def test_bands_come_in_the_chosen_order(tmp_path):
    values = noise(4)
    save_raster(tmp_path / "a.png", values)
    for numbers in [(1, 2, 3, 4), (4, 3, 2), (4,), (2, 1)]:
        found = read_bands(tmp_path / "a.png", Bands(numbers, 16))
        assert found.flags.c_contiguous
        assert np.array_equal(found, values[..., [n - 1 for n in numbers]])


def test_three_bands_of_8_bits_are_read_as_ever(tmp_path):
    grey = noise(1, "uint8")[..., 0]
    palette = Image.fromarray(grey % 4)
    palette.putpalette([9, 8, 7, 20, 30, 40, 1, 2, 3, 50, 60, 70])
    kinds = {
        "grey": Image.fromarray(grey),
        "palette": palette,
        "rgb": Image.fromarray(noise(3, "uint8")),
        "rgba": Image.fromarray(noise(4, "uint8")),
        "bits": Image.fromarray(grey > 99),
    }
    for name, image in kinds.items():
        for suffix in ("png", "tif"):
            path = tmp_path / f"{name}.{suffix}"
            image.save(path)
            assert np.array_equal(read_bands(path, RGB), np.asarray(image.convert("RGB")))
            assert np.array_equal(read_bands(path, RGB), read_bands(path))


def test_grey_arrays_of_8_bits_serve_as_three_bands(tmp_path):
    grey = noise(1, "uint8")
    for name, values in (("a", grey), ("b", grey[..., 0])):
        path = tmp_path / f"{name}.npy"
        np.save(path, values)
        assert np.array_equal(read_bands(path, RGB), grey.repeat(3, -1))
        assert np.array_equal(read_bands(path, Bands((1,))), grey)
        assert not lacks_bands(read_header(path), RGB.numbers)
        with pytest.raises(DataError, match="has 1 band of 8 bits, but bands 1, 2"):
            read_bands(path, Bands((1, 2)))


def test_the_first_three_of_more_bands(tmp_path):
    values = noise(5, "uint8")
    np.save(tmp_path / "a.npy", values)
    assert np.array_equal(read_bands(tmp_path / "a.npy"), values[..., :3])
    path = write_tiff(tmp_path / "a.tif", values)
    assert np.array_equal(read_bands(path), values[..., :3])


def test_no_band_of_an_8_bit_tiff_is_lost_unless_it_is_alpha(tmp_path):
    two = write_tiff(tmp_path / "two.tif", noise(2, "uint8"))
    assert not read_header(two).is_rgb
    with pytest.raises(DataError, match=f"^{two}: has 2 bands of 8 bits, but bands 1, 2, 3"):
        read_bands(two, RGB)
    assert np.array_equal(read_bands(two, Bands((1, 2))), noise(2, "uint8"))
    values = noise(4, "uint8")
    for alpha, is_rgb in [("unspecified", False), ("yes", True), (None, True)]:
        # Without options GDAL calls the fourth of 8 bits alpha.
        options = {"photometric": "rgb", "alpha": alpha} if alpha else {}
        path = write_tiff(tmp_path / f"{alpha}.tif", values, **options)
        assert (read_header(path).bands, read_header(path).is_rgb) == (4, is_rgb)
        assert np.array_equal(read_bands(path, RGB), values[..., :3])
        assert np.array_equal(read_bands(path, Bands((1, 2, 3, 4))), values)
    Image.fromarray(noise(2, "uint8"), "LA").save(tmp_path / "alpha.tif")
    assert np.array_equal(
        read_bands(tmp_path / "alpha.tif", RGB), noise(2, "uint8")[..., :1].repeat(3, -1)
    )
    Image.fromarray(values, "CMYK").save(tmp_path / "cmyk.tif")
    assert np.array_equal(read_bands(tmp_path / "cmyk.tif", RGB), read_bands(tmp_path / "cmyk.tif"))


@pytest.mark.parametrize(
    ("have", "wanted", "message"),
    [
        ((3, "uint16"), Bands((1, 4), 16), "has 3 bands of 16 bits, but bands 1, 4 of 16 bits"),
        ((1, "uint16"), Bands((1, 2, 3), 16), "has 1 band of 16 bits"),
        ((3, "uint16"), RGB, "16 bits, but 8 bits per channel"),
        ((4, "uint16"), Bands((1, 2, 3, 4), 8), "has 4 bands of 16 bits, but .* of 8 bits"),
        ((3, "uint8"), Bands((1, 2, 3), 16), "has 3 bands of 8 bits, but .* of 16 bits"),
    ],
)
def test_other_depth_or_too_few_bands_name_file_and_remedy(have, wanted, message, tmp_path):
    path = tmp_path / "a.png"
    save_raster(path, noise(*have))
    with pytest.raises(DataError, match=f"^{path}: .*{message}.*save all") as caught:
        read_bands(path, wanted)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "int16", "uint32"])
def test_other_values_are_refused(dtype, tmp_path):
    np.save(tmp_path / "a.npy", noise(2).astype(dtype))
    paths = [tmp_path / "a.npy", write_tiff(tmp_path / "a.tif", noise(4).astype(dtype))]
    if dtype == "float32":
        Image.fromarray(noise(1)[..., 0].astype(dtype)).save(tmp_path / "b.tif")
        paths.append(tmp_path / "b.tif")
    for path in paths:
        assert read_header(path).bits == 32
        with pytest.raises(DataError, match=f"^{path}: {dtype} values; save all images as uint8"):
            read_bands(path, Bands((1,), 16))


def test_without_rasterio_the_error_says_what_to_install(tmp_path, monkeypatch):
    path = write_tiff(tmp_path / "a.tif", noise(5))
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    with pytest.raises(DataError, match=f"^{path}: .*pip install rasterio$"):
        read_bands(path, Bands((1,), 16))
