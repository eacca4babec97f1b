"""Reading images and writing masks: PNG files that are whole or absent."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from datasets.bands import RGB, Bands
from utils.errors import DataError
from utils.files import atomic_path
from utils.pictures import PNG_LEVEL, to_rgb

PNG_KIND_AT = 24  # the byte of a PNG that tells its bits per channel; its colour type follows

TIFF_BITS_TAG = 258


def open_image(path: Path) -> Image.Image:
    """Open and fully decode an image file.

    Raises:
        DataError: the file is missing, truncated, or not an image.
    """
    try:
        image = Image.open(path)
        image.load()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path}: cannot be decoded ({reason}); copy the file again or remove its pair"
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: {error}; cut the scene into tiles") from error
    return image


def png_kind(path: Path) -> tuple[int, int]:
    """Return bits per channel and colour type of a PNG.

    Raises:
        DataError: its header is not where it has to be, which Pillow forgives.
    """
    with open(path, "rb") as file:
        start = file.read(PNG_KIND_AT + 2)
    if start[12:16] != b"IHDR" or len(start) < PNG_KIND_AT + 2:
        raise DataError(
            f"{path}: cannot be decoded (no PNG header at its start); copy the file again or "
            "remove its pair"
        )
    return start[PNG_KIND_AT], start[PNG_KIND_AT + 1]


def file_bits(path: Path, image: Image.Image) -> int:
    """Return the bits per channel in a file; Pillow hands 16-bit colours out as 8 bits.

    Raises:
        DataError: as `png_kind`.
    """
    if image.format == "PNG":
        return png_kind(path)[0]
    if image.format == "TIFF":
        bits = image.tag_v2.get(TIFF_BITS_TAG, 8)
        return int(max(bits)) if isinstance(bits, tuple) else int(bits)
    return {"1": 1, "I": 32, "F": 32}.get(image.mode, 16 if "16" in image.mode else 8)


def read_rgb(path: Path) -> np.ndarray:
    """Read an image file as (H, W, 3) uint8; grey, palette and alpha images are converted.

    Raises:
        DataError: the file cannot be decoded, or has more than 8 bits per channel.
    """
    image = open_image(path)
    bits = file_bits(path, image)
    if bits > 8:
        raise DataError(
            f"{path}: {bits} bits, but 8 bits per channel are wanted; scale it, or save all files "
            "alike"
        )
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


ARRAY_SUFFIX = ".npy"

TIFF_SUFFIXES = (".tif", ".tiff")

DTYPES = {"uint8": 8, "uint16": 16}

BANDS_TAG, FORMAT_TAG = 277, 339  # of TIFF: SamplesPerPixel, SampleFormat

# As Pillow does with twice its limit; values count here, since a pixel may have hundreds of them.
MAX_VALUES = 8 * (Image.MAX_IMAGE_PIXELS or 2**27)

_ALPHA_MODES = ("LA", "PA", "RGBA")

_PILLOW_BANDS = {"1": 1, "L": 1, "LA": 2, "RGBA": 4}

_PNG_BANDS = {0: 1, 2: 3, 4: 2, 6: 4}  # by colour type; Pillow calls grey and alpha RGBA

_TIFF_KINDS = {1: "uint", 2: "int", 3: "float"}

# Images need no place on the map. Set once: a filter set for a while is not for several threads.
warnings.filterwarnings("ignore", "Dataset has no geotransform")

_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True)
class Header:
    """What an image file says of itself.

    Attributes:
        height, width: in pixels.
        bands: values per pixel; 3 for palettes and other colour spaces, which are read as RGB.
        dtype: ``uint8``, ``uint16``, or the name of a type that is not supported.
        format: ``PNG``, ``TIFF``, ``NPY``, …
        mode: Pillow's mode; empty where Pillow does not know the file.
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
    def is_rgb(self) -> bool:
        """Whether the file is read as three bands of 8 bits, which loses nothing but alpha."""
        whole = self.bands in (1, 3) or self.has_alpha or self.mode == "CMYK"
        return self.dtype == "uint8" and self.mode != "" and whole

    @property
    def is_grey(self) -> bool:
        """Whether the file has one band of 8 bits, which serves as three."""
        return self.dtype == "uint8" and self.bands == 1

    @property
    def has_alpha(self) -> bool:
        """Whether the file calls its last band alpha, as GDAL does the fourth of four of 8 bits."""
        return self.mode in _ALPHA_MODES


def read_header(path: Path) -> Header:
    """Read size, bands and type of an image file, without decoding it.

    Raises:
        DataError: the file is missing, no image, or larger than any honest one.
    """
    if path.suffix.lower() == ARRAY_SUFFIX:
        return _read_array(path)[0]
    try:
        with Image.open(path) as image:
            return header_of(path, image)
    except UnidentifiedImageError as error:
        if _is_tiff(path):
            return _read_tiff(path, header_only=True)[0]
        raise _undecodable(path, error) from error
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _undecodable(path, error) from error


