"""What a run leaves to read: one CSV row per epoch, TensorBoard scalars, tables of text."""

import csv
import io
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.files import write_text
from utils.label_counts import AnyMetrics


class RunLog:
    """Scores over epochs, as ``metrics.csv`` and, where installed, TensorBoard scalars.

    The CSV is written anew each epoch under a temporary name, so that it is never half a row.

    Args:
        folder: where the files go.
        tensorboard: False turns TensorBoard off.
    """

    def __init__(self, folder: Path, tensorboard: bool = True) -> None:
        self.folder = Path(folder)
        self._writer = _tensorboard_writer(self.folder) if tensorboard else None

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rows of all epochs so far; ``epoch`` is a number, the rest are scalars.

        Raises:
            UserError: the folder cannot be written, or the disk is full; so with the others.
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[-1]), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.folder / "metrics.csv", text.getvalue())
        if self._writer is not None:
            with _named_errors(self.folder):
                for name, value in rows[-1].items():
                    if name != "epoch":
                        self._writer.add_scalar(name, value, rows[-1]["epoch"])
                self._writer.flush()

    @property
    def shows_images(self) -> bool:
        """Whether `add_image` leads anywhere."""
        return self._writer is not None

    def add_image(self, name: str, image: np.ndarray, epoch: int) -> None:
        """Show a picture, (H, W, 3) uint8, beside an epoch's scalars."""
        if self._writer is not None:
            with _named_errors(self.folder):
                self._writer.add_image(name, image, epoch, dataformats="HWC")

    def close(self) -> None:
        """Flush and close what is open."""
        if self._writer is not None:
            with _named_errors(self.folder):
                self._writer.close()


def _tensorboard_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    _silence_writer_thread()
    with _named_errors(folder):
        return SummaryWriter(log_dir=str(folder))


@contextmanager
def _named_errors(folder: Path) -> Iterator[None]:
    # TensorBoard writes in a thread, whose error any later call raises.
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror or error}; free or change --outdir"
        ) from error


def _silence_writer_thread() -> None:
    """Leave errors of TensorBoard's thread to the calls that raise them: it prints them as well."""
    show = threading.excepthook
    if getattr(show, "silences_tensorboard", False):
        return

    def hook(error: threading.ExceptHookArgs) -> None:
        of_writer = type(error.thread).__module__.startswith("tensorboard.")
        if not (of_writer and issubclass(error.exc_type, OSError)):
            show(error)

    hook.silences_tensorboard = True
    threading.excepthook = hook


def epoch_row(
    epoch: int,
    losses: Mapping[str, float],
    metrics: AnyMetrics,
    class_names: Sequence[str],
    lr: float,
    train_s: float,
    val_s: float,
) -> dict[str, Any]:
    """Return one row of ``metrics.csv``: losses, scores as fractions, rate and seconds."""
    return {
        "epoch": epoch,
        **{f"loss_{name}": value for name, value in losses.items()},
        **metrics.to_row(class_names),
        "lr": lr,
        "train_s": round(train_s, 3),
        "val_s": round(val_s, 3),
    }


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
