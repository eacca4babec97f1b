"""Decoded files in one memory-mapped file: after the first epoch nothing is decoded again."""

import atexit
import contextlib
import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.bands import RGB, Bands
from datasets.classes import ClassList
from datasets.images import fill_gaps, read_header, read_masked
from datasets.labels import read_label
from datasets.pairs import IMAGE_FOLDERS, Pair, pseudo_mask
from datasets.task import Task
from utils import dist
from utils.errors import OptionError
from utils.files import atomic_path, read_json, remove_leftovers, write_text
from utils.text import progress

FORMAT = 4
LEFTOVER_AGE_S = 86400  # another program may be writing the same cache for hours
THREADS = 2  # the decoders leave the interpreter lock free
VALID = "\0valid"  # behind the path of an image, the entry of its pixels that have data
SHARED_MEMORY = Path("/dev/shm")
Files = Sequence[tuple[Path, bool]]  # what is decoded, and whether it is an image
MaskedImage = tuple[np.ndarray, np.ndarray | None]  # values, and which pixels have data


@dataclass(frozen=True)
class FileReader:
    """Decodes images and labels at every access; images give the chosen bands."""

    classes: ClassList
    bands: Bands = RGB

    def image(self, path: Path) -> MaskedImage:
        """Return (H, W, bands) uint8 or uint16, with gaps filled, and what `read_masked` does."""
        values, valid = read_masked(path, self.bands)
        return fill_gaps(values, valid), valid

    def label(self, path: Path) -> np.ndarray:
        """Return (H, W) uint8 class indices."""
        return read_label(path, self.classes)


class CachedReader:
    """Reads what `build_cache` decoded into some files; processes share the memory."""

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._entries = {}
        for number, path in enumerate(paths):
            index = read_json(path.with_suffix(".json"))
            self._entries |= {name: (number, *entry) for name, entry in index["entries"].items()}
        self._bytes: dict[int, np.ndarray] = {}

    def image(self, path: Path) -> MaskedImage:
        """Return what `FileReader` does; private views, writing to them changes no file."""
        name, valid = f"{path}{VALID}", None
        if name in self._entries and not self._read(name).all():
            valid = self._read(name)
        return self._read(str(path)), valid

    def label(self, path: Path) -> np.ndarray:
        """Return what `FileReader` does; a private view, as of an image."""
        return self._read(str(path))

    def _read(self, name: str) -> np.ndarray:
        number, *entry = self._entries[name]
        if number not in self._bytes:
            self._bytes[number] = np.memmap(self._paths[number], dtype=np.uint8, mode="c")
        return _view(self._bytes[number], *entry)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_bytes": {}}  # each process maps the files by itself


def make_reader(
    mode: str,
    outdir: Path,
    pairs: Sequence[Pair],
    task: Task,
    pseudo_label_root: Path | None = None,
    bands: Bands = RGB,
) -> CachedReader | FileReader:
    """Return what reads some pairs: for ``off`` the files themselves, for ``ram`` or ``disk`` (in
    ``outdir``) their decoded cache, which one process per node builds and the others open.
    """
    if mode == "off":
        return FileReader(task.classes, bands)
    host, own = socket.gethostname(), cache_folder(mode, outdir) if dist.leads_node() else None
    folder = next(path for node, path in dist.gather((host, own)) if node == host and path)
    reader = None
    # Process 0 first, then one of each node where the file is not seen, then the others.
    for turn in (dist.is_main(), dist.leads_node(), True):
        if turn and reader is None:
            reader = build_cache(pairs, task.classes, folder, pseudo_label_root, bands)
        dist.barrier()
    return reader


