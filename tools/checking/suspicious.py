"""A contact sheet of the pairs that an inspection finds most suspicious."""

from collections.abc import Sequence
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
from utils.pictures import BACKGROUND, INK, contact_sheet, save_image

ROWS = 10

CELL = 176

GREY = (190, 190, 190)


def draw_suspicious(report: Report, path: Path) -> list[Path]:
    """Draw pairs with findings, each with its files, as a PNG file.

    Findings take turns, errors first; copies show a pair above the one it resembles.

    Returns:
        The file written: none where no finding names a pair.
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
            rows.append(
                [
                    _text([f"{finding.level}: {finding.kind}", pair_id, entry.detail]),
                    *(_draw_image(image, report.bands) for image in (pair.image1, pair.image2)),
                    *(_draw_label(label, report.classes) for label in labels),
                ]
            )
    if not rows:
        return []
    titles = ("finding", "image 1", "image 2", *(("label",) if binary else ("label 1", "label 2")))
    legend = list(zip(report.classes.names, report.classes.colors, strict=True))
    save_image(path, contact_sheet(titles, rows, CELL, legend))
    return [path]


def _draw_image(path: Path, bands: tuple[int, ...]) -> np.ndarray:
    try:
        image = Image.fromarray(read_picture(path, bands))
    except DataError:
        return _text(["cannot be decoded"], GREY)
    # The sheet scales without smoothing, so that masks keep their colours; images look better
    # smoothed.
    image.thumbnail((CELL, CELL), Image.Resampling.BOX)
    return np.asarray(image)


def _draw_label(path: Path | None, classes: ClassList) -> np.ndarray:
    if path is None:
        return _text(["no label"])
    try:
        image = open_image(path)
    except DataError:
        return _text(["cannot be decoded"], GREY)
    mask = inspect_label(image, classes).mask
    if mask is not None:
        return classes.to_rgb(mask)
    if image.mode not in ("L", "1") and not image.mode.startswith(("I", "F")):
        return np.asarray(image.convert("RGB"))
    values = np.asarray(image).astype(np.float64)
    grey = 255 * (values - values.min()) / (np.ptp(values) or 1)
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def _text(paragraphs: Sequence[str], background: tuple[int, int, int] = BACKGROUND) -> np.ndarray:
    image = Image.new("RGB", (CELL, CELL), background)
    lines = [line for text in paragraphs if text for line in (*wrap(text, 27), "")]
    font = ImageFont.load_default(12)
    ImageDraw.Draw(image).multiline_text((6, 6), "\n".join(lines), fill=INK, font=font, spacing=3)
    return np.asarray(image)
