"""A contact sheet of the pairs that an inspection finds most suspicious."""

from collections.abc import Iterator
from itertools import zip_longest
from textwrap import wrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from datasets.classes import ClassList
from datasets.images import open_image, read_picture
from datasets.labels import inspect_label
from datasets.pairs import Pair
from tools.checking.findings import Entry, Finding
from tools.checking.inspection import Report
from utils.errors import DataError
from utils.pictures import BACKGROUND, INK, contact_sheet

TITLES = ("finding", "image 1", "image 2", "label 1", "label 2")

CHANGE_TITLES = ("finding", "image 1", "image 2", "label")

ROWS = 10

CELL = 176

GREY = (190, 190, 190)


def suspicious_sheet(report: Report, rows: int = ROWS) -> np.ndarray | None:
    """Draw pairs with findings, each with its files; None where no finding names a pair.

    Findings take turns, errors first; copies show a pair above the one it resembles.

    Returns:
        (H, W, 3) uint8.
    """
    pairs = {pair_report.pair.id: pair_report.pair for pair_report in report.pairs}
    binary = any(pair.change_mask for pair in pairs.values())
    pictures = []
    for finding, entry in _in_turns(report.findings):
        if len(pictures) + min(2, len(entry.pairs)) > rows:
            break
        for pair_id in entry.pairs[:2]:
            pair = pairs[pair_id]
            title = [f"{finding.level}: {finding.kind}", pair_id, entry.detail]
            drawn = _draw_pair(pair, report.classes, binary, report.bands)
            pictures.append([_text(title), *drawn])
    if not pictures:
        return None
    legend = list(zip(report.classes.names, report.classes.colors, strict=True))
    return contact_sheet(CHANGE_TITLES if binary else TITLES, pictures, CELL, legend)


def _in_turns(findings: list[Finding]) -> Iterator[tuple[Finding, Entry]]:
    queues = [[(finding, e) for e in finding.entries if e.pairs] for finding in findings]
    for turn in zip_longest(*queues):
        yield from (item for item in turn if item is not None)


def _draw_pair(
    pair: Pair, classes: ClassList, binary: bool, bands: tuple[int, ...]
) -> Iterator[np.ndarray]:
    labels = (pair.change_mask,) if binary else (pair.label1, pair.label2)
    for path in (pair.image1, pair.image2, *labels):
        if path is None:
            yield _text(["no label"])
            continue
        try:
            if path in labels:
                yield _draw_label(open_image(path), classes)
            else:
                # The sheet scales without smoothing, so that masks keep their colours; images look
                # better smoothed.
                yield _shrink(read_picture(path, bands))
        except DataError:
            yield _text(["cannot be decoded"], GREY)


def _draw_label(image: Image.Image, classes: ClassList) -> np.ndarray:
    mask = inspect_label(image, classes).mask
    return _to_rgb(image) if mask is None else classes.to_rgb(mask)


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Show any mode; values of more than 8 bits, and small ones, are stretched."""
    if image.mode in ("L", "1") or image.mode.startswith(("I", "F")):
        values = np.asarray(image).astype(np.float64)
        grey = 255 * (values - values.min()) / (np.ptp(values) or 1)
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def _shrink(picture: np.ndarray) -> np.ndarray:
    image = Image.fromarray(picture)
    image.thumbnail((CELL, CELL), Image.Resampling.BOX)
    return np.asarray(image)


def _text(paragraphs: list[str], background: tuple[int, int, int] = BACKGROUND) -> np.ndarray:
    image = Image.new("RGB", (CELL, CELL), background)
    lines = [line for text in paragraphs if text for line in (*wrap(text, 27), "")]
    font = ImageFont.load_default(12)
    ImageDraw.Draw(image).multiline_text((6, 6), "\n".join(lines), fill=INK, font=font, spacing=3)
    return np.asarray(image)
