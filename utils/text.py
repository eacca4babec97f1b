"""What the programs print: tables and progress bars."""

from collections.abc import Iterable, Sequence
from typing import Any

from tqdm import tqdm

from utils.dist import is_main


def progress(
    items: Iterable[Any], description: str, unit: str = "batch", total: int | None = None
) -> Iterable[Any]:
    """Wrap an iterable in a bar that disappears when it ends; ``total`` is for those of no length.

    There is none where stderr is a file, and on other processes than the first.
    """
    hidden = None if is_main() else True
    return tqdm(items, desc=description, unit=unit, total=total, leave=False, disable=hidden)


def plural(count: int, noun: str) -> str:
    """Return ``1 pair``, ``2 pairs``, ``2 classes``."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count} {noun}{ending}"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Format rows as aligned text: the first column left, the others right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *others in cells:
        rest = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *rest]).rstrip())
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