def cache_folder(mode: str, outdir: Path) -> Path:
    """Return where a cache lies: ``disk`` to stay, ``ram`` in shared memory (else the temporary
    folder) until the program ends, after removal of what killed programs of this machine left.
    """
    if mode == "disk":
        return outdir / "cache"
    place = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    # Containers may share the memory, but not the numbers of their processes.
    prefix = f"scd-cache-{socket.gethostname()}-"
    for left in place.glob(f"{prefix}*"):
        number = left.name.removeprefix(prefix).split("-")[0]
        if Path("/proc/self").exists() and not Path("/proc", number).exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=place))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def build_cache(
    pairs: Sequence[Pair],
    classes: ClassList,
    folder: Path,
    pseudo_label_root: Path | None = None,
    bands: Bands = RGB,
) -> CachedReader:
    """Decode all files of some pairs, and pseudo masks into a file of their own; open the result.

    A cache is named by the paths, sizes and times of its files, by class list and bands, so that
    only what changed is decoded again; older pseudo masks are removed. A DataError for a bad file,
    an OptionError where room is short.
    """
    remove_leftovers(folder, LEFTOVER_AGE_S)
    files = [(path, True) for pair in pairs for path in (pair.image1, pair.image2)]
    files += [(path, False) for pair in pairs for path in pair.labels.values()]
    paths = [folder / f"{_key(files, classes, bands)}.bin"]
    _write_cache(paths[0], files, classes, bands)
    if pseudo_label_root is not None:
        masks = [pseudo_mask(pseudo_label_root, date, p) for p in pairs for date in IMAGE_FOLDERS]
        files = [(mask, False) for mask in masks]
        names = "\n".join(map(str, masks))
        prefix = f"pseudo-{hashlib.sha256(names.encode()).hexdigest()[:12]}-"
        paths.append(folder / f"{prefix}{_key(files, classes, RGB)}.bin")  # of any bands
        for other in folder.glob(f"{prefix}*"):
            with contextlib.suppress(OSError):  # removed by another process, or still open there
                # A younger one may be in use on another machine, unknown to the file system.
                old = time.time() - other.stat().st_mtime > LEFTOVER_AGE_S
                if old and other.stem != paths[1].stem:
                    other.unlink()
        _write_cache(paths[1], files, classes, RGB)
    return CachedReader(*paths)


def _key(files: Files, classes: ClassList, bands: Bands) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT, classes.to_dict(), str(bands)]).encode())
    for path, _ in files:
        try:
            state = path.stat()
        except OSError as error:
            raise OptionError(f"{path}: cannot be cached ({error.strerror})") from error
        # The last time no program can set: archives and object stores set the other one.
        times = f"{state.st_mtime_ns}\0{state.st_ctime_ns}"
        digest.update(f"{path}\0{state.st_size}\0{times}\n".encode())
    return digest.hexdigest()[:20]


def _write_cache(path: Path, files: Files, classes: ClassList, bands: Bands) -> None:
    """Decode files into one, unless that is there."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        index = read_json(path.with_suffix(".json"))
        if path.stat().st_size == index["bytes"]:
            return
    entries, total = _layout(files, bands)
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if total > free:
        raise OptionError(
            f"--cache: {path.parent} has {free / 1e9:.1f} GB free, the decoded data set needs "
            f"{total / 1e9:.1f} GB; use --cache off, or disk with another --outdir"
        )
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as file:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, not a crash later
                os.posix_fallocate(file.fileno(), 0, total)
        store = np.memmap(temporary, dtype=np.uint8, mode="w+", shape=(total,))
        reader = FileReader(classes, bands)

        def decode(item: tuple[Path, bool]) -> None:
            file, is_image = item
            values, valid = reader.image(file) if is_image else (reader.label(file), None)
            _view(store, *entries[str(file)])[:] = values
            if f"{file}{VALID}" in entries:
                _view(store, *entries[f"{file}{VALID}"])[:] = True if valid is None else valid

        with ThreadPoolExecutor(THREADS) as pool:
            for _ in progress(pool.map(decode, files), "cache", unit="file", total=len(files)):
                pass
        store.flush()
    write_text(path.with_suffix(".json"), json.dumps({"bytes": total, "entries": entries}))


def _view(store: np.ndarray, offset: int, shape: Sequence[int], dtype: str) -> np.ndarray:
    end = offset + int(np.prod(shape)) * np.dtype(dtype).itemsize
    return store[offset:end].view(dtype).reshape(shape)


def _layout(files: Files, bands: Bands) -> tuple[dict[str, tuple[int, tuple, str]], int]:
    """Return offset, shape and type of each file's array, and the bytes of all."""
    entries, offset, itemsize = {}, 0, np.dtype(bands.dtype).itemsize
    for path, is_image in files:
        header = read_header(path)
        size = (header.height, header.width)
        arrays = {str(path): (size, "uint8")}
        if is_image:
            arrays = {str(path): ((*size, len(bands.numbers)), bands.dtype)}
        if is_image and header.masked:
            arrays[f"{path}{VALID}"] = (size, "bool")
        for name, (shape, dtype) in arrays.items():
            entries[name] = (offset, shape, dtype)
            offset += int(np.prod(shape)) * np.dtype(dtype).itemsize
            offset += offset % itemsize  # 16-bit values start at even places
    return entries, offset
