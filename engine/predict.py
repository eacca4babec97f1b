"""Writing masks behind the device: encoding runs in threads while the next batch is predicted."""

import contextlib
import hashlib
import json
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import torch

from utils.dist import World
from utils.errors import UserError
from utils.files import remove_leftovers, write_text
from utils.pictures import CHANGE_MASKS, Palette, save_change_mask, save_mask

MAX_PENDING = 32  # pairs that wait in memory before the caller has to wait


class MaskWriter:
    """A context that writes PNGs in threads; leaving it waits for all of them.

    Args:
        folder: gets ``{im1,im2}/<name>.png``, or ``change/<name>.png``.
        palette: one RGB colour per index; None for change masks, which become grey, 0 and 255.
        when_written: told the name of each pair whose masks are in place, from a thread.
        threads: encoding threads; zlib leaves the interpreter lock free.
    """

    def __init__(
        self,
        folder: Path,
        palette: Palette | None,
        when_written: Callable[[str], None] = lambda name: None,
        threads: int = 2,
    ) -> None:
        self._folder = Path(folder)
        self._palette = palette
        self._when_written = when_written
        self._pool = ThreadPoolExecutor(threads)
        self._pending: deque[Future] = deque()

    def write(self, names: list[str], *maps: torch.Tensor) -> None:
        """Queue a batch's maps, of both dates or of change: (N, H, W) uint8, on the CPU.

        Raises:
            UserError: an earlier mask could not be written.
        """
        for name, *masks in zip(names, *(pred.numpy() for pred in maps), strict=True):
            self._pending.append(self._pool.submit(self._write_pair, name, *masks))
        while len(self._pending) > MAX_PENDING or (self._pending and self._pending[0].done()):
            self._pending.popleft().result()

    def _write_pair(self, name: str, *masks: np.ndarray) -> None:
        if self._palette is None:
            save_change_mask(self._folder / CHANGE_MASKS / f"{name}.png", *masks)
        else:
            for date, mask in zip(("im1", "im2"), masks, strict=True):
                save_mask(self._folder / date / f"{name}.png", mask, self._palette)
        self._when_written(name)

    def __enter__(self) -> "MaskWriter":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            for future in self._pending:
                future.result()


LEFTOVER_AGE_S = 60  # a mask is written within a fraction of a second


def work_key(options: Mapping[str, Any], files: Iterable[Path]) -> str:
    """Return a digest of everything that decides the masks of all pairs alike.

    Args:
        options: plain values.
        files: read as a whole, such as the checkpoints of the ensemble.
    """
    digest = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode())
    for path in files:
        with open(path, "rb") as file:
            digest.update(_digest(file))
    return digest.hexdigest()


def _digest(file: BinaryIO) -> bytes:
    digest = hashlib.sha256()  # hashlib.file_digest needs Python 3.11
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.digest()


def file_signature(paths: Iterable[Path | None]) -> str:
    """Return a digest of the sizes and modification times of a pair's files."""
    states = [(p.stat().st_size, p.stat().st_mtime_ns) if p else None for p in paths]
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()[:16]


def unlisted(folder: Path, names: Sequence[str]) -> list[str]:
    """Return the pairs that the last work in a folder has not finished; none without a journal.

    A program that was ended, or still runs, has masks of earlier work beside its own; its journal
    lists its own alone.

    Args:
        folder: as `Manifest` takes it.
        names: of the pairs whose masks are wanted.
    """
    journals = [_read_journal(path) for path in _journals(folder)]
    if not journals:
        return []
    leading_key = journals[0][0]
    listed = {name for key, entries in journals if key == leading_key for name in entries}
    return [name for name in names if name not in listed]


def _journals(folder: Path) -> list[Path]:
    return sorted(Path(folder).glob("manifest.*.jsonl"))


def _read_journal(path: Path) -> tuple[str, dict[str, str]]:
    """Return a journal's first line and its entries, without lines that were cut off or damaged."""
    first, *lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    entries = {}
    for line in lines:
        with contextlib.suppress(ValueError, TypeError):
            name, entry = json.loads(line)
            entries[name] = entry
    return first, entries


class Manifest:
    """A journal of finished pairs beside their masks, one file per process, a line per pair.

    A line is written when all masks of a pair are in place, so that whatever ends the program
    leaves a journal that says too little at the worst. Half-written masks of a killed program are
    removed.

    Args:
        folder: holds the masks as ``{im1,im2}/<name>.png``, or in other ``mask_folders``.
        key: of this work; entries under another key do not count.
        signatures: name and `file_signature` of every pair there is to do.
        world: the processes that share the work; every one must call this.
        overwrite: forget what is finished.
        mask_folders: what ``folder`` has instead of ``im1`` and ``im2``.

    Attributes:
        finished: names of the pairs whose masks are there, made from these very files.
    """

    def __init__(
        self,
        folder: Path,
        key: str,
        signatures: Mapping[str, str],
        world: World,
        overwrite: bool = False,
        mask_folders: Sequence[str] = ("im1", "im2"),
    ) -> None:
        self._folder = Path(folder)
        self._mask_folders = mask_folders
        self._signatures = signatures
        self._lock = threading.Lock()
        known = self._read(key) if world.leads and not overwrite else {}
        held = {name for name, entry in known.items() if self._holds(name, entry)}
        # One process decides: a file system of several nodes may show each another state, and
        # processes that share out different remainders make a pair twice, or never.
        self.finished: set[str] = world.from_leader(held)
        if world.leads:
            # All that is known goes into one journal before the others are removed.
            self._write_journal(key, 0, known)
            for path in _journals(self._folder):
                if path != self._path(0):
                    path.unlink()
            for part in (self._folder, *(self._folder / each for each in mask_folders)):
                remove_leftovers(part, LEFTOVER_AGE_S)
        world.wait()
        if not world.leads:
            self._write_journal(key, world.rank, {})
        self._file = open(self._path(world.rank), "a", encoding="utf-8")  # noqa: SIM115

    def add(self, name: str) -> None:
        """Note a pair whose masks are in place; safe to call from several threads.

        Raises:
            UserError: the journal cannot be written.
        """
        line = json.dumps([name, self._entry(name)]) + "\n"
        try:
            with self._lock:
                self._file.write(line)
                self._file.flush()
        except OSError as error:
            raise UserError(f"cannot write in {self._folder}: {error.strerror}") from error

    def close(self) -> None:
        """Close the journal."""
        self._file.close()

    def _entry(self, name: str) -> str:
        """Return a digest of a pair's files and of its masks, which others may write as well."""
        masks = [self._folder / each / f"{name}.png" for each in self._mask_folders]
        return f"{self._signatures[name]}-{file_signature(masks)}"

    def _holds(self, name: str, entry: str) -> bool:
        try:
            return name in self._signatures and self._entry(name) == entry
        except OSError:  # a mask is gone
            return False

    def _path(self, rank: int) -> Path:
        return self._folder / f"manifest.{rank}.jsonl"

    def _read(self, key: str) -> dict[str, str]:
        finished: dict[str, str] = {}
        for first, entries in map(_read_journal, _journals(self._folder)):
            if first == json.dumps({"key": key}):
                finished |= entries
        return finished

    def _write_journal(self, key: str, rank: int, finished: dict[str, str]) -> None:
        lines = [{"key": key}, *(list(item) for item in finished.items())]
        write_text(self._path(rank), "".join(json.dumps(line) + "\n" for line in lines))
