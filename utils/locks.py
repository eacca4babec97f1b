"""Locks: one program at a time writes a run, a folder of masks or a data set."""

import errno
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import UserError
from utils.files import read_text, write_text

LOCK = ".lock"  # in a folder that one program at a time may write
LOCK_WAIT_S = 1  # `holder` takes a free lock for a moment
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def exclusive(lock: Path, what: str) -> Iterator[None]:
    """Be the one program that writes ``what`` into a lock file's folder, which is made if missing.

    The lock ends with its process, however that ends. A `UserError` where another program holds
    it, or the folder cannot be written. Where the file system has no locks: a warning.
    """
    own, owner = FileLock(lock, LOCK_WAIT_S, mode=0o666, fallback_to_soft=False), _owner_file(lock)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        own.acquire()
    except Timeout as error:
        raise UserError(
            f"{lock.parent}: {_read_owner(lock)} is writing {what} there; wait for its end, end "
            "it, or write to another folder"
        ) from error
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            reason = f"{error.strerror}; free or change the folder"
            raise UserError(f"cannot write {lock.parent}: {reason}") from error
        print(
            f"warning: {lock.parent}: no locks on this file system; see to it that no other "
            "program writes there",
            file=sys.stderr,
        )
        with suppress(OSError):
            lock.unlink()
        yield
        return
    try:
        program, started = Path(sys.argv[0]).name, time.strftime("%Y-%m-%d %H:%M")
        where = f"process {os.getpid()} on {socket.gethostname()}"
        with suppress(UserError):  # a full disk; the lock holds all the same
            write_text(owner, f"{program} ({where}, since {started})")
        yield
    finally:
        for path in (owner, lock):  # who waits for the lock looks whether its file is still there
            with suppress(OSError):
                path.unlink()
        own.release()


def holder(lock: Path) -> str:
    """Name the program that holds a lock of `exclusive`; "" where nobody is known to."""
    if not lock.exists():
        return ""
    try:
        with FileLock(lock, 0, mode=0o666, fallback_to_soft=False):
            return ""
    except Timeout:
        return _read_owner(lock)
    except (OSError, NotImplementedError):  # to read only
        return ""


def _owner_file(lock: Path) -> Path:
    return lock.with_name(f"{lock.name}.owner")


def _read_owner(lock: Path) -> str:
    with suppress(OSError, ValueError):
        return read_text(_owner_file(lock))
    return "another program"
