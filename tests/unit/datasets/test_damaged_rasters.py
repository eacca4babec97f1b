"""Hostile, damaged and cut-off images of many bands are named errors."""

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets.bands import Bands
from datasets.images import (
    MAX_VALUES,
    image_size,
    open_image,
    read_all,
    read_bands,
    read_header,
    save_raster,
)
from tests.helpers.damaged_bytes import arrays_or_named_errors, changes, mutate
from tests.helpers.raster_files import HEIGHT, WIDTH, noise, write_tiff
from utils.errors import DataError


def test_a_png_whose_header_is_not_first_is_a_named_error(tmp_path):
    path = tmp_path / "a.png"
    for dtype in ("uint8", "uint16"):
        save_raster(path, noise(3, dtype))
        data, text = path.read_bytes(), b"tEXtcomment\0late"
        chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
        path.write_bytes(data[:8] + chunk + data[8:])
        with Image.open(path) as image:
            assert image.size == (WIDTH, HEIGHT)  # Pillow forgives it
        for read in (read_header, read_all, read_bands):
            with pytest.raises(DataError, match=f"^{path}: cannot be decoded .no PNG header"):
                read(path)


def test_threads_leave_the_filters_of_warnings_alone(tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(5))
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read_all, [path] * 40))
    assert warnings.filters == before


@pytest.mark.parametrize(
    "shape", ["(100000, 100000, 3)", "(2**62, 2, 1)", f"({2**62}, {2**62}, 4)", "(0, 4, 1)",
              "(-1, 4, 1)", "(4, 4)", "(4,)", "(2, 2, 2, 2)", "(True, 4, 1)", "(4.0, 4, 1)"]
)  # fmt: skip
def test_numpy_files_that_promise_more_than_they_hold(shape, tmp_path):
    path = tmp_path / "a.npy"
    header = f"{{'descr': '<u2', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0\0")
    for read in (read_header, read_all, image_size):
        with pytest.raises(DataError, match=f"^{path}: ") as caught:
            read(path)
        assert "\n" not in str(caught.value)


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("payload_ran"),))


def test_numpy_files_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "a.npy", np.full((4, 4, 1), Payload(), dtype=object), allow_pickle=True)
    for read in (read_header, read_all):
        with pytest.raises(DataError):
            read(tmp_path / "a.npy")
    records = np.zeros((4, 4), dtype=[("a", "u1"), ("b", "u1")])
    np.save(tmp_path / "b.npy", records)
    with pytest.raises(DataError, match="save images as"):
        read_all(tmp_path / "b.npy")
    assert not (tmp_path / "payload_ran").exists()


def test_tiff_bombs_are_refused(tmp_path):
    path, side = tmp_path / "a.tif", int((MAX_VALUES / 5) ** 0.5) + 1
    options = {"driver": "GTiff", "dtype": "uint16", "compress": "deflate", "sparse_ok": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        rasterio.open(path, "w", width=side, height=side, count=5, **options).close()
    assert path.stat().st_size < 10**6
    for read in (read_header, read_all, image_size):
        with pytest.raises(DataError, match=f"^{path}: .*cut the scene into tiles"):
            read(path)


def valid_files() -> list[tuple[str, bytes]]:
    files = []
    buffer = io.BytesIO()
    np.save(buffer, noise(5))
    files.append(("npy", buffer.getvalue()))
    with TemporaryDirectory() as folder:
        for bands in (3, 4):
            save_raster(Path(folder, "a.png"), noise(bands))
            write_tiff(Path(folder, "a.tif"), noise(bands), compress="lzw")
            files += [(kind, Path(folder, f"a.{kind}").read_bytes()) for kind in ("png", "tif")]
    return files


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(valid_files()), changes)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_named_errors(tmp_path, file, steps):
    suffix, data = file
    path = tmp_path / f"image.{suffix}"
    path.write_bytes(mutate(data, steps))
    readers = (read_header, read_all, lambda p: read_bands(p, Bands((1, 2), 16)))
    for found in arrays_or_named_errors(path, readers):
        assert found.dtype in (np.uint8, np.uint16) and found.ndim == 3


@pytest.mark.parametrize("share", [0.3, 0.6, 0.98])
@pytest.mark.parametrize("kind", ["png", "tif", "npy", "jpg", "bmp"])
def test_files_that_are_cut_off(kind, share, tmp_path, capfd):
    path = tmp_path / f"a.{kind}"
    values = np.repeat(np.repeat(noise(4), 8, axis=0), 8, axis=1)
    if kind == "npy":
        np.save(path, values)
    elif kind == "png":
        save_raster(path, values)
    elif kind in ("jpg", "bmp"):
        Image.fromarray((values[..., :3] >> 8).astype(np.uint8)).save(path)
    else:
        write_tiff(path, values, compress="lzw")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match=f"^{path}: cannot be decoded"):
        read_all(path)
    assert capfd.readouterr().err == ""


def png_of(header: tuple, pixels: bytes) -> bytes:
    chunks = [b"IHDR" + struct.pack(">LL5B", *header), b"IDAT" + zlib.compress(pixels), b"IEND"]
    framed = (struct.pack(">L", len(c) - 4) + c + struct.pack(">L", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize("bits", [8, 16])
def test_pngs_of_too_few_rows_are_refused(bits, interlaced, tmp_path):
    path, size = tmp_path / "a.png", bits // 8
    # Adam7's order: top left, bottom left, second column of both, and the row between.
    rows = [1, 1, 1, 1, 2] if interlaced else [2, 2, 2]
    pixels = b"".join(bytes(1 + columns * size) for columns in rows)
    path.write_bytes(png_of((2, 3, bits, 0, 0, 0, interlaced), pixels))
    assert read_all(path)[0].shape == (3, 2, 1)
    path.write_bytes(png_of((2, 3, bits, 0, 0, 0, interlaced), pixels[: -1 - rows[-1] * size]))
    for read in (read_all, open_image):
        with pytest.raises(DataError, match=f"^{path}: cannot be decoded"):
            read(path)


def test_a_png_with_any_bit_changed_is_refused(tmp_path):
    path = tmp_path / "a.png"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 7, (8, 8), dtype=np.uint8))
    image.putpalette(range(21))
    image.save(path)
    data = path.read_bytes()
    for bit in range(0, 8 * len(data), 9):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        for read in (read_all, open_image):
            with pytest.raises(DataError, match=f"^{path}: "):
                read(path)
