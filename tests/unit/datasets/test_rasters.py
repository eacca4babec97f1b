"""Images of any bands and depth: one reader, which goes by what a file holds."""

import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets.bands import RGB, Bands
from datasets.images import (
    image_size,
    lacks_bands,
    open_image,
    read_all,
    read_bands,
    read_header,
    read_picture,
    save_raster,
)
from tests.helpers.raster_files import HEIGHT, WIDTH, noise, write_tiff
from utils.errors import DataError
from utils.pictures import to_rgb


def assert_read(path: Path, values: np.ndarray) -> None:
    found = read_all(path)[0]
    assert found.dtype == values.dtype and np.array_equal(found, values)
    header = read_header(path)
    assert (header.height, header.width, header.bands) == values.shape
    assert header.dtype == values.dtype.name and header.bits == 8 * values.itemsize
    assert image_size(path) == values.shape[:2]


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


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize(
    ("kind", "bands", "dtype"), [("L", 1, "uint8"), ("RGB", 3, "uint8"), ("I;16", 1, "uint16")]
)
def test_tiff_as_pillow_writes_it(kind, bands, dtype, compression, tmp_path):
    values = noise(bands, dtype)
    Image.fromarray(values.squeeze()).save(tmp_path / "a.tif", compression=compression)
    assert_read(tmp_path / "a.tif", values)
    assert read_header(tmp_path / "a.tif").mode == kind


@settings(max_examples=60, deadline=None)
@given(
    bands=st.integers(1, 6),
    dtype=st.sampled_from(["uint8", "uint16"]),
    options=st.fixed_dictionaries(
        {
            "interleave": st.sampled_from(["pixel", "band"]),
            "compress": st.sampled_from(["none", "lzw", "deflate", "packbits", "zstd"]),
            "photometric": st.sampled_from(["minisblack", "miniswhite", "rgb"]),
        },
        optional={
            "predictor": st.just(2),
            "alpha": st.sampled_from(["yes", "no", "premultiplied", "non-premultiplied"]),
            "bigtiff": st.just("yes"),
            "endianness": st.just("big"),
            "tiled": st.just(True),
        },
    ),
)
def test_what_gdal_writes_is_read_and_default_bands_are_the_first_three(
    tmp_path_factory, bands, dtype, options
):
    if bands < 3:
        options["photometric"] = "minisblack"
    values = noise(bands, dtype)
    path = write_tiff(tmp_path_factory.mktemp("tiff") / "a.tif", values, **options)
    assert_read(path, values)
    chosen = Bands((1, 2, 3), 8 * values.itemsize)
    if bands >= 3:
        assert np.array_equal(read_bands(path, chosen), values[..., :3])
    elif bands == 1 and dtype == "uint8":
        assert np.array_equal(read_bands(path), values.repeat(3, -1))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numpy_file(order, dtype, tmp_path):
    values = noise(7, "uint8" if dtype == "uint8" else "uint16")
    np.save(tmp_path / "a.npy", np.asarray(values, dtype=dtype, order=order))
    assert_read(tmp_path / "a.npy", values)
    np.save(tmp_path / "a.npy", values[..., 0].astype(dtype))
    assert_read(tmp_path / "a.npy", values[..., :1])


def test_bands_come_in_the_chosen_order(tmp_path):
    values = noise(4)
    save_raster(tmp_path / "a.png", values)
    for numbers in [(1, 2, 3, 4), (4, 3, 2), (4,), (2, 1)]:
        found = read_bands(tmp_path / "a.png", Bands(numbers, 16))
        assert found.flags.c_contiguous
        assert np.array_equal(found, values[..., [n - 1 for n in numbers]])


GREY = noise(1, "uint8")[..., 0]


def palette_image() -> Image.Image:
    image = Image.fromarray(GREY % 4)
    image.putpalette([9, 8, 7, 20, 30, 40, 1, 2, 3, 50, 60, 70])
    return image


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(GREY),
        palette_image(),
        Image.fromarray(noise(3, "uint8")),
        Image.fromarray(noise(4, "uint8")),
        Image.fromarray(noise(2, "uint8"), "LA"),
        Image.fromarray(GREY > 99),
    ],
    ids=lambda image: image.mode,
)
def test_three_bands_of_8_bits_are_grey_palette_or_rgb_without_alpha(image, suffix, tmp_path):
    if suffix == "bmp" and image.mode in ("LA", "RGBA"):
        pytest.skip("no such file")
    path = tmp_path / f"a.{suffix}"
    image.save(path)
    assert np.array_equal(read_bands(path), np.asarray(image.convert("RGB")))
    assert read_header(path).is_rgb and read_header(path).mode == image.mode
    assert np.array_equal(np.asarray(open_image(path)), np.asarray(image))


