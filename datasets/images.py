"""The one reader of rasters, images and labels alike: what a file holds decides, not its name.

All come upright, as viewers show them: the orientation tag of JPEG, PNG and TIFF is applied. GDAL
ignores it, but labels are drawn on, and tiles cut from, what people see.
"""

import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image, ImageOps
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.io import DatasetReader

from datasets.bands import MAX_BANDS, RGB, Bands
from utils.errors import DataError
from utils.files import atomic_path
from utils.image_files import (
    exif_orientation,
    load_whole,
    require_whole_png,
    tiff_orientation,
    upright,
    upright_size,
)
from utils.pictures import PNG_LEVEL, to_rgb
from utils.places import Place, places_apart

DTYPES = {"uint8": 8, "uint16": 16}
# As Pillow does with twice its limit; values count here, since a pixel may have hundreds of them.
MAX_VALUES = 8 * (Image.MAX_IMAGE_PIXELS or 2**27)
# No other format is ever opened: some that Pillow knows start programs.
_STARTS = dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF")
_STARTS |= {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP", b"\x93NUMPY": "NPY"}
_PNG_BITS_AT = 24  # the byte of a PNG that tells its bits per channel
GREY_STEP = "step"  # of Pillow's info: in 8 bits what 1 is in a label's own, if these are 2 or 4
SHARP = 0.95  # of a mask's pixels are 0 or its top; the rest are soft edges
_READ_AS = {"1": "L", "L": "L", "LA": "LA", "RGBA": "RGBA"}  # by Pillow's mode; others as RGB
# No look around for files that belong to a raster.
_GDAL_OPTIONS = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}
# Images need no place on the map. Set once, since threads share filters.
warnings.filterwarnings("ignore", "Dataset has no geotransform")


@dataclass(frozen=True)
class Header:
    """What a raster says of itself; its type may not be supported, its Pillow mode be empty.

    ``bands`` are values per pixel: 3 for palettes and other colour spaces, which are read as RGB.
    ``height`` and ``width`` are upright. ``masked`` tells that the file may name pixels without
    data: by a nodata value, a mask, or alpha. ``place`` is where it says that it lies.
    """

    height: int
    width: int
    bands: int
    dtype: str
    format: str
    mode: str = ""
    masked: bool = False
    orientation: int = 1
    place: Place | None = None

    @property
    def bits(self) -> int:
        """8 or 16 bits per value; 32 stands for all types that are not supported."""
        return DTYPES.get(self.dtype, 32)

    @property
    def has_alpha(self) -> bool:
        """Whether the file calls its last band alpha, as GDAL does the fourth of four of 8 bits."""
        return self.mode in ("LA", "RGBA")

    @property
    def is_rgb(self) -> bool:
        """Whether the file serves as three bands of 8 bits, which loses nothing but alpha."""
        return self.dtype == "uint8" and (self.bands in (1, 3) or self.has_alpha)


@dataclass(frozen=True)
class _Raster:
    """An open file: ``decode`` returns its values, and ``mask`` takes them and band numbers and
    returns (H, W), 0 where none of the bands has data, else the type's top; None for no mask.
    """

    header: Header
    decode: Callable[[], np.ndarray]
    mask: Callable[[np.ndarray, Sequence[int]], np.ndarray | None] = lambda *_: None

    def read(self, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray | None]:
        """Return what `read_all` does."""
        header, values, valid = self.header, self.decode(), None
        if header.masked:
            alpha_is_left = header.has_alpha and _serves_as_rgb(header, numbers)
            there = [number for number in numbers if number <= header.bands - alpha_is_left]
            mask = self.mask(values, there)
            if mask is not None and not mask.all() and self._is_mask(mask):
                valid = upright(mask > 0, header.orientation)
        return upright(values, header.orientation), valid

    def _is_mask(self, mask: np.ndarray) -> bool:
        """Tell whether alpha is a mask: infrared may be called so, but has few of its ends."""
        top = np.iinfo(mask.dtype).max
        sharp = np.isin(mask, (0, top)).mean() >= SHARP
        return bool(sharp and (not self.header.has_alpha or (mask == top).any()))


