"""What an inspection found, as pictures: charts of the classes, a sheet of suspicious pairs."""

from itertools import zip_longest
from pathlib import Path
from textwrap import wrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from datasets.classes import ClassList
from datasets.images import open_image, read_picture
from datasets.labels import inspect_label
from tools.checking.inspection import Report
from utils.errors import DataError
from utils.files import atomic_path
from utils.pictures import BACKGROUND, INK, contact_sheet, save_image

try:
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["text.parse_math"] = False  # class names are no formulas
except ImportError:
    Figure = None

TRANSITIONS, CLASSES, SUSPICIOUS = "transitions.png", "classes.png", "suspicious.png"
ROOM_FOR_FIGURES = 20  # classes; more leave no room for a number in each cell
ROWS, CELL = 10, 176  # of the sheet
GREY = (190, 190, 190)


def draw_pictures(report: Report, outdir: Path) -> list[str]:
    """Draw what there is to draw; return the names. Pictures of an earlier check go."""
    for name in (TRANSITIONS, CLASSES, SUSPICIOUS):
        (outdir / name).unlink(missing_ok=True)
    charts = {}
    if report.transitions(both_dates=True)[1:, 1:].any():
        if Figure is None:
            print("note: no charts: matplotlib is missing; pip install matplotlib")
        else:
            charts = {TRANSITIONS: _plot_transitions(report), CLASSES: _plot_classes(report)}
    for name, figure in charts.items():
        with atomic_path(outdir / name) as temporary:
            figure.savefig(temporary, format="png", dpi=130)
    sheet = _suspicious_sheet(report)
    if sheet is None:
        return list(charts)
    save_image(outdir / SUSPICIOUS, sheet)
    return [*charts, SUSPICIOUS]


def _plot_transitions(report: Report) -> "Figure":
    """Draw how much of the changed area went from which class to which, in percent."""
    counts, names = report.transitions(both_dates=True)[1:, 1:], report.classes.names[1:]
    shares = 100 * counts / counts.sum()
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


def _plot_classes(report: Report) -> "Figure":
    """Draw the share of each class per split, date 1 above date 2, which is paler."""
    splits = [split for split in report.splits if len(report.dates(split)) == 2]
    splits = [split for split in splits if report.transitions(split)[1:, 1:].any()]
    names, colors = report.classes.names[1:], np.asarray(report.classes.colors[1:]) / 255
    size = (2.0 + 3.6 * len(splits), 1.0 + 0.45 * len(names))
    figure = Figure(size, layout="constrained")
    all_axes = figure.subplots(1, len(splits), sharex=True, sharey=True, squeeze=False)[0]
    for axes, split in zip(all_axes, splits, strict=True):
        upper, lower = report.class_shares(split)
        for shares, offset, fill in ((upper, -0.2, colors), (lower, 0.2, 0.5 + colors / 2)):
            places = np.arange(len(names)) + offset
            bars = axes.barh(places, shares, 0.36, color=fill, edgecolor="black", linewidth=0.5)
            axes.bar_label(bars, fmt="{:.1f}", padding=3, fontsize=7)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("% of the changed area; upper bar date 1, paler bar date 2", fontsize=8)
        axes.set_title(f"Changed area: {split}", loc="left", fontsize=10)
        axes.margins(x=0.15)
    all_axes[0].invert_yaxis()  # the first class on top
    return figure


def _suspicious_sheet(report: Report) -> np.ndarray | None:
    """Draw pairs with findings, each with its files; None where no finding names a pair.

    Findings take turns, errors first; copies show a pair above the one it resembles.
    """
    pairs = {pair_report.pair.id: pair_report.pair for pair_report in report.pairs}
    binary = any(pair.change_mask for pair in pairs.values())
    turns = zip_longest(*([(f, e) for e in f.entries if e.pairs] for f in report.findings))
    rows = []
    for finding, entry in (item for turn in turns for item in turn if item is not None):
        if len(rows) + min(2, len(entry.pairs)) > ROWS:
            break
        for pair_id in entry.pairs[:2]:
            pair = pairs[pair_id]
            labels = (pair.change_mask,) if binary else (pair.label1, pair.label2)
            pictures = [_draw_image(path, report.bands) for path in (pair.image1, pair.image2)]
            pictures += [_draw_label(path, report.classes) for path in labels]
            title = _text(f"{finding.level}: {finding.kind}", pair_id, entry.detail)
            rows.append([title, *pictures])
    if not rows:
        return None
    titles = ("finding", "image 1", "image 2", *(["label"] if binary else ["label 1", "label 2"]))
    legend = list(zip(report.classes.names, report.classes.colors, strict=True))
    return contact_sheet(titles, rows, CELL, legend)


def _draw_image(path: Path, bands: tuple[int, ...]) -> np.ndarray:
    try:
        image = Image.fromarray(read_picture(path, bands))
    except DataError:
        return _text("cannot be decoded", background=GREY)
    # The sheet scales without smoothing, so that masks keep their colours; images look better
    # smoothed.
    image.thumbnail((CELL, CELL), Image.Resampling.BOX)
    return np.asarray(image)


def _draw_label(path: Path | None, classes: ClassList) -> np.ndarray:
    if path is None:
        return _text("no label")
    try:
        image = open_image(path)
    except DataError:
        return _text("cannot be decoded", background=GREY)
    mask = inspect_label(image, classes).mask
    if mask is not None:
        return classes.to_rgb(mask)
    if image.mode not in ("L", "1") and not image.mode.startswith(("I", "F")):
        return np.asarray(image.convert("RGB"))
    values = np.asarray(image).astype(np.float64)
    grey = 255 * (values - values.min()) / (np.ptp(values) or 1)
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def _text(*paragraphs: str, background: tuple[int, int, int] = BACKGROUND) -> np.ndarray:
    image = Image.new("RGB", (CELL, CELL), background)
    lines = [line for text in paragraphs if text for line in (*wrap(text, 27), "")]
    font = ImageFont.load_default(12)
    ImageDraw.Draw(image).multiline_text((6, 6), "\n".join(lines), fill=INK, font=font, spacing=3)
    return np.asarray(image)
