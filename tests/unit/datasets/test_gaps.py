"""Pixels that a file calls nodata, masked or transparent count nowhere."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image

from datasets.augment import TrainTransform
from datasets.bands import RGB, Bands
from datasets.cache import FileReader, build_cache
from datasets.classes import IGNORED, SECOND_CLASSES
from datasets.dataset import ChangeDetectionDataset
from datasets.images import (
    read_bands,
    read_header,
    read_masked,
    read_picture,
    save_raster,
)
from datasets.loaders import collate, evaluation_loader, training_loader
from datasets.pairs import index_pairs
from datasets.statistics import measure
from datasets.task import Task
from tests.helpers.raster_files import HEIGHT, WIDTH, noise, write_tiff
from utils.errors import DataError
from utils.places import places_apart

SECOND = Task(SECOND_CLASSES)
HOLE = np.zeros((HEIGHT, WIDTH), dtype=bool)
HOLE[2:6, 3:11] = True
ALL = Bands((1, 2, 3), 16)


def assert_valid(path: Path, valid: np.ndarray, bands: Bands) -> None:
    values, found = read_masked(path, bands)
    assert np.array_equal(np.ones(valid.shape, bool) if found is None else found, valid)
    assert np.array_equal(read_bands(path, bands), values)
    assert read_header(path).masked or valid.all()


def with_holes(bands: int, dtype: str, value: int) -> np.ndarray:
    """Noise with a hole in all bands, and more pixels of that value in one band alone."""
    values = noise(bands, dtype)
    values[values == value] ^= 1
    values[HOLE] = value
    if bands > 1:
        values[7, :4, 0] = value
    return values


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("bands", [1, 3, 4, 6])
def test_nodata_is_where_all_chosen_bands_have_it(bands, value, dtype, tmp_path):
    nodata, bits = value * int(np.iinfo(dtype).max), 8 if dtype == "uint8" else 16
    options = {"photometric": "minisblack", "compress": "lzw", "nodata": nodata}
    path = write_tiff(tmp_path / "a.tif", with_holes(bands, dtype, nodata), **options)
    assert_valid(path, ~HOLE, Bands((1, 2, 3)[:bands], bits))
    in_one_band = HOLE.copy()
    in_one_band[7, :4] = bands > 1
    assert_valid(path, ~in_one_band, Bands((1,), bits))
    with rasterio.open(path, "r+") as file:
        file.nodata = None
    assert_valid(path, np.ones_like(HOLE), Bands((1, 2, 3)[:bands], bits))
    assert not read_header(path).masked


def test_mask_of_a_tiff(tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(3))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.write_mask(~HOLE)
    assert_valid(path, ~HOLE, ALL)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_alpha_is_a_mask_but_infrared_is_not(kind, dtype, tmp_path):
    def write(values: np.ndarray) -> Path:
        path = tmp_path / f"a.{kind}"
        if kind == "png":
            save_raster(path, values)
        else:
            write_tiff(path, values, photometric="rgb", alpha="yes")
        return path

    bits = 8 * np.dtype(dtype).itemsize
    values = noise(4, dtype)
    assert_valid(write(values), np.ones_like(HOLE), Bands((1, 2, 3), bits))
    values[..., 3] = np.where(HOLE, 0, np.iinfo(dtype).max)
    path = write(values)
    for numbers in ((1, 2, 3), (3, 1), (2,)):
        assert_valid(path, ~HOLE, Bands(numbers, bits))
    for numbers in ((1, 2, 3, 4), (4,)):  # it is an image itself
        assert_valid(path, np.ones_like(HOLE), Bands(numbers, bits))


def test_alpha_without_its_top_is_none_and_soft_edges_are_data(tmp_path):
    alpha = np.where(HOLE, 0, 255).astype(np.uint8)
    alpha[2, 3] = 9
    for name, values, valid in (("dark", alpha * 0, None), ("soft", alpha, alpha > 0)):
        path = tmp_path / f"{name}.png"
        save_raster(path, np.dstack([noise(3, "uint8"), values]))
        found = read_masked(path)[1]
        assert np.array_equal(found, valid) if valid is not None else found is None


def test_equal_places_in_systems_of_other_names_agree(tmp_path):
    place = {"transform": rasterio.transform.from_origin(113.1, 22.9, 1e-5, 1e-5)}
    paths = [tmp_path / f"{code}.tif" for code in (4326, 4490)]
    for path in paths:
        write_tiff(path, noise(3), crs=f"EPSG:{path.stem}", **place)
    assert places_apart(*(read_header(path).place for path in paths)) == ""


def test_alpha_of_grey_and_transparent_colours_of_png(tmp_path):
    path, grey = tmp_path / "a.png", with_holes(1, "uint8", 7)[..., 0]
    Image.fromarray(np.dstack([grey, np.where(HOLE, 0, 255).astype(np.uint8)])).save(path)
    assert_valid(path, ~HOLE, RGB)
    Image.fromarray(grey).save(path, transparency=7)
    assert_valid(path, ~HOLE, RGB)
    palette = Image.fromarray(np.where(HOLE, 1, grey % 2 * 2).astype(np.uint8))
    palette.putpalette(range(9))
    palette.save(path, transparency=b"\xff\0\xff")
    assert_valid(path, ~HOLE, RGB)
    palette.save(path, transparency=b"\xff\0\x80")  # half transparent: a picture's, no mask
    assert_valid(path, np.ones_like(HOLE), RGB)
    # Two bits a pixel, which Pillow scales, but not the transparent value.
    levels, chunk = np.repeat(np.arange(4), 2), b"tRNS\0\2"
    row = struct.pack("BB", *np.packbits(np.unpackbits(levels.astype(np.uint8)[:, None], 1)[:, 6:]))
    body = zlib.compress(3 * (b"\0" + row))
    png = b"\x89PNG\r\n\x1a\n"
    sizes = b"IHDR" + struct.pack(">IIBBBBB", 8, 3, 2, 0, 0, 0, 0)
    for part in (sizes, chunk, b"IDAT" + body, b"IEND"):
        png += struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
    path.write_bytes(png)
    assert_valid(path, np.tile(levels != 2, (3, 1)), RGB)


# --- samples --------------------------------------------------------------------------------


@pytest.fixture
def root(write_pairs) -> Path:
    """Two pairs; the first has a hole at date 1, an L at date 2, and labels that disagree there."""
    folder = write_pairs({"a": (24, 32), "b": (24, 32)})
    for date, hole in ((1, np.s_[2:9, 5:12]), (2, np.s_[:, 28:])):
        for name in "ab":
            image = folder / f"im{date}/{name}.png"
            values = np.asarray(Image.open(image)).astype(np.uint16) * 9 + 1
            if name == "a":
                values[hole] = 65_535
            image.unlink()
            options = {"nodata": 65_535} if name == "a" else {}
            write_tiff(image.with_suffix(".tif"), values, **options)
    label = folder / "label1/a.png"
    values = np.asarray(Image.open(label)).copy()
    values[2:9, 5:12] = 0
    Image.fromarray(values).save(label)
    return folder


def gap() -> np.ndarray:
    ignored = np.zeros((24, 32), dtype=bool)
    ignored[2:9, 5:12] = ignored[:, 28:] = True
    return ignored


def test_samples_with_and_without_gaps(root, tmp_path):
    pairs = index_pairs(root)
    reader = FileReader(SECOND_CLASSES, ALL)
    dataset = ChangeDetectionDataset(pairs, SECOND, reader=reader)
    sample, plain = dataset[0], dataset[1]
    assert np.array_equal(sample["ignored"], gap()) and "ignored" not in plain
    for key in ("label1", "label2", "change_mask"):
        assert np.array_equal(sample[key] == IGNORED, gap())
        assert not (plain[key] == IGNORED).any()
        assert torch.equal(dataset.labels(0)[key], sample[key])
    image, hole = sample["image1"].permute(1, 2, 0).numpy(), np.zeros((24, 32), dtype=bool)
    hole[2:9, 5:12] = True
    assert np.array_equal(image[4, 7], image[~hole].mean(0).round()) and image.max() < 65_535
    assert read_picture(pairs[0].image1).std() > 20  # the light is that of what has data
    cached = build_cache(pairs, SECOND_CLASSES, tmp_path / "cache", bands=ALL)
    dataset = ChangeDetectionDataset(pairs, SECOND, reader=cached)
    batch = collate([dataset[0], dataset[1]])
    assert batch["ignored"].shape == (2, 24, 32) and not batch["ignored"][1].any()
    for key in sample.keys() - {"name"}:
        assert torch.equal(batch[key][0], sample[key])
    unlabelled = ChangeDetectionDataset([p.without_labels() for p in pairs], SECOND, reader=reader)
    assert torch.equal(unlabelled[0]["ignored"], sample["ignored"])


def test_geometry_moves_gaps_along(root):
    reader, transform = FileReader(SECOND_CLASSES, ALL), TrainTransform(16, is_rgb=False)
    dataset = ChangeDetectionDataset(index_pairs(root), SECOND, transform, reader=reader)
    for epoch in range(8):
        dataset.set_epoch(epoch)
        sample = dataset[0]
        ignored = sample["change_mask"] == IGNORED
        assert "ignored" not in sample and sample["label1"].shape == (16, 16)
        assert torch.equal(ignored, sample["label2"] == IGNORED)
        assert ignored.any() != bool((sample["change_mask"] < 2).all())


def test_statistics_leave_gaps_out(root):
    pairs, values = index_pairs(root), []
    for path in (path for pair in pairs for path in (pair.image1, pair.image2)):
        image = read_bands(path, ALL)
        values.append(image[(image != 65_535).any(-1)])
    imagery = measure(pairs, ALL)
    values = np.concatenate(values).astype(np.float64)
    assert imagery.mean == pytest.approx(values.mean(0)) and max(imagery.mean) < 3000
    assert imagery.std == pytest.approx(values.std(0))
    write_tiff(pairs[0].image1, np.full((24, 32, 3), 5, np.uint16), nodata=5)
    write_tiff(pairs[0].image2, np.full((24, 32, 3), 5, np.uint16), nodata=5)
    with pytest.raises(DataError, match="one value everywhere"):
        measure(pairs[:1], ALL)


# --- places on the map ----------------------------------------------------------------------

GRID = rasterio.transform.from_origin(500_000, 4_600_000, 10, 10)
HERE = {"crs": "EPSG:32632", "transform": GRID}
ELSEWHERE = {
    "13.0 pixels": {"transform": GRID * GRID.translation(WIDTH, 0)},
    "4.5 pixels": {"transform": GRID * GRID.translation(0, 4.5)},
    "9.0 pixels": {"transform": GRID * GRID.translation(0, HEIGHT) * GRID.scale(1, -1)},
    "pixels of 30 ": {"transform": GRID * GRID.scale(3, 3)},
    "zone 33N": {"crs": "EPSG:32633"},
}


@pytest.mark.parametrize("said", ELSEWHERE)
def test_dates_that_lie_elsewhere_are_named(said, write_pairs, tmp_path):
    folder = write_pairs({"a": (HEIGHT, WIDTH)})
    for date, place in ((1, HERE), (2, HERE | ELSEWHERE[said])):
        (folder / f"im{date}/a.png").unlink()
        write_tiff(folder / f"im{date}/a.tif", noise(3, "uint8"), **place)
    pairs = index_pairs(folder)
    dataset = ChangeDetectionDataset(pairs, SECOND)
    for loader in (training_loader, evaluation_loader):
        with pytest.raises(DataError, match=rf"im2/a.tif and .*im1/a.tif: .*{said}.*; warp") as e:
            loader(dataset, 1, 0)
        assert "\n" not in str(e.value)


def test_places_that_agree_or_are_not_known(tmp_path):
    here = read_header(write_tiff(tmp_path / "a.tif", noise(3), **HERE)).place
    wkt = rasterio.crs.CRS.from_epsg(32632).to_wkt().replace('"WGS 84 / UTM zone 32N"', '"x"')
    finer = noise(3).repeat(3, 0).repeat(3, 1)
    others = [
        write_tiff(tmp_path / "b.tif", noise(3)),
        write_tiff(tmp_path / "c.tif", noise(3), crs="EPSG:32632"),
        write_tiff(tmp_path / "d.tif", noise(3), transform=GRID),
        write_tiff(tmp_path / "e.tif", noise(3), crs=wkt, transform=GRID),
        write_tiff(tmp_path / "f.tif", noise(3), **HERE | {"transform": GRID * GRID.scale(1.001)}),
        write_tiff(tmp_path / "g.tif", finer, **HERE | {"transform": GRID * GRID.scale(1 / 3)}),
    ]
    for number, flat in enumerate([(0, 0, 5, 0, 0, 7), (0.1, 0.2, 5, 0.3, 0.6, 7)]):
        place = HERE | {"transform": rasterio.Affine(*flat)}
        others.append(write_tiff(tmp_path / f"flat{number}.tif", noise(3), **place))
    places = [read_header(path).place for path in others]
    assert [places_apart(here, place) for place in places] == [""] * len(others)
    assert [places_apart(place, here) for place in places] == [""] * len(others)