def read_header(path: Path) -> Header:
    """Read size, bands and type, undecoded; a DataError if missing, unknown or oversized."""
    with _opened(path) as raster:
        return raster.header


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of a raster, without decoding it; raises as `read_header`."""
    header = read_header(path)
    return header.height, header.width


def common_size(image1: Path, image2: Path) -> tuple[int, int]:
    """Return `image_size` of a pair's first date; a DataError if they lie at different places."""
    header = read_header(image1)
    if header.place:  # of most data sets, half the files need not be opened
        apart = places_apart(header.place, read_header(image2).place)
        if apart:
            raise DataError(f"{image2} and {image1}: {apart}; warp the pair to one grid")
    return header.height, header.width


def read_all(
    path: Path, numbers: Sequence[int] = RGB.numbers
) -> tuple[np.ndarray, np.ndarray | None]:
    """Read (H, W, bands) uint8 or uint16 as in the file, but palettes as RGB; else a DataError.

    Beside them come the pixels that have data in some of its bands, as of `read_masked`.
    """
    with _opened(path) as raster:
        _require_whole_numbers(path, raster.header)
        return raster.read(numbers)


def read_masked(path: Path, bands: Bands = RGB) -> tuple[np.ndarray, np.ndarray | None]:
    """Read (H, W, len(bands.numbers)) of the bands' depth; a DataError where they are not there.

    As three bands of 8 bits serve grey and palette images too; alpha is left out. Beside them come
    the pixels that have data, (H, W) bool, in at least one of the bands; None for all.

    Not data is what the file itself calls so: its nodata value in all chosen bands, its mask, or
    alpha that is 0 or, somewhere, the top of its type, soft edges aside, and not chosen itself.
    """
    with _opened(path) as raster:
        require_bands(path, raster.header, bands)
        values, valid = raster.read(bands.numbers)
    chosen = [number - 1 for number in bands.numbers]
    if bands == RGB:
        values = to_rgb(values)
    elif chosen != list(range(values.shape[-1])):
        values = values[..., chosen]
    return np.ascontiguousarray(values), valid


def read_bands(path: Path, bands: Bands = RGB) -> np.ndarray:
    """Read the values alone that `read_masked` returns, those without data as in the file."""
    return read_masked(path, bands)[0]


def valid_in_all(masks: Iterable[np.ndarray | None]) -> np.ndarray | None:
    """Return where all of some images have data, of what `read_masked` says of each."""
    masks = [valid for valid in masks if valid is not None]
    return np.logical_and.reduce(masks) if masks else None


def valid_pixels(paths: Iterable[Path], numbers: Sequence[int]) -> np.ndarray | None:
    """Return where all of some images have data in their bands; those without gaps stay unread."""
    masked = [path for path in paths if read_header(path).masked]
    return valid_in_all(read_all(path, numbers)[1] for path in masked)


