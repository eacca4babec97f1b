"""Text files that name pairs, one a line."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.errors import DataError


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not blank, without the space around them.

    Raises:
        DataError: the file is unreadable or empty.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected one name a line") from error
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        raise DataError(f"{path}: no names in it; write one a line")
    return lines


def choose_named(path: Path, lines: Sequence[str], known: Mapping[str, str], no: str) -> list[str]:
    """Return what is known under the names in a list, in its order.

    Args:
        path: of the list, for messages.
        lines: file names or stems, with or without folder and suffix.
        known: by stem.
        no: what an unknown name has or is not, for messages: ``is no pair``.

    Raises:
        DataError: a name is not known, or repeats.
    """
    chosen = []
    for line in lines:
        stem = Path(line).name if Path(line).name in known else Path(line).stem
        if stem not in known:
            raise DataError(f"{path}: {line!r} {no}; correct the list")
        chosen.append(known[stem])
    if len(set(chosen)) < len(chosen):
        raise DataError(f"{path}: names repeat; list each pair once")
    return chosen
