"""The one reader of rasters, images and labels alike: what a file holds decides, not its name."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader

from datasets.bands import MAX_BANDS, RGB, Bands
from utils.errors import DataError
from utils.files import atomic_path
from utils.pictures import PNG_LEVEL, to_rgb

DTYPES = {"uint8": 8, "uint16": 16}
# As Pillow does with twice its limit; values count here, since a pixel may have hundreds of them.
MAX_VALUES = 8 * (Image.MAX_IMAGE_PIXELS or 2**27)
# No other format is ever opened: some that Pillow knows start programs.
_STARTS = dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF")
_STARTS |= {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP", b"\x93NUMPY": "NPY"}
_PNG_BITS_AT = 24  # the byte of a PNG that tells its bits per channel
_READ_AS = {"1": "L", "L": "L", "LA": "LA", "RGBA": "RGBA"}  # by Pillow's mode; others as RGB
# No look around for files that belong to a raster.
_GDAL_OPTIONS = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}
# Images need no place on the map. Set once, since threads share filters.
warnings.filterwarnings("ignore", "Dataset has no geotransform")


@dataclass(frozen=True)
class Header:
    """What a raster says of itself; its type may not be supported, its Pillow mode be empty.

    ``bands`` are values per pixel: 3 for palettes and other colour spaces, which are read as RGB.
    """

    height: int
    width: int
    bands: int
    dtype: str
    format: str
    mode: str = ""

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


def read_header(path: Path) -> Header:
    """Read size, bands and type, undecoded; a DataError if missing, unknown or oversized."""
    with _opened(path) as (header, _):
        return header


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of a raster, without decoding it; raises as `read_header`."""
    header = read_header(path)
    return header.height, header.width


def read_raster(path: Path) -> np.ndarray:
    """Read (H, W, bands) uint8 or uint16 as in the file, but palettes as RGB; else a DataError."""
    with _opened(path) as (header, decode):
        _require_whole_numbers(path, header)
        return decode()


def read_bands(path: Path, bands: Bands = RGB) -> np.ndarray:
    """Read (H, W, len(bands.numbers)) of the bands' depth; a DataError where they are not there.

    As three bands of 8 bits serve grey and palette images too; alpha is left out.
    """
    with _opened(path) as (header, decode):
        require_bands(path, header, bands)
        values = decode()
    chosen = [number - 1 for number in bands.numbers]
    if bands == RGB:
        values = to_rgb(values)
    elif chosen != list(range(values.shape[-1])):
        values = values[..., chosen]
    return np.ascontiguousarray(values)


def read_picture(path: Path, numbers: Sequence[int] = RGB.numbers) -> np.ndarray:
    """Read (H, W, 3) uint8 to look at: the first three of the bands named that the file has."""
    values = read_raster(path)
    shown = [number - 1 for number in numbers if number <= values.shape[-1]]
    return np.ascontiguousarray(to_rgb(values[..., shown[:3] or [0]]))


