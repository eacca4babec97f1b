"""Progress bars and the one-line summary of scores."""

from collections.abc import Iterable, Sequence, Sized
from typing import Any

from tqdm import tqdm


def progress(
    items: Iterable[Any],
    description: str,
    show: bool = True,
    unit: str = "batch",
    total: int | None = None,
) -> Iterable[Any]:
    """Wrap an iterable in a bar that disappears when it ends; no bar where stderr is a file.

    Args:
        items: what to iterate over.
        description: stands before the bar.
        show: False for no bar at all.
        unit: what an item is.
        total: number of items, where ``items`` has no length.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    return tqdm(
        items,
        desc=description,
        unit=unit,
        total=total,
        leave=False,
        disable=None if show else True,
    )


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Format rows as aligned text: the first column left, the others right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
