"""Files that are whole or absent: written under a temporary name, then renamed."""

import json
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from utils.errors import UserError

# The mask can only be read by setting it, which threads that write files must not do at once.
_UMASK_LOCK = threading.Lock()


def _umask() -> int:
    with _UMASK_LOCK:
        mask = os.umask(0)
        os.umask(mask)
        return mask


@contextmanager
def atomic_path(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` and rename it into place when the block succeeds.

    Missing folders are made. When the block raises, the temporary file is removed and ``path``
    keeps its old content. ``durable`` flushes the file to disk before the rename, so that a power
    cut cannot leave an empty file under the final name; use it for what is costly to make again.
    A `UserError` where the folder cannot be written (read-only, full, vanished).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
    except OSError as error:
        reason = f"{error.strerror}; free or change the folder"
        raise UserError(f"cannot write {path}: {reason}") from error
    temporary = Path(name)
    try:
        yield temporary
        if durable:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # the folder is gone, or to be read only
            temporary.unlink()


def remove_leftovers(folder: Path, age_s: float, names: str = ".+") -> None:
    """Remove temporary files of `atomic_path` that a killed program has left in a folder, if any.

    ``names`` is a regular expression of what was to be written. Files younger than ``age_s``
    seconds another program may be writing just now.
    """
    # What `tempfile.mkstemp` makes of the prefix and suffix that `atomic_path` gives it.
    temporary = re.compile(rf"\.{names}\.[a-z0-9_]{{8}}\.tmp")
    leftovers = [path for path in folder.glob(".*.tmp") if temporary.fullmatch(path.name)]
    if not leftovers:
        return
    with suppress(OSError):  # a folder to read only
        with tempfile.TemporaryFile(dir=folder) as file:
            now = os.fstat(file.fileno()).st_mtime  # by the clock of the file system, as the others
        for path in leftovers:
            with suppress(FileNotFoundError):  # renamed or removed in the meantime
                if now - path.stat().st_mtime >= age_s:
                    path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically (UTF-8)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write plain values as JSON, atomically; other types as their text."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")
