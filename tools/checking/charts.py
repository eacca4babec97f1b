"""Charts of class statistics; none without matplotlib."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tools.checking.inspection import Report
from utils.files import atomic_path

try:
    from matplotlib.figure import Figure
except ImportError:
    Figure = None

ROOM_FOR_FIGURES = 20  # classes; more leave no room for a number in each cell


def draw_charts(report: Report, transitions: Path, classes: Path) -> list[Path]:
    """Draw the changes from class to class and the classes of each split, as PNG files.

    Returns:
        The files written: none without matplotlib, or without labels of both dates.
    """
    counts = report.transitions(both_dates=True)[1:, 1:]
    if not counts.any():
        return []
    if Figure is None:
        print("note: no charts: matplotlib is missing; pip install matplotlib")
        return []
    names, colors = report.classes.names[1:], report.classes.colors[1:]
    shares = {
        split: report.class_shares(split)
        for split in report.splits
        if len(report.dates(split)) == 2 and report.transitions(split)[1:, 1:].any()
    }
    _save(_plot_transitions(100 * counts / counts.sum(), names), transitions)
    _save(_plot_classes(shares, names, colors), classes)
    return [transitions, classes]


def _plot_transitions(shares: np.ndarray, names: Sequence[str]) -> "Figure":
    figure = Figure((2.6 + 0.62 * len(names), 2.0 + 0.5 * len(names)), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="class at date 2", ylabel="class at date 1")
    axes.set_title("Changed area, from class to class", loc="left")
    if len(names) <= ROOM_FOR_FIGURES:
        for (row, column), share in np.ndenumerate(shares):
            text = "·" if share == 0 else "<0.1" if share < 0.1 else f"{share:.1f}"
            color = "white" if share > 0.6 * shares.max() else "black"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
    figure.colorbar(picture, label="% of the changed area")
    return figure


def _plot_classes(
    shares: dict[str, np.ndarray], names: Sequence[str], colors: Sequence[tuple[int, int, int]]
) -> "Figure":
    """Draw (2, C) percent per split as bars, date 1 above date 2, which is paler."""
    size = (2.0 + 3.6 * len(shares), 1.0 + 0.45 * len(names))
    figure = Figure(size, layout="constrained")
    all_axes = figure.subplots(1, len(shares), sharex=True, sharey=True, squeeze=False)[0]
    places, strong = np.arange(len(names)), np.asarray(colors) / 255
    for axes, (split, dates) in zip(all_axes, shares.items(), strict=True):
        for offset, values, fill in zip(
            (-0.2, 0.2), dates, (strong, 0.5 + strong / 2), strict=True
        ):
            bars = axes.barh(
                places + offset, values, 0.36, color=fill, edgecolor="black", linewidth=0.5
            )
            axes.bar_label(bars, fmt="{:.1f}", padding=3, fontsize=7)
        axes.set_yticks(places, names)
        axes.set_xlabel("% of the changed area; upper bar date 1, paler bar date 2", fontsize=8)
        axes.set_title(f"Changed area: {split}", loc="left", fontsize=10)
        axes.margins(x=0.15)
    all_axes[0].invert_yaxis()  # the first class on top
    return figure


def _save(figure: "Figure", path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
