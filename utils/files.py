"""Files that are whole or absent, written under a temporary name, then renamed; and not just
anywhere.
"""

import csv
import errno
import io
import json
import os
import re
import tempfile
import threading
from argparse import ArgumentTypeError
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from utils.errors import OptionError, UserError

# Folders of dates and of labels, as `datasets.classes` has them in all its forms.
DATES = (("im1", "im2"), ("A", "B"), ("T1", "T2"), ("Image1", "Image2"))
LABELS = ("label", "label1", "label2", "GT", "GT_T1", "GT_T2")
# With which a formula begins, or what some programs make one of (OWASP, "CSV Injection").
FORMULA = tuple("=+-@\t\r\n＝＋－＠")
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


def remove_leftovers(folder: Path, age_s: float = 0, names: str = ".+") -> None:
    """Remove temporary files of `atomic_path` that a killed program has left in a folder, if any.

    ``names`` is a regular expression of what was to be written. Files younger than ``age_s``
    seconds another program may be writing just now, where no lock keeps it away.
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


def require_regular(path: Path) -> None:
    """Raise an OSError where a path is there but no regular file: a pipe would wait for ever."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "no regular file", str(path))


def read_text(path: Path | str) -> str:
    """Return a small text file (UTF-8); an OSError or a ValueError where it is none."""
    require_regular(Path(path))
    return Path(path).read_text(encoding="utf-8-sig")


def require_outside(data_root: Path, outdir: Path, folders: Sequence[Path]) -> None:
    """Raise an OptionError where outputs would land in a data set, maybe by a link into one."""
    roots = [data_root / split for split in ("train", "val", "test")]
    inside = [path for root in roots if root.is_dir() for path in root.iterdir()]
    sets = [path.resolve() for path in (*roots, *inside) if path.is_dir()]
    for folder in folders:
        real = folder.resolve()
        near = (real, real.parent) if folder.is_symlink() else (real,)
        labelled = any((p / name).is_dir() for p in near for name in ("label", "label1", "label2"))
        linked = any(real.is_relative_to(place) for place in sets)
        linked |= folder.parent.name == "masks" and any(p.is_relative_to(real) for p in sets)
        if labelled or linked:
            raise OptionError(
                f"--outdir {outdir}: {folder} lies in a data set, whose files would be "
                "replaced; name another folder"
            )


def output_path(text: str) -> Path:
    """Parse where a tool writes: nowhere among the files of a data set, nor by a link to there."""
    real = Path(text).resolve()
    for place in (real, *real.parents):
        roots = [place.parent / split for split in ("train", "val", "test")]
        found = place in roots and any((r / name).is_dir() for r in roots for name in LABELS)
        for dates in DATES:
            beside = all((place.parent / date).is_dir() for date in dates)
            found |= beside and place.name in (*dates, *LABELS)
        if found:
            raise ArgumentTypeError(
                f"{text!r} lies in a data set, whose files it could replace, in {place}; name "
                "another place"
            )
    return Path(text)


def require_writable(folder: Path) -> None:
    """Raise a `UserError` where a folder cannot be written or made; nothing is tried."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        raise UserError(f"cannot write {folder}: no way into {place}; free or change the folder")


def read_json(path: Path) -> Any:
    """Return what a JSON file holds; an OSError or a ValueError where it is none."""
    try:
        return json.loads(read_text(path))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def file_state(path: Path) -> tuple[int, int]:
    """Return what changes when a file is replaced: its bytes and its time in ns."""
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically (UTF-8; names that are none are escaped)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV, atomically, in the columns of the longest, the last of equals.

    Where others have no value the cell is empty. Text that a spreadsheet would run as a formula
    gets an apostrophe.
    """
    names, text = list(max(reversed(rows), key=len)), io.StringIO()
    table = (names, *([row.get(name, "") for name in names] for row in rows))
    csv.writer(text).writerows(map(_safe_cell, row) for row in table)
    write_text(path, text.getvalue())


def _safe_cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def write_json(path: Path, value: Any) -> None:
    """Write plain values as JSON, atomically; other types as their text."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")