def open_image(path: Path) -> Image.Image:
    """Read a label with the very values of the file, grey of 2 bits as 0 to 3; else a DataError."""
    kind, start = _identify(path)
    if kind == "NPY":
        raise _undecodable(path, "an array is no picture")
    if kind == "TIFF":
        with _opened_by_gdal(path, kind) as (file, header, colors):
            image = _to_picture(file, header, colors)
    else:
        with _named_errors(path):
            image = Image.open(path, formats=(kind,))
            image.load()
        if kind == "PNG" and start[_PNG_BITS_AT] in (2, 4) and image.mode == "L":
            step = 255 // (2 ** start[_PNG_BITS_AT] - 1)
            image = image.point([value // step for value in range(256)])
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
    serves = tuple(numbers) == RGB.numbers and header.is_rgb
    return max(numbers) > header.bands and not serves


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
def _opened(path: Path) -> Iterator[tuple[Header, Callable[[], np.ndarray]]]:
    """Open a raster: its header, and what decodes all of it as `read_raster` returns it."""
    kind, start = _identify(path)
    if kind == "NPY":
        yield _open_array(path)
    elif kind == "TIFF" or (kind == "PNG" and start[_PNG_BITS_AT] == 16):
        with _opened_by_gdal(path, kind) as (file, header, colors):
            yield header, lambda: _read_all(file, colors)
    else:  # the quickest way for what nearly all data sets hold
        with _named_errors(path), Image.open(path, formats=(kind,)) as image:
            mode = _READ_AS.get(image.mode, "RGB")
            shape = (image.height, image.width, len(mode))

            def decode() -> np.ndarray:
                return np.array(image if image.mode == mode else image.convert(mode)).reshape(shape)

            yield Header(*shape, "uint8", kind, image.mode), decode


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
        if file.subdatasets:
            raise _undecodable(path, f"{len(file.subdatasets)} pages, save them as bands of one")
        dtype, bands, colors = file.dtypes[0], file.count, None
        has_alpha = file.colorinterp[-1] == ColorInterp.alpha
        mode = {2: "LA" * has_alpha, 3: "RGB", 4: "RGBA" * has_alpha}.get(bands, "")
        if file.colorinterp[0] == ColorInterp.palette and dtype == "uint8":
            colors, mode = _lookup_table(file)
            bands = colors.shape[1]
        elif bands == 1:
            mode = {"uint8": "L", "uint16": "I;16"}.get(dtype, "F" if "f" in dtype else "I")
        header = Header(file.height, file.width, bands, dtype, kind, mode)
        _require_sensible(path, header)
        yield file, header, colors


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
    return np.ascontiguousarray(np.moveaxis(file.read(), 0, -1))


def _to_picture(file: DatasetReader, header: Header, colors: np.ndarray | None) -> Image.Image:
    """Return a TIFF as Pillow would, in its own bits."""
    if header.mode == "P":
        image = Image.fromarray(file.read(1))
        image.putpalette(colors.tobytes())
        return image
    if header.mode == "" or (header.bands > 1 and header.dtype != "uint8"):
        raise ValueError(f"{header.bands} bands of {header.dtype} are no picture")
    values = _read_all(file, colors)
    types = {"1": bool, "I": np.int32, "F": np.float32}
    values = values.astype(types.get(header.mode, values.dtype))
    return Image.fromarray(values if header.bands > 1 else values[..., 0])


def _open_array(path: Path) -> tuple[Header, Callable[[], np.ndarray]]:
    """Open a NumPy file: (H, W) or (H, W, bands), with nothing in it that could run."""
    with _named_errors(path), open(path, "rb") as file:
        major, _ = np.lib.format.read_magic(file)
        read = getattr(np.lib.format, f"read_array_header_{major}_0")
        shape, fortran_order, dtype = read(file)
        start = file.tell()
    shape = (*shape, 1) if len(shape) == 2 else shape
    if len(shape) != 3 or min(shape) < 1 or dtype.names or dtype.hasobject:
        raise DataError(
            f"{path}: {shape} {dtype} array; save images as (height, width, bands) uint8 or uint16"
        )
    header = Header(*shape, dtype.newbyteorder("=").name, "NPY")
    _require_sensible(path, header)
    if path.stat().st_size < start + int(np.prod(shape)) * dtype.itemsize:
        raise _undecodable(path, "cut off")

    def decode() -> np.ndarray:
        order = "F" if fortran_order else "C"
        values = np.memmap(path, dtype, mode="r", offset=start, shape=shape, order=order)
        return np.array(values, dtype=header.dtype, order="C")

    return header, decode


def _require_sensible(path: Path, header: Header) -> None:
    values = header.height * header.width * header.bands
    if values > MAX_VALUES or (header.format == "NPY" and header.bands > MAX_BANDS):
        raise DataError(
            f"{path}: {header.width} × {header.height} pixels of {header.bands} bands, more than "
            f"{MAX_VALUES} values, or {MAX_BANDS} bands of an array; cut the scene into tiles, or "
            "save the array as (height, width, bands)"
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
