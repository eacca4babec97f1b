"""Decoded files in one memory-mapped file: after the first epoch nothing is decoded again."""

import atexit
import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

import numpy as np

from datasets.bands import RGB, Bands
from datasets.classes import ClassList
from datasets.images import image_size, read_bands
from datasets.labels import read_label
from datasets.pairs import IMAGE_FOLDERS, Pair, pseudo_mask
from utils.errors import OptionError
from utils.files import atomic_path, remove_leftovers, write_text

FORMAT = 2

LEFTOVER_AGE_S = 86400  # another program may be writing the same cache for hours


class CachedReader:
    """Reads what `build_cache` decoded; processes share the memory.

    Args:
        path: the cache file; its index lies beside it.
        pseudo_masks: reads the pseudo masks, which have a file of their own.
    """

    def __init__(self, path: Path, pseudo_masks: "CachedReader | None" = None) -> None:
        self._path = path
        self._pseudo_masks = pseudo_masks
        index = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        self._entries: dict[str, tuple[int, list[int]]] = index["entries"]
        self._image_type = np.dtype(index["image_type"])
        self._bytes: np.ndarray | None = None

    def image(self, path: Path) -> np.ndarray:
        """Return (H, W, bands) uint8 or uint16; a private view, writing to it changes no file."""
        return self._read(path, self._image_type)

    def label(self, path: Path) -> np.ndarray:
        """Return (H, W) uint8 class indices; a private view."""
        if self._pseudo_masks is not None and str(path) in self._pseudo_masks._entries:
            return self._pseudo_masks.label(path)
        return self._read(path, np.dtype(np.uint8))

    def _read(self, path: Path, dtype: np.dtype) -> np.ndarray:
        if self._bytes is None:
            self._bytes = np.memmap(self._path, dtype=np.uint8, mode="c")
        offset, shape = self._entries[str(path)]
        size = int(np.prod(shape)) * dtype.itemsize
        return self._bytes[offset : offset + size].view(dtype).reshape(shape)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_bytes": None}  # each process maps the file by itself


def build_cache(
    pairs: Sequence[Pair],
    classes: ClassList,
    folder: Path,
    pseudo_label_root: Path | None = None,
    threads: int = 2,
    progress: Callable[..., Iterable] | None = None,
    bands: Bands = RGB,
) -> CachedReader:
    """Decode every file of some pairs, unless that has been done, and open the result.

    Images and labels go into one file, pseudo masks into another, so that a new round of labelling
    decodes the masks alone; the masks of its earlier rounds are removed. A file's name follows from
    the paths, sizes and modification times of all that is in it, from the class list and, for
    images, the bands, so that a changed data set gets another cache. It is written under a
    temporary name and renamed.

    Args:
        pairs: whose images and labels are decoded.
        classes: decodes the labels.
        folder: where the cache goes.
        pseudo_label_root: folder of pseudo masks to decode as well.
        threads: decoding threads; the decoders leave the interpreter lock free.
        progress: `utils.text.progress`, or None for no bar.
        bands: what is read from the images.

    Raises:
        DataError: a file cannot be decoded.
        OptionError: the folder has too little room.
    """
    remove_leftovers(folder, LEFTOVER_AGE_S)
    masks = None
    if pseudo_label_root is not None:
        mask_files = _pseudo_files(pairs, pseudo_label_root)
        prefix = _round_prefix(mask_files)
        path = folder / f"{prefix}{_key(mask_files, classes, RGB)}.bin"  # of any bands
        _remove_earlier_rounds(path, prefix)
        masks = CachedReader(_write_cache(path, mask_files, classes, RGB, threads, progress))
    files = _files(pairs)
    path = folder / f"{_key(files, classes, bands)}.bin"
    return CachedReader(_write_cache(path, files, classes, bands, threads, progress), masks)


def _round_prefix(mask_files: Sequence[tuple[Path, bool]]) -> str:
    """Return what the caches of one place of pseudo masks have in common, whatever they hold."""
    paths = "\n".join(str(path) for path, _ in mask_files)
    return f"pseudo-{hashlib.sha256(paths.encode()).hexdigest()[:12]}-"


def _remove_earlier_rounds(path: Path, prefix: str) -> None:
    for other in path.parent.glob(f"{prefix}*"):
        # A younger one may be in use on another machine, which the file system need not know of.
        if other.stem != path.stem and time.time() - other.stat().st_mtime > LEFTOVER_AGE_S:
            with contextlib.suppress(OSError):  # removed by another process, or still open there
                other.unlink()


