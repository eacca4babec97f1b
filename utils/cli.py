"""What every script does around its ``main``: one clear line instead of a traceback."""

import argparse
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
        from utils.dist import report_failure

        if report_failure(line.removeprefix("error: ")):
            return
    print(line, file=sys.stderr)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Aligns the help texts and keeps the examples in the epilog as they are."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)


def make_parser(description: str, epilog: str = "") -> argparse.ArgumentParser:
    """Return an empty parser with this project's layout of help texts."""
    return argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=HelpFormatter, allow_abbrev=False
    )


def positive_int(text: str) -> int:
    """Parse an integer ≥ 1."""
    return _number(text, int, lambda value: value >= 1, "a whole number of at least 1")


def natural(text: str) -> int:
    """Parse an integer ≥ 0."""
    return _number(text, int, lambda value: value >= 0, "a whole number of at least 0")


def seed(text: str) -> int:
    """Parse an integer from 0 to 2^63 − 1, what torch takes as a seed."""
    return _number(text, int, lambda value: 0 <= value < 2**63, "a whole number from 0 to 2^63 - 1")


def positive_float(text: str) -> float:
    """Parse a finite number > 0."""
    return _number(text, float, lambda value: 0 < value < float("inf"), "a number above 0")


def non_negative_float(text: str) -> float:
    """Parse a finite number ≥ 0."""
    return _number(text, float, lambda value: 0 <= value < float("inf"), "a number of at least 0")


def fraction(text: str) -> float:
    """Parse a number in 0..1."""
    return _number(text, float, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def weight_list(text: str) -> tuple[float, ...]:
    """Parse comma-separated positive weights, such as ``2,1,2,2,1,1``."""
    return tuple(positive_float(part) for part in text.split(","))


def _number(text: str, kind: type, valid: object, expected: str) -> float | int:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not valid(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
    return value
