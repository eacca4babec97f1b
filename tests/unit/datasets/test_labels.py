"""Labels of every format: one decoder, which says what is wrong."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets.classes import CHANGE_CLASSES, SECOND_CLASSES, ClassList
from datasets.labels import inspect_label, nearest_colors, read_label
from tests.helpers.raster_files import write_tiff
from utils.errors import DataError

MASK = np.random.default_rng(0).integers(0, 7, (5, 9), dtype=np.uint8)
MASK[0, :7] = range(7)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def with_palette(indices: np.ndarray, colors: list) -> Image.Image:
    image = Image.fromarray(np.asarray(indices, dtype=np.uint8))
    image.putpalette([channel for color in colors for channel in color])
    return image


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


RGB = Image.fromarray(SECOND_CLASSES.to_rgb(MASK))
KINDS = {
    "L": Image.fromarray(MASK),
    "P": with_palette(MASK, SECOND_CLASSES.colors),
    "P of other colours": with_palette(MASK, [(i, 3, 9) for i in range(256)]),
    "P of greys": with_palette(MASK, [(i, i, i) for i in range(256)]),
    "P in another order": with_palette(6 - MASK, SECOND_CLASSES.colors[::-1]),
    "P by frequency": RGB.quantize(7),  # as image editors number colours
    "P of greys in another order": with_palette(6 - MASK, [(6 - i,) * 3 for i in range(7)]),
    "RGB": RGB,
    "RGBA": Image.fromarray(np.dstack([RGB, np.zeros(MASK.shape, np.uint8)])),
}


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_indices(kind, suffix, tmp_path):
    if kind == "RGBA" and suffix == "bmp":
        pytest.skip("no such file")
    index = read_label(saved(KINDS[kind], tmp_path / f"label.{suffix}"), SECOND_CLASSES)
    assert index.dtype == np.uint8
    assert np.array_equal(index, MASK)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("driver", ["PNG", "GTiff"])
def test_grey_of_few_bits_is_not_stretched(driver, bits, tmp_path):
    values, size = MASK % min(4, 2**bits), {"width": MASK.shape[1], "height": MASK.shape[0]}
    path = tmp_path / "a.png"
    with rasterio.open(path, "w", driver, **size, count=1, dtype="uint8", nbits=bits) as file:
        file.write(values[None])
    for classes in (SECOND_CLASSES, CHANGE_CLASSES)[: 2 if bits == 1 else 1]:
        assert np.array_equal(read_label(path, classes), values)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=7, unique=True), st.randoms())
def test_renumbered_palettes_are_read_by_their_entries(tmp_path_factory, used, random):
    """As lossless optimisers make them of indices, of colours and of this project's masks."""
    folder = tmp_path_factory.mktemp("palettes")
    mask = np.random.default_rng(1).choice(np.array(used, np.uint8), (6, 8))
    order = list(range(7))
    random.shuffle(order)
    indices = np.argsort(order)[mask]
    for entries in ([(v, v, v) for v in order], [SECOND_CLASSES.colors[v] for v in order]):
        path = saved(with_palette(indices, entries), folder / "a.png")
        assert np.array_equal(read_label(path, SECOND_CLASSES), mask)


@pytest.mark.parametrize(
    "image",
    [
        *(Image.fromarray(np.array([[0, high]], np.uint8)) for high in (1, 255)),
        Image.fromarray(np.array([[BLACK, WHITE]], np.uint8)),
        with_palette([[0, 1]], [BLACK, WHITE]),
        with_palette([[1, 0]], [WHITE, BLACK]),
        with_palette([[0, 1]], [(9, 9, 9), (200, 0, 0)]),
    ],
)
def test_change_masks_of_every_kind(image, tmp_path):
    mask = read_label(saved(image, tmp_path / "a.png"), CHANGE_CLASSES)
    assert mask.dtype == np.uint8 and mask.tolist() == [[0, 1]]


GREENS = [(0, 255, 0), (0, 128, 0)]  # tree and low vegetation
BESIDE = (9, 200, 7)


