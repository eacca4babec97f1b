"""Images of any bands and depth: read as written, or refused with a clear error."""

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_properties import changes, mutate

from datasets.change_detection import image_size, index_pairs
from utils.bands import RGB, Bands
from utils.errors import DataError
from utils.images import Normalization, normalization, normalize
from utils.masks import read_rgb
from utils.pictures import to_rgb
from utils.rasters import (
    MAX_VALUES,
    read_bands,
    read_header,
    read_picture,
    read_raster,
    save_raster,
)

HEIGHT, WIDTH = 9, 13


def noise(bands: int, dtype: str = "uint16", seed: int = 0) -> np.ndarray:
    """Every bit matters: the upper and the lower byte of each value are random."""
    top = np.iinfo(dtype).max
    values = np.random.default_rng(seed).integers(0, top, (HEIGHT, WIDTH, bands), endpoint=True)
    return values.astype(dtype)


def write_tiff(path: Path, values: np.ndarray, **options: object) -> Path:
    rasterio = pytest.importorskip("rasterio")
    height, width, bands = values.shape
    size = {"height": height, "width": width, "count": bands}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", driver="GTiff", dtype=values.dtype, **size, **options
        ) as file:
            file.write(np.moveaxis(values, -1, 0))
    return path


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
            assert np.array_equal(read_bands(path, RGB), read_rgb(path))


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
    assert np.array_equal(read_bands(tmp_path / "cmyk.tif", RGB), read_rgb(tmp_path / "cmyk.tif"))


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


# --- hostile and damaged files ---------------------------------------------------------------


def test_a_png_whose_header_is_not_first_is_a_named_error(tmp_path):
    path = tmp_path / "a.png"
    for dtype in ("uint8", "uint16"):
        save_raster(path, noise(3, dtype))
        data, text = path.read_bytes(), b"tEXtcomment\0late"
        chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
        path.write_bytes(data[:8] + chunk + data[8:])
        with Image.open(path) as image:
            assert image.size == (WIDTH, HEIGHT)  # Pillow forgives it
        for read in (read_header, read_raster, read_bands):
            with pytest.raises(DataError, match=f"^{path}: cannot be decoded .no PNG header"):
                read(path)


def test_threads_leave_the_filters_of_warnings_alone(tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(5))
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read_raster, [path] * 40))
    assert warnings.filters == before


def npy_header(text: str, body: bytes = b"") -> bytes:
    data = text.encode("latin1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(data)) + data + body


@pytest.mark.parametrize(
    "shape", ["(100000, 100000, 3)", "(2**62, 2, 1)", f"({2**62}, {2**62}, 4)", "(0, 4, 1)",
              "(-1, 4, 1)", "(4, 4)", "(4,)", "(2, 2, 2, 2)", "(True, 4, 1)", "(4.0, 4, 1)"]
)  # fmt: skip
def test_numpy_files_that_promise_more_than_they_hold(shape, tmp_path):
    path = tmp_path / "a.npy"
    header = f"{{'descr': '<u2', 'fortran_order': False, 'shape': {shape}, }}\n"
    path.write_bytes(npy_header(header, b"\0\0"))
    for read in (read_header, read_raster, image_size):
        with pytest.raises(DataError, match=f"^{path}: ") as caught:
            read(path)
        assert "\n" not in str(caught.value)


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("payload_ran"),))


def test_numpy_files_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "a.npy", np.full((4, 4, 1), Payload(), dtype=object), allow_pickle=True)
    for read in (read_header, read_raster):
        with pytest.raises(DataError):
            read(tmp_path / "a.npy")
    records = np.zeros((4, 4), dtype=[("a", "u1"), ("b", "u1")])
    np.save(tmp_path / "b.npy", records)
    with pytest.raises(DataError, match="save images as"):
        read_raster(tmp_path / "b.npy")
    assert not (tmp_path / "payload_ran").exists()


