"""When the user started a script, known to the processes that do its work as well."""

import os
import time

STARTED = "SCD_STARTED"  # set for processes that a script starts: seconds since the epoch


def start_time() -> float:
    """Return the reading of `time.perf_counter` when the user started the script.

    Call it first. In a process that `utils.distributed.launch` started it is the launcher's start.
    """
    now = time.perf_counter()
    started = os.environ.get(STARTED)
    return now - max(0.0, time.time() - float(started)) if started else now


def to_environment(started: float) -> str:
    """Return the value of `STARTED` for a reading of this process's `time.perf_counter`."""
    # Nothing says that two processes read the same from it, so the time of day is handed on.
    return repr(time.time() - (time.perf_counter() - started))