@pytest.mark.parametrize(
    ("image", "classes", "message"),
    [
        (with_palette([[0, 1, 2]], [*GREENS, BESIDE]), SECOND_CLASSES,
         r"index 0 \(unchanged\) has the colour \(0, 255, 0\) of tree .*; save the mask as RGB"),
        (Image.fromarray(np.array([[0, 7, 7]], np.uint8)), SECOND_CLASSES,
         r"value 7: 2 pixels .*ends at 6 \(playground\).*classes.json"),
        (with_palette([[0, 6, 7]], [(i, 3, 9) for i in range(8)]), SECOND_CLASSES, "value 7"),
        (Image.fromarray(np.array([[0, 255]], np.uint8)), SECOND_CLASSES, "only 0 and 255"),
        (Image.fromarray(np.array([[0, 1, 255]], np.uint8)), CHANGE_CLASSES,
         "value 0: 1 pixels, 1: .*a change mask holds 0 and 255, or 0 and 1"),
        (Image.fromarray(np.array([[0, 7]], np.uint8)), CHANGE_CLASSES, "a change mask holds"),
        (Image.fromarray(np.array([[WHITE, (1, 2, 3), (1, 2, 3)]], np.uint8)), SECOND_CLASSES,
         r"colour \(1, 2, 3\): 2 pixels .*classes.json.*lossy"),
        (Image.fromarray(np.array([[WHITE, (254, 255, 255)]], np.uint8)), SECOND_CLASSES,
         r"colour \(254, 255, 255\): 1 pixels"),
        (Image.fromarray(np.array([[1]], np.uint16)), SECOND_CLASSES, "mode I;16 .*8-bit"),
        (Image.new("LA", (3, 3)), SECOND_CLASSES, "mode LA .*8-bit"),
    ],
)  # fmt: skip
def test_what_says_no_class_is_named(image, classes, message, tmp_path):
    path = saved(image, tmp_path / "a.png")
    with pytest.raises(DataError, match=f"^{path}: label .*{message}") as caught:
        read_label(path, classes)
    assert len(str(caught.value).splitlines()) == 1


def grey_png(path: Path, value: int, bits: int) -> Path:
    with rasterio.open(
        path, "w", "PNG", width=4, height=3, count=1, dtype="uint8", nbits=bits
    ) as file:
        file.write(np.full((1, 3, 4), value, np.uint8))
    return path


GREYS = ClassList(("none", "a", "b"), ((0, 0, 0), (17, 17, 17), (255, 255, 255)))
SWAPPED = ClassList(("unchanged", "changed"), (WHITE, BLACK))


@pytest.mark.parametrize(
    ("classes", "bits", "value", "meant"),
    [
        (SECOND_CLASSES, 8, 255, 0),  # as optimisers make them of this project's masks
        (SECOND_CLASSES, 8, 128, 2),
        (SECOND_CLASSES, 1, 1, None),  # unchanged in white, or water
        (SECOND_CLASSES, 1, 0, 0),
        (SECOND_CLASSES, 2, 3, 3),  # white needs a single bit
        (SECOND_CLASSES, 4, 6, 6),
        (GREYS, 4, 1, 1),
        (GREYS, 4, 15, 2),
        (GREYS, 1, 1, None),
        (CHANGE_CLASSES, 1, 1, 1),
        (CHANGE_CLASSES, 8, 255, 1),
        (SWAPPED, 8, 255, 1),
        (SWAPPED, 1, 1, None),
        (SWAPPED, 1, 0, None),
    ],
)
def test_grey_is_index_or_colour_or_refused_where_both_may_be_meant(
    classes, bits, value, meant, tmp_path
):
    path = grey_png(tmp_path / "a.png", value, bits)
    if meant is None:
        with pytest.raises(DataError, match=r"may be the colour of .*; save the mask as RGB"):
            read_label(path, classes)
    else:
        assert (read_label(path, classes) == meant).all()


def test_tiff_labels_whose_zero_is_white_are_refused(tmp_path):
    changed = (MASK > 0).astype(np.uint8)
    path = write_tiff(tmp_path / "a.tif", changed[..., None], nbits=1, photometric="miniswhite")
    with pytest.raises(DataError, match=f"^{path}: .*0 is white or black.*save labels as PNG"):
        read_label(path, CHANGE_CLASSES)


def test_colours_near_a_class_are_read_on_request():
    rgb = SECOND_CLASSES.to_rgb(MASK).astype(int)
    rgb[1] = np.clip(rgb[1] + 9, 0, 255)
    image = Image.fromarray(rgb.astype(np.uint8))
    reading = inspect_label(image, SECOND_CLASSES)
    assert reading.format == "near-colours" and np.array_equal(reading.mask, MASK)
    nearest, distance = nearest_colors(image, SECOND_CLASSES.colors)
    assert np.array_equal(nearest, MASK) and 9 <= distance.max() <= 16
    assert inspect_label(image, SECOND_CLASSES, color_distance=5).mask is None
