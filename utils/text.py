"""What the programs print: tables and progress bars."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from utils.dist import is_main

FIRST_LINE_S, LONGEST_SILENCE_S = 30.0, 300.0
LINE = "{n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left"


def progress(
    items: Iterable[Any],
    description: str,
    unit: str = "batch",
    total: int | None = None,
    first_s: float = FIRST_LINE_S,
) -> Iterable[Any]:
    """Wrap an iterable in a bar that disappears when it ends; ``total`` is for those of no length.

    Where stderr is no terminal there are lines instead: one after ``first_s`` seconds, the next
    ones after as much again as has passed, but no more than `LONGEST_SILENCE_S`. Other processes
    than the first show nothing.
    """
    if is_main() and not sys.stderr.isatty():
        return _lines(items, description, unit, total, first_s)
    options = {"desc": description, "unit": unit, "total": total, "leave": False}
    # Not what `utils.cli.run` makes of stderr: a bar moves the cursor.
    return tqdm(items, **options, file=sys.__stderr__, disable=not is_main())


def _lines(
    items: Iterable[Any], description: str, unit: str, total: int | None, first_s: float
) -> Iterator[Any]:
    total = total if total is not None or not hasattr(items, "__len__") else len(items)
    started, due_s = time.monotonic(), first_s
    for done, item in enumerate(items):
        passed_s = time.monotonic() - started
        if done and passed_s >= due_s:
            due_s = passed_s + min(passed_s, LONGEST_SILENCE_S)
            line = tqdm.format_meter(done, total, passed_s, unit=unit, bar_format=LINE)
            print(f"{description}: {line}", file=sys.stderr, flush=True)
        yield item


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