def fill_gaps(values: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """Give pixels without data the mean of each band, so that convolutions see no edge there.

    (H, W, bands), changed in place, and (H, W) bool or None; all are 0 where none has data.
    """
    if valid is not None:
        values[~valid] = values[valid].mean(axis=0).round() if valid.any() else 0
    return values


def read_picture(path: Path, numbers: Sequence[int] = RGB.numbers) -> np.ndarray:
    """Read (H, W, 3) uint8 to look at: the first three of the bands named that the file has."""
    values = fill_gaps(*read_all(path, numbers))
    shown = [number - 1 for number in numbers if number <= values.shape[-1]]
    return np.ascontiguousarray(to_rgb(values[..., shown[:3] or [0]]))


def open_image(path: Path) -> Image.Image:
    """Read a label with the very values of the file, grey of 2 bits as 0 to 3; else a DataError."""
    kind, start = _identify(path)
    if kind == "NPY":
        raise _undecodable(path, "an array is no picture")
    if kind == "TIFF":
        with _opened_by_gdal(path, kind) as (file, header, colors):
            if "MINISWHITE" in file.tags(ns="IMAGE_STRUCTURE"):  # programs differ in what is 0
                raise _undecodable(path, "0 is white or black to programs, save labels as PNG")
            image = _to_picture(file, header, colors)
    else:
        with _named_errors(path):
            image = Image.open(path, formats=(kind,))
            tag = exif_orientation(image)
            load_whole(image, tag)
            ImageOps.exif_transpose(image, in_place=True)
        if kind == "PNG" and start[_PNG_BITS_AT] in (2, 4) and image.mode == "L":
            step = 255 // (2 ** start[_PNG_BITS_AT] - 1)
            image = image.point([value // step for value in range(256)])
            image.info[GREY_STEP] = step
    image.format = kind
    return image


def save_raster(path: Path, values: np.ndarray) -> None:
    """Write (H, W, 1, 3 or 4) uint8 or uint16 as PNG."""
    height, width, bands = values.shape
    size = {"height": height, "width": width, "count": bands, "dtype": values.dtype}
    with (
        atomic_path(Path(path)) as temporary,
        rasterio.Env(**_GDAL_OPTIONS),
        rasterio.open(temporary, "w", driver="PNG", zlevel=PNG_LEVEL, **size) as file,
    ):
        file.write(np.moveaxis(values, -1, 0))


def require_bands(path: Path, header: Header, bands: Bands) -> None:
    """Raise a DataError unless a file has all chosen bands, in their depth."""
    _require_whole_numbers(path, header)
    if header.bits != bands.bits or lacks_bands(header, bands.numbers):
        has = f"{header.bands} band{'s' if header.bands > 1 else ''} of {header.bits} bits"
        raise DataError(
            f"{path}: has {has}, but {bands} are wanted; choose other --bands or save all alike"
        )


def lacks_bands(header: Header, numbers: Sequence[int]) -> bool:
    """Tell whether a file lacks one of some bands; what serves as 8-bit RGB has three."""
    return max(numbers) > header.bands and not _serves_as_rgb(header, numbers)


def _serves_as_rgb(header: Header, numbers: Sequence[int]) -> bool:
    return tuple(numbers) == RGB.numbers and header.is_rgb


def _require_whole_numbers(path: Path, header: Header) -> None:
    if header.dtype not in DTYPES:
        raise DataError(
            f"{path}: {header.dtype} values; save all images as uint8 or uint16, as gdal_translate "
            "-ot UInt16 -scale LOW HIGH 0 65535 does"
        )


def _identify(path: Path) -> tuple[str, bytes]:
    """Return the format of a file by its content, and the bytes at its start."""
    if not path.is_file():
        raise DataError(f"{path}: no such file, or no regular one")
    with _named_errors(path), open(path, "rb") as file:
        start = file.read(_PNG_BITS_AT + 1)
    kind = next((kind for magic, kind in _STARTS.items() if start.startswith(magic)), None)
    if kind is None:
        raise _undecodable(path, "no PNG, JPEG, BMP, TIFF or NPY file")
    if kind == "PNG" and (start[12:16] != b"IHDR" or len(start) <= _PNG_BITS_AT):
        raise _undecodable(path, "no PNG header at its start")  # which Pillow forgives
    return kind, start


@contextmanager
def _opened(path: Path) -> Iterator[_Raster]:
    kind, start = _identify(path)
    if kind == "NPY":
        yield _open_array(path)
    elif kind == "TIFF" or (kind == "PNG" and start[_PNG_BITS_AT] == 16):
        with _opened_by_gdal(path, kind) as (file, header, colors):

            def mask(values: np.ndarray, numbers: Sequence[int]) -> np.ndarray | None:
                chosen = [number for number in numbers if number <= file.count] or [1]
                flags = file.mask_flag_enums[chosen[0] - 1]
                if MaskFlags.alpha not in flags and MaskFlags.all_valid not in flags:
                    return np.uint8(255) * (file.read_masks(chosen) > 0).any(axis=0)
                alpha = file.colorinterp[-1] == ColorInterp.alpha and file.count not in chosen
                return values[..., -1] if alpha else None

            yield _Raster(header, lambda: _read_all(file, colors), mask)
    else:  # the quickest way for what nearly all data sets hold
        with _named_errors(path), Image.open(path, formats=(kind,)) as image:
            mode = _READ_AS.get(image.mode, "RGB")
            shape, tag = (image.height, image.width, len(mode)), exif_orientation(image)

            def decode() -> np.ndarray:
                load_whole(image, tag)
                return np.array(image if image.mode == mode else image.convert(mode)).reshape(shape)

            def alpha(values: np.ndarray, numbers: Sequence[int]) -> np.ndarray | None:
                if mode in ("LA", "RGBA"):
                    return None if shape[2] in numbers else values[..., -1]
                if kind == "PNG" and start[_PNG_BITS_AT] in (2, 4) and image.mode == "L":
                    image.info["transparency"] *= 255 // (2 ** start[_PNG_BITS_AT] - 1)
                return np.asarray(image.convert("RGBA"))[..., -1]

            masked = mode in ("LA", "RGBA") or "transparency" in image.info
            size = upright_size(*shape[:2], tag)
            header = Header(*size, shape[2], "uint8", kind, image.mode, masked, tag)
            yield _Raster(header, decode, alpha)


@contextmanager
def _opened_by_gdal(
    path: Path, kind: str
) -> Iterator[tuple[DatasetReader, Header, np.ndarray | None]]:
    """Open a TIFF or PNG: the file, its header, and the colours of its palette, if it has one."""
    driver = "GTiff" if kind == "TIFF" else kind
    with (
        _named_errors(path),
        rasterio.Env(**_GDAL_OPTIONS),
        rasterio.open(path.absolute(), driver=driver) as file,  # relative, a colon is a scheme
    ):
        pages = len(file.subdatasets) or _described_pages(path, file)
        if pages > 1:
            raise _undecodable(path, f"{pages} pages, save them as bands of one")
        dtype, bands, colors = file.dtypes[0], file.count, None
        has_alpha = file.colorinterp[-1] == ColorInterp.alpha
        mode = {2: "LA" * has_alpha, 3: "RGB", 4: "RGBA" * has_alpha}.get(bands, "")
        is_palette = file.colorinterp[0] == ColorInterp.palette and dtype == "uint8"
        if is_palette and bands > 1 and "MINISWHITE" not in file.tags(ns="IMAGE_STRUCTURE"):
            raise _undecodable(path, "a palette beside other bands, save colours as RGB")
        if is_palette and bands == 1:
            colors, mode = _lookup_table(file)
            bands = colors.shape[1]
        elif bands == 1:
            mode = {"uint8": "L", "uint16": "I;16"}.get(dtype, "F" if "f" in dtype else "I")
        if kind == "TIFF":
            tag = tiff_orientation(path)
        else:
            with Image.open(path, formats=(kind,)) as image:
                tag = exif_orientation(image)
        masked = has_alpha or any(MaskFlags.all_valid not in f for f in file.mask_flag_enums)
        size, place = upright_size(file.height, file.width, tag), None
        matrix = np.array(file.transform, dtype=np.float64).reshape(3, 3)
        sensible = np.isfinite(matrix).all() and np.linalg.matrix_rank(matrix[:2, :2]) == 2
        # Whether a tag turns the place as well, programs do not agree.
        if tag == 1 and sensible and (matrix != np.eye(3)).any():
            place = Place(file.crs.to_wkt() if file.crs else "", matrix, file.height, file.width)
        header = Header(*size, bands, dtype, kind, mode, masked, tag, place)
        _require_sensible(path, header)
        yield file, header, colors


def _described_pages(path: Path, file: DatasetReader) -> int:
    """Return how many images the one directory of a file is for, as ImageJ and tifffile say.

    Descriptions outlive edits of a file: it has to be as large.
    """
    said = file.tags().get("TIFFTAG_IMAGEDESCRIPTION", "")
    shape = re.match(r'{"shape": \[([\d, ]+)\]', said)
    images = re.match(r"ImageJ=.*^images=(\d+)", said, re.DOTALL | re.MULTILINE)
    values = file.height * file.width * file.count
    described = math.prod(map(int, shape[1].split(","))) // values if shape else 1
    described = int(images[1]) // file.count if images else described
    needed = described * values * np.dtype(file.dtypes[0]).itemsize
    return described if path.stat().st_size > needed else 1


def _lookup_table(file: DatasetReader) -> tuple[np.ndarray, str]:
    """Return a palette (256, 3) uint8, or (256, 1) if grey is written as one, and Pillow's mode."""
    colors = np.zeros((256, 3), dtype=np.uint8)
    for index, color in file.colormap(1).items():
        colors[index] = color[:3]
    one_bit = file.tags(1, ns="IMAGE_STRUCTURE").get("NBITS") == "1"
    if one_bit and sorted(colors[:2].tolist()) == [[0] * 3, [255] * 3]:
        return colors[:, :1], "1"
    if "MINISWHITE" in file.tags(ns="IMAGE_STRUCTURE"):
        return colors[:, :1], "L"
    return colors, "P"


def _read_all(file: DatasetReader, colors: np.ndarray | None) -> np.ndarray:
    if colors is not None:
        return colors[file.read(1)]
    values = np.ascontiguousarray(np.moveaxis(file.read(), 0, -1))
    if file.driver == "PNG":
        require_whole_png(file.name, values[-1].any())
    return values


def _to_picture(file: DatasetReader, header: Header, colors: np.ndarray | None) -> Image.Image:
    """Return a TIFF as Pillow would, in its own bits."""
    if header.mode == "P":
        image = Image.fromarray(upright(file.read(1), header.orientation))
        image.putpalette(colors.tobytes())
        return image
    if header.mode == "" or (header.bands > 1 and header.dtype != "uint8"):
        raise ValueError(f"{header.bands} bands of {header.dtype} are no picture")
    values = upright(_read_all(file, colors), header.orientation)
    types = {"1": bool, "I": np.int32, "F": np.float32}
    values = values.astype(types.get(header.mode, values.dtype))
    return Image.fromarray(values if header.bands > 1 else values[..., 0])


def _open_array(path: Path) -> _Raster:
    """Open a NumPy file: (H, W) or (H, W, bands), with nothing in it that could run."""
    with _named_errors(path), open(path, "rb") as file:
        major, _ = np.lib.format.read_magic(file)
        read = getattr(np.lib.format, f"read_array_header_{major}_0")
        shape, fortran_order, dtype = read(file)
        start = file.tell()
    shape = (*shape, 1) if len(shape) == 2 else shape
    wrong = len(shape) != 3 or min(shape) < 1 or dtype.names or dtype.hasobject
    # Bands are saved first as often as last, and nobody cuts tiles narrower than their bands.
    if wrong or shape[2] > min(MAX_BANDS, *shape[:2]):
        raise DataError(
            f"{path}: {shape} {dtype} array; save images as (height, width, bands) uint8 or "
            f"uint16, of at most {MAX_BANDS} bands and no fewer pixels a side"
        )
    header = Header(*shape, dtype.newbyteorder("=").name, "NPY")
    _require_sensible(path, header)
    if path.stat().st_size < start + int(np.prod(shape)) * dtype.itemsize:
        raise _undecodable(path, "cut off")

    def decode() -> np.ndarray:
        order = "F" if fortran_order else "C"
        values = np.memmap(path, dtype, mode="r", offset=start, shape=shape, order=order)
        return np.array(values, dtype=header.dtype, order="C")

    return _Raster(header, decode)


def _require_sensible(path: Path, header: Header) -> None:
    if header.height * header.width * header.bands > MAX_VALUES:
        raise DataError(
            f"{path}: {header.width} × {header.height} pixels of {header.bands} bands, more than "
            f"{MAX_VALUES} values; cut the scene into tiles"
        )


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Turn what libraries raise about a file into an error that names it."""
    try:
        yield
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: {error}; cut the scene into tiles") from error
    except Exception as error:  # damage surfaces as whatever the parsers stumble over
        raise _undecodable(path, error) from error


def _undecodable(path: Path, reason: object) -> DataError:
    line, *_ = str(reason).splitlines() or [type(reason).__name__]
    return DataError(f"{path}: cannot be decoded ({line}); copy the file again or remove its pair")