def _write_cache(
    path: Path,
    files: Sequence[tuple[Path, bool]],
    classes: ClassList,
    bands: Bands,
    threads: int,
    progress: Callable[..., Iterable] | None,
) -> Path:
    """Decode files into one, unless that is there, and return its path."""
    if _is_whole(path):
        return path
    folder = path.parent
    entries, total = _layout(files, bands)
    folder.mkdir(parents=True, exist_ok=True)
    _require_room(folder, total)
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as file:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, not a crash later
                os.posix_fallocate(file.fileno(), 0, total)
        store = np.memmap(temporary, dtype=np.uint8, mode="w+", shape=(total,))
        reader = FileReader(classes, bands)

        def decode(item: tuple[Path, bool]) -> None:
            file, is_image = item
            array = reader.image(file) if is_image else reader.label(file)
            offset, shape = entries[str(file)]
            place = store[offset : offset + array.nbytes].view(array.dtype)
            place.reshape(shape)[:] = array.reshape(shape)

        with ThreadPoolExecutor(threads) as pool:
            decoded = pool.map(decode, files)
            if progress:
                decoded = progress(decoded, "cache", unit="file", total=len(files))
            for _ in decoded:
                pass
        store.flush()
    index = {"bytes": total, "image_type": bands.dtype, "entries": entries}
    write_text(path.with_suffix(".json"), json.dumps(index))
    return path


def _is_whole(path: Path) -> bool:
    try:
        index = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return path.stat().st_size == index["bytes"]
    except (OSError, ValueError, KeyError):
        return False


def _files(pairs: Sequence[Pair]) -> list[tuple[Path, bool]]:
    """Return every image and label once, and whether it is an image."""
    files = []
    for pair in pairs:
        files += [(pair.image1, True), (pair.image2, True)]
        files += [(label, False) for label in pair.labels.values()]
    return files


def _pseudo_files(pairs: Sequence[Pair], root: Path) -> list[tuple[Path, bool]]:
    return [(pseudo_mask(root, date, pair), False) for pair in pairs for date in IMAGE_FOLDERS]


def _key(files: Sequence[tuple[Path, bool]], classes: ClassList, bands: Bands) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT, classes.to_dict(), str(bands)]).encode())
    for path, _ in files:
        try:
            state = path.stat()
        except OSError as error:
            raise OptionError(f"{path}: cannot be cached ({error.strerror})") from error
        digest.update(f"{path}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:20]


def _layout(
    files: Sequence[tuple[Path, bool]], bands: Bands
) -> tuple[dict[str, tuple[int, list[int]]], int]:
    entries, offset, itemsize = {}, 0, np.dtype(bands.dtype).itemsize
    for path, is_image in files:
        height, width = image_size(path)
        shape = [height, width, len(bands.numbers)] if is_image else [height, width]
        entries[str(path)] = (offset, shape)
        offset += int(np.prod(shape)) * (itemsize if is_image else 1)
        offset += offset % itemsize  # 16-bit values start at even places
    return entries, offset


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OptionError(
            f"--cache: {folder} has {free / 1e9:.1f} GB free, the decoded data set needs "
            f"{needed / 1e9:.1f} GB; use --cache off, or disk with another --outdir"
        )


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

SHARED_MEMORY = Path("/dev/shm")

PREFIX = "scd-cache-"

LOCK = "lock"  # held by the program whose cache the folder is, however that program ends


def cache_folder(mode: str, outdir: Path) -> Path:
    """Return where a cache lies: ``ram`` in shared memory until the program ends, ``disk`` to stay.

    Where there is no shared-memory folder, ``ram`` takes the system's temporary one. What programs
    of this user have left there that were killed is removed first.
    """
    if mode == "disk":
        return outdir / "cache"
    place = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    _remove_abandoned(place)
    # Under another name until it is locked, so that no other program takes it for abandoned.
    unlocked = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=place))
    lock = _take_lock(unlocked)
    folder = unlocked.rename(place / unlocked.name.removeprefix("."))
    atexit.register(_remove_folder, folder, lock)
    return folder


def _take_lock(folder: Path) -> TextIO:
    lock = open(folder / LOCK, "w", encoding="utf-8")  # noqa: SIM115
    if fcntl:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.register_at_fork(after_in_child=lock.close)  # a reader may outlive its killed program
    return lock


def _remove_folder(folder: Path, lock: TextIO) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    lock.close()


def _remove_abandoned(place: Path) -> None:
    """Remove the folders of this user whose programs have ended without doing so."""
    if not fcntl:
        return
    for folder in place.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # in use, or removed by another program just now
            if folder.lstat().st_uid != os.getuid():
                continue
            with open(folder / LOCK, encoding="utf-8") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)


class FileReader:
    """Decodes images and labels at every access; images give the chosen bands."""

    def __init__(self, classes: ClassList, bands: Bands = RGB) -> None:
        self._classes = classes
        self._bands = bands

    def image(self, path: Path) -> np.ndarray:
        """Return (H, W, bands) uint8 or uint16."""
        return read_bands(path, self._bands)

    def label(self, path: Path) -> np.ndarray:
        """Return (H, W) uint8 class indices."""
        return read_label(path, self._classes)
