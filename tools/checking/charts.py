"""Charts of class statistics. They need matplotlib, which is imported where it is used."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.files import atomic_path

INK, GRID = "#1e1e1e", "#d5d5d5"

ROOM_FOR_FIGURES = 20  # classes; more leave no room for a number in each cell


def plot_transitions(
    path: Path,
    counts: np.ndarray,
    names: Sequence[str],
    title: str = "Changed area, from class to class",
) -> None:
    """Draw how much of the changed area went from which class to which, in percent.

    Args:
        path: the PNG to write.
        counts: (C, C) pixels, class at date 1 by class at date 2.
        names: of the C classes.
        title: above the picture.

    Raises:
        UserError: matplotlib is not installed.
    """
    shares = 100 * counts / max(1, counts.sum())
    figure, axes = _figure(2.6 + 0.62 * len(names), 2.0 + 0.5 * len(names))
    picture = axes.imshow(shares, cmap="Blues", vmin=0, aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("class at date 2")
    axes.set_ylabel("class at date 1")
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if len(names) <= ROOM_FOR_FIGURES:
        for row, column in np.ndindex(shares.shape):
            share = shares[row, column]
            text = "·" if share == 0 else "<0.1" if share < 0.1 else f"{share:.1f}"
            color = "white" if share > 0.6 * shares.max() else INK
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
    bar = figure.colorbar(picture, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label("% of the changed area")
    bar.outline.set_visible(False)
    _save(figure, path)


def plot_class_shares(
    path: Path,
    shares: dict[str, tuple[np.ndarray, np.ndarray]],
    names: Sequence[str],
    colors: Sequence[tuple[int, int, int]],
    title: str = "Changed area",
) -> None:
    """Draw the share of each class per split, date 1 above date 2.

    Args:
        path: the PNG to write.
        shares: per split the C shares at date 1 and at date 2, in percent.
        names: of the C classes.
        colors: RGB, 0..255, of the C classes.
        title: above the picture.

    Raises:
        UserError: matplotlib is not installed.
    """
    height = 1.0 + 0.45 * len(names)
    figure, all_axes = _figure(2.0 + 3.6 * len(shares), height, columns=max(1, len(shares)))
    places = np.arange(len(names))
    strong = np.asarray(colors) / 255
    fills = (strong, 0.5 + strong / 2)  # paler at date 2
    limit = 1.18 * max((max(a.max(), b.max()) for a, b in shares.values()), default=1) or 1
    for axes, (split, dates) in zip(np.ravel(all_axes), shares.items(), strict=False):
        for date, offset in ((0, -0.2), (1, 0.2)):
            bars = axes.barh(
                places + offset, dates[date], 0.36, color=fills[date], edgecolor=INK, linewidth=0.5
            )  # fmt: skip
            axes.bar_label(bars, [f"{v:.1f}" for v in dates[date]], padding=3, fontsize=7)
        axes.set_yticks(places, names)
        axes.set_ylim(len(names) - 0.5, -0.5)  # first class on top
        axes.set_xlim(0, limit)
        axes.set_xlabel("% of the changed area; upper bar date 1, paler bar date 2", fontsize=8)
        axes.set_title(f"{title}: {split}", loc="left", color=INK, fontsize=10)
        axes.grid(axis="x", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    _save(figure, path)


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("no charts: matplotlib is missing; pip install matplotlib") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, sharey=columns > 1)


def _save(figure: Any, path: Path) -> None:
    with atomic_path(Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
