"""What every script does around its ``main``: one clear line instead of a traceback."""

import multiprocessing
import signal
import sys
from collections.abc import Callable

from utils.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError, first_line, one_line


def run(main: Callable[[], object]) -> None:
    """Call ``main()`` and turn what a user can cause into one line on stderr and an exit status.

    Status 2 stands for an error the user can repair, such as a broken cache of torch's compiler,
    130 for Ctrl-C, 75 for a run that saved its state because a scheduler asked it to end, and 137
    for a run of several processes one of which was killed. With ``--debug`` on the command line the
    traceback is shown instead.
    """
    try:
        main()
    except UserError as error:
        if "--debug" in sys.argv:
            raise
        _report(f"error: {one_line(error)}")
        sys.exit(getattr(error, "status", EXIT_USER_ERROR))
    except KeyboardInterrupt:
        if "--debug" in sys.argv:
            raise
        _report("interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        line = _known_failure(error)
        if "--debug" in sys.argv or line is None:
            raise
        _report(f"error: {line}")
        sys.exit(EXIT_USER_ERROR)
    finally:
        _end_readers()


def _known_failure(error: Exception) -> str | None:
    """Return what to say of an error of torch's that is no fault of this program; else None."""
    # By name: importing torch's compiler takes a second. Its other errors are faults of a model.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "ShortenTraceback" in kinds:
        return _compiling_failed(error)
    if "OutOfMemoryError" in kinds or "DefaultCPUAllocator" in str(error):
        return (
            f"out of memory ({first_line(error)}); use a smaller batch (--batch-size, "
            "--val-batch-size, --test-batch-size), and in training --accumulate, "
            "--checkpoint-activations or a smaller --crop-size"
        )
    if str(error).startswith("DataLoader timed out"):
        return (
            f"reader processes gave no batch ({error}); start again, with --resume in training; "
            "where it happens often, use --workers 0 or Python 3.12"
        )
    return None


def _compiling_failed(error: Exception) -> str:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return (
        f"compiling failed ({first_line(error)}); remove "
        f"{cache_dir()}, "
        "where a killed program may have left a broken file, or do without: no --compile in "
        "training, --compile off elsewhere"
    )


def _end_readers() -> None:
    """End what data loaders have left: they ignore SIGTERM, and Python would wait for them."""
    readers = [child for child in multiprocessing.active_children() if child.daemon]
    if readers and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch takes the end of one for an error
    for reader in readers:
        reader.kill()


def _report(line: str) -> None:
    """Print a line, or hand it to the launcher, so that four processes print it once."""
    if "torch" in sys.modules:
        from utils.distributed import report_failure

        if report_failure(line.removeprefix("error: ")):
            return
    print(line, file=sys.stderr)
