"""What a run leaves to read: one CSV row per epoch, TensorBoard scalars, tables of text."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.files import write_text


class RunLog:
    """Scores over epochs, as ``metrics.csv`` and, where installed, TensorBoard scalars.

    The CSV is written anew each epoch under a temporary name, so that it is never half a row.

    Args:
        folder: where the files go.
        rows: rows of the epochs before a resume.
        tensorboard: False turns TensorBoard off.
    """

    def __init__(
        self, folder: Path, rows: Sequence[Mapping[str, Any]] = (), tensorboard: bool = True
    ) -> None:
        self.folder = Path(folder)
        self.rows = [dict(row) for row in rows]
        self._writer = _tensorboard_writer(self.folder) if tensorboard else None

    def add(self, row: Mapping[str, Any]) -> None:
        """Append one epoch; ``epoch`` is its number, the other entries are scalars."""
        self.rows.append(dict(row))
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(self.rows[-1]), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.folder / "metrics.csv", text.getvalue())
        if self._writer is not None:
            for name, value in row.items():
                if name != "epoch":
                    self._writer.add_scalar(name, value, row["epoch"])
            self._writer.flush()

    def close(self) -> None:
        """Flush and close what is open."""
        if self._writer is not None:
            self._writer.close()


def _tensorboard_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(log_dir=str(folder))


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