def test_grey_arrays_serve_as_three_bands_and_of_more_the_first_three_count(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, GREY)
    assert np.array_equal(read_bands(path), GREY[..., None].repeat(3, -1))
    assert not lacks_bands(read_header(path), RGB.numbers)
    with pytest.raises(DataError, match="has 1 band of 8 bits, but bands 1, 2"):
        read_bands(path, Bands((1, 2)))
    np.save(path, noise(5, "uint8"))
    assert np.array_equal(read_bands(path), noise(5, "uint8")[..., :3])


def test_of_two_bands_the_second_is_lost_only_as_alpha(tmp_path):
    two = write_tiff(tmp_path / "two.tif", noise(2, "uint8"))
    assert not read_header(two).is_rgb
    for read in (read_bands, lambda path: read_bands(path, RGB)):
        with pytest.raises(DataError, match=f"^{two}: has 2 bands of 8 bits, but bands 1, 2, 3"):
            read(two)
    with pytest.raises(DataError, match=f"^{two}: cannot be decoded .2 bands of uint8 are no pic"):
        open_image(two)


@pytest.mark.parametrize(
    ("have", "wanted", "message"),
    [
        ((3, "uint16"), Bands((1, 4), 16), "has 3 bands of 16 bits, but bands 1, 4 of 16 bits"),
        ((1, "uint16"), Bands((1, 2, 3), 16), "has 1 band of 16 bits"),
        ((3, "uint16"), RGB, "has 3 bands of 16 bits, but .* of 8 bits"),
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
    for path in paths:
        assert read_header(path).bits == 32
        with pytest.raises(DataError, match=f"^{path}: {dtype} values; save all images as uint8"):
            read_bands(path, Bands((1,), 16))


def test_the_content_counts_not_the_name(tmp_path):
    values = noise(3, "uint8")
    save_raster(tmp_path / "a.png", values)
    np.save(tmp_path / "b.npy", values)
    write_tiff(tmp_path / "c.tif", values)
    for source, name in (("a.png", "1.jpg"), ("b.npy", "2.png"), ("c.tif", "3.bmp")):
        assert_read((tmp_path / source).rename(tmp_path / name), values)


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands for Ghostscript")
def test_no_program_is_started_by_an_image(tmp_path, monkeypatch):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    for read in (read_header, read_all, read_bands, open_image):
        with pytest.raises(DataError, match=f"^{path}: cannot be decoded .no PNG, JPEG, BMP, TIFF"):
            read(path)
    assert not (tmp_path / "ran").exists()


def test_pages_and_turned_axes_are_refused_by_name(tmp_path):
    pages = [Image.fromarray(noise(1, "uint8", seed)[..., 0]) for seed in range(6)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=r"a\.tif: cannot be decoded .6 pages"):
        read_bands(tmp_path / "a.tif")
    for shape in ((3, 64, 256), (3, 128, 100), (13, 40, 52)):
        np.save(tmp_path / "a.npy", np.zeros(shape, np.uint16))
        with pytest.raises(DataError, match=r"a\.npy: .* array; .*height, width, bands"):
            read_header(tmp_path / "a.npy")


@pytest.mark.parametrize("said", ['{"shape": [5, 9, 13]}', "ImageJ=1.11a\nimages=5\nslices=5"])
def test_pages_of_one_directory_are_refused_where_the_file_holds_them(said, tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(GREY).save(path, description=said)
    assert_read(path, GREY[..., None])  # cut out of such a file
    path.write_bytes(path.read_bytes() + 4 * GREY.tobytes())
    with pytest.raises(DataError, match=r"a\.tif: cannot be decoded .5 pages"):
        read_all(path)


def test_pictures_of_16_bits_are_stretched_band_by_band_and_of_8_bits_are_not(tmp_path):
    values = np.sort(noise(4).reshape(-1, 4), axis=0).reshape(HEIGHT, WIDTH, 4) // 100 + 700
    picture = to_rgb(values[..., :3])
    assert picture.min() == 0 and picture.max() == 255
    low, high = np.percentile(values[..., 1], (2, 98))
    expected = np.clip((values[..., 1] - low) / (high - low), 0, 1) * 255
    assert np.abs(picture[..., 1] - expected).max() <= 0.5
    save_raster(tmp_path / "a.png", values)
    assert np.array_equal(read_picture(tmp_path / "a.png"), picture)
    shown = read_picture(tmp_path / "a.png", (4, 2, 3))
    assert np.array_equal(shown[..., 1:], picture[..., 1:])
    assert np.ptp(read_picture(tmp_path / "a.png", (9, 2))) > 0
    np.save(tmp_path / "a.npy", noise(8, "uint8"))
    assert np.array_equal(read_picture(tmp_path / "a.npy"), noise(8, "uint8")[..., :3])