def read_raster(path: Path, header: Header | None = None) -> np.ndarray:
    """Read all bands of an image file: (H, W, bands) uint8 or uint16, as they are in the file.

    Palettes and other colour spaces become RGB. In files of four bands the fourth may be alpha or
    anything else; it is left as it is.

    Args:
        path: the file.
        header: of the file, where it was read before.

    Raises:
        DataError: the file cannot be decoded, or its values are neither uint8 nor uint16.
    """
    header = header or read_header(path)
    _require_whole_numbers(path, header)
    if header.format == "NPY":
        return _read_array(path, header_only=False)[1]
    if header.format == "TIFF" and not _is_plain(header):
        return _read_tiff(path)[1]
    if header.bits == 16 and header.bands > 1:
        return _read_deep_png(path, header)
    image = open_image(path)
    if header.bits == 16:
        values = np.array(image, dtype=np.uint16)
    elif image.mode in ("L", "LA", "RGB", "RGBA"):
        values = np.array(image)
    else:
        values = np.array(image.convert("L" if image.mode == "1" else "RGB"))
    return values[..., None] if values.ndim == 2 else values


def read_bands(path: Path, bands: Bands = RGB) -> np.ndarray:
    """Read the chosen bands of an image file: (H, W, len(bands.numbers)) of their depth.

    Three bands of 8 bits are read as RGB: grey and palette images are converted, alpha is left out.

    Raises:
        DataError: the file cannot be decoded, has another depth, or lacks a band.
    """
    suffix = path.suffix.lower()
    if bands == RGB and suffix not in (ARRAY_SUFFIX, *TIFF_SUFFIXES):
        return read_rgb(path)
    header = read_header(path)
    if bands == RGB and header.is_rgb:
        return read_rgb(path)
    require_bands(path, header, bands)
    values = read_raster(path, header)
    if bands == RGB and header.is_grey:
        return to_rgb(values)
    chosen = [number - 1 for number in bands.numbers]
    if chosen != list(range(values.shape[-1])):
        values = values[..., chosen]
    return np.ascontiguousarray(values)


def read_picture(path: Path, numbers: Sequence[int] = RGB.numbers) -> np.ndarray:
    """Read an image to look at: (H, W, 3) uint8, as `utils.pictures.to_rgb` shows it.

    Args:
        path: the file.
        numbers: band numbers from 1; of those the file has, the first three are shown.

    Raises:
        DataError: as `read_raster`.
    """
    values = read_raster(path)
    shown = [number - 1 for number in numbers if number <= values.shape[-1]]
    return np.ascontiguousarray(to_rgb(values[..., shown[:3] or [0]]))


def save_raster(path: Path, values: np.ndarray) -> None:
    """Write (H, W, 1, 3 or 4) uint8 or uint16 as PNG."""
    import cv2

    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[values.shape[-1]]
    _, data = cv2.imencode(".png", values[..., order], [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL])
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(data.tobytes())


def require_bands(path: Path, header: Header, bands: Bands) -> None:
    """Raise unless a file has all chosen bands, in their depth.

    Raises:
        DataError: it has not, or holds values that are not supported.
    """
    _require_whole_numbers(path, header)
    if header.bits != bands.bits or lacks_bands(header, bands.numbers):
        has = f"{header.bands} band{'s' if header.bands > 1 else ''} of {header.bits} bits"
        raise DataError(
            f"{path}: has {has}, but {bands} are wanted; choose others with --bands, or save all "
            "files alike"
        )


def lacks_bands(header: Header, numbers: Sequence[int]) -> bool:
    """Tell whether a file lacks one of some bands; what serves as 8-bit RGB has three."""
    if tuple(numbers) == RGB.numbers and (header.is_rgb or header.is_grey):
        return False
    return max(numbers) > header.bands


def header_of(path: Path, image: Image.Image) -> Header:
    """Return the header of a file that Pillow has opened."""
    bands, kind, bits = _PILLOW_BANDS.get(image.mode, 3), "uint", file_bits(path, image)
    if image.mode.startswith(("I", "F")):
        bands = 1
        kind = "float" if image.mode == "F" else "int" if bits > 16 else "uint"
    if image.format == "PNG" and bits == 16:
        bands = _PNG_BANDS.get(png_kind(path)[1], 3)
    if image.format == "TIFF" and image.mode not in ("P", "1"):
        bands = int(image.tag_v2.get(BANDS_TAG, bands))
        kind = _TIFF_KINDS.get(min(_numbers(image.tag_v2.get(FORMAT_TAG, 1))), "unknown")
    dtype = f"{kind}{next((size for size in (8, 16, 32) if bits <= size), 64)}"
    return Header(image.height, image.width, bands, dtype, image.format or "", image.mode)