def test_tiff_bombs_are_refused(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    path, side = tmp_path / "a.tif", int((MAX_VALUES / 5) ** 0.5) + 1
    options = {"driver": "GTiff", "dtype": "uint16", "compress": "deflate", "sparse_ok": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        rasterio.open(path, "w", width=side, height=side, count=5, **options).close()
    assert path.stat().st_size < 10**6
    for read in (read_header, read_raster, image_size):
        with pytest.raises(DataError, match=f"^{path}: .*cut the scene into tiles"):
            read(path)


def valid_files() -> list[tuple[str, bytes]]:
    files = []
    buffer = io.BytesIO()
    np.save(buffer, noise(5))
    files.append(("npy", buffer.getvalue()))
    import cv2

    for bands in (3, 4):
        files.append(("png", cv2.imencode(".png", noise(bands))[1].tobytes()))
        files.append(("tif", cv2.imencode(".tif", noise(bands))[1].tobytes()))
    return files


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(valid_files()), changes)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_named_errors(tmp_path, file, steps):
    suffix, data = file
    path = tmp_path / f"image.{suffix}"
    path.write_bytes(mutate(data, steps))
    for read in (read_header, read_raster, lambda p: read_bands(p, Bands((1, 2), 16))):
        try:
            found = read(path)
        except DataError as error:
            assert str(path) in str(error)
            continue
        if isinstance(found, np.ndarray):
            assert found.dtype in (np.uint8, np.uint16) and found.ndim == 3


@pytest.mark.parametrize("share", [0.3, 0.6, 0.98])
@pytest.mark.parametrize("kind", ["png", "tif", "npy"])
def test_files_that_are_cut_off(kind, share, tmp_path, capfd):
    path = tmp_path / f"a.{kind}"
    values = np.repeat(np.repeat(noise(4), 8, axis=0), 8, axis=1)
    if kind == "npy":
        np.save(path, values)
    elif kind == "png":
        save_raster(path, values)
    else:
        write_tiff(path, values, compress="lzw")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match=f"^{path}: cannot be decoded"):
        read_raster(path)
    assert capfd.readouterr().err == ""


# --- on the way to the model -----------------------------------------------------------------


def test_normalization_of_16_bits_equals_numpy():
    images = np.stack([noise(4, seed=seed) for seed in range(3)])
    mean, std = images.mean((0, 1, 2)), images.std((0, 1, 2))
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    assert batch.dtype == torch.uint16
    found = normalize(batch, mean.tolist(), std.tolist())
    expected = np.moveaxis((images - mean) / std, -1, 1)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)
    chosen = Normalization(tuple(mean[[3, 1]]), tuple(std[[3, 1]]), (3, 1))(batch)
    torch.testing.assert_close(chosen, found[:, [3, 1]])
    assert chosen.is_contiguous(memory_format=torch.channels_last)
    assert batch.numpy().max() == images.max()  # the batch itself is left alone


@pytest.mark.gpu
def test_normalization_of_16_bits_on_a_gpu():
    batch = torch.from_numpy(noise(4)).permute(2, 0, 1)[None]
    norm = Normalization((30_000.0, 20_000.0), (15_000.0, 9_000.0), (3, 1))
    found = norm(batch.pin_memory().to("cuda", non_blocking=True))
    torch.testing.assert_close(found.cpu(), norm(batch))


def test_normalization_picks_the_models_bands():
    from utils.bands import Imagery

    imagery = Imagery(Bands((4, 2), 16), (1, 2), (3, 4))
    assert normalization(imagery, Bands((1, 2, 3, 4), 16)).channels == (3, 1)
    assert normalization(imagery, imagery.bands).channels is None
    assert normalization(Imagery(), RGB) == Normalization()


# --- what is shown ---------------------------------------------------------------------------


def test_pictures_of_16_bits_are_stretched_band_by_band(tmp_path):
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


def test_pictures_of_8_bits_are_as_they_are(tmp_path):
    for bands in (3, 4, 13):
        values = noise(bands, "uint8")
        np.save(tmp_path / "a.npy", values)
        assert np.array_equal(read_picture(tmp_path / "a.npy"), values[..., :3])
        assert np.array_equal(to_rgb(values), values[..., :3])
