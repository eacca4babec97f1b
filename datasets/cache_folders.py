"""Where a decoded cache lies; in shared memory no longer than its program lives."""

import atexit
import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TextIO

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
    atexit.register(_remove, folder, lock)
    return folder


def _take_lock(folder: Path) -> TextIO:
    lock = open(folder / LOCK, "w", encoding="utf-8")  # noqa: SIM115
    if fcntl:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.register_at_fork(after_in_child=lock.close)  # a reader may outlive its killed program
    return lock


def _remove(folder: Path, lock: TextIO) -> None:
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