def _require_whole_numbers(path: Path, header: Header) -> None:
    if header.dtype not in DTYPES:
        raise DataError(
            f"{path}: {header.dtype} values; save all images as uint8 or uint16, as gdal_translate "
            "-ot UInt16 -scale LOW HIGH 0 65535 does"
        )


def _numbers(value: Any) -> tuple[int, ...]:
    return tuple(map(int, value)) if isinstance(value, tuple) else (int(value),)


def _is_plain(header: Header) -> bool:
    """Whether Pillow reads a TIFF as it is."""
    if header.dtype == "uint8":
        return (header.mode, header.bands) in (("1", 1), ("L", 1), ("P", 3), ("RGB", 3))
    return header.mode.startswith("I;16") and header.bands == 1


def _is_tiff(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _read_deep_png(path: Path, header: Header) -> np.ndarray:
    """Read a PNG of 16-bit colours, which OpenCV orders as blue, green, red, alpha."""
    import cv2

    try:
        with Image.open(path) as image:
            image.verify()  # else OpenCV prints lines of its own about a damaged file
        data = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        values = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except (OSError, SyntaxError, ValueError, cv2.error) as error:
        raise _undecodable(path, error) from error
    if values is None or values.shape[:2] != (header.height, header.width):
        raise _undecodable(path, "damaged 16-bit PNG")
    if values.dtype != np.uint16 or values.ndim != 3:
        raise _undecodable(path, f"{values.dtype} values where 16 bits were said")
    order = {2: [0, 3], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[header.bands]
    if values.shape[-1] <= max(order):
        raise _undecodable(path, f"{values.shape[-1]} bands where {header.bands} were said")
    return np.ascontiguousarray(values[..., order])


def _read_array(path: Path, header_only: bool = True) -> tuple[Header, np.ndarray | None]:
    """Read a NumPy file: (H, W) or (H, W, bands), with nothing in it that could run."""
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            if version not in _NPY_HEADERS:
                raise ValueError(f"version {version} of the NPY format")
            shape, fortran_order, dtype = _NPY_HEADERS[version](file)
            start = file.tell()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except Exception as error:  # damage surfaces as whatever the parser stumbles over
        raise _undecodable(path, error) from error
    shape = (*shape, 1) if len(shape) == 2 else shape
    if len(shape) != 3 or min(shape) < 1 or dtype.names or dtype.hasobject:
        raise DataError(
            f"{path}: an array of shape {shape} and type {dtype}; save images as (height, width, "
            "bands) of uint8 or uint16"
        )
    header = Header(*shape, dtype.newbyteorder("=").name, "NPY")
    _require_sensible(path, header)
    if path.stat().st_size < start + int(np.prod(shape)) * dtype.itemsize:
        raise _undecodable(path, "cut off")
    if header_only:
        return header, None
    order = "F" if fortran_order else "C"
    values = np.memmap(path, dtype, mode="r", offset=start, shape=shape, order=order)
    return header, np.array(values, dtype=header.dtype, order="C")


def _read_tiff(path: Path, header_only: bool = False) -> tuple[Header, np.ndarray | None]:
    try:
        import rasterio
        from rasterio.errors import RasterioError
    except ImportError as error:
        raise DataError(
            f"{path}: TIFF of 16-bit colours or of many bands needs rasterio; pip install rasterio"
        ) from error
    # No look around for files that belong to it. A relative path with a colon would be a scheme.
    options = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}
    try:
        with rasterio.Env(**options), rasterio.open(path.absolute(), driver="GTiff") as file:
            size = (file.height, file.width, file.count)
            header = Header(*size, file.dtypes[0], "TIFF")
            _require_sensible(path, header)
            values = None if header_only else file.read()
    except (RasterioError, OSError, ValueError, TypeError, MemoryError) as error:
        raise _undecodable(path, error) from error
    return header, values if header_only else np.ascontiguousarray(np.moveaxis(values, 0, -1))


def _require_sensible(path: Path, header: Header) -> None:
    if header.height * header.width * header.bands > MAX_VALUES:
        raise DataError(
            f"{path}: {header.width} × {header.height} pixels of {header.bands} bands are more "
            f"than {MAX_VALUES} values; cut the scene into tiles"
        )


def _undecodable(path: Path, reason: object) -> DataError:
    lines = str(reason).splitlines() or [type(reason).__name__]
    return DataError(
        f"{path}: cannot be decoded ({lines[0]}); copy the file again or remove its pair"
    )


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) from an image file's header, without decoding it.

    Raises:
        DataError: the file is not an image.
    """
    header = read_header(path)
    return header.height, header.width
