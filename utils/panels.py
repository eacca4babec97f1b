"""Contact sheets: rows of equally sized pictures under column titles."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP = 4
TITLE_HEIGHT = 20
LEGEND_HEIGHT = 24
BACKGROUND = (250, 250, 250)
INK = (30, 30, 30)


def contact_sheet(
    titles: Sequence[str],
    rows: Sequence[Sequence[np.ndarray]],
    cell: int = 160,
    legend: Sequence[tuple[str, tuple[int, int, int]]] = (),
) -> np.ndarray:
    """Arrange pictures in a grid.

    Args:
        titles: one per column.
        rows: per row one (H, W, 3) uint8 picture per column.
        cell: side of the square each picture is scaled into, in pixels.
        legend: names and colours drawn below.

    Returns:
        (H, W, 3) uint8.
    """
    width = len(titles) * (cell + GAP) + GAP
    height = TITLE_HEIGHT + len(rows) * (cell + GAP) + GAP + (LEGEND_HEIGHT if legend else 0)
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for column, title in enumerate(titles):
        center = GAP + column * (cell + GAP) + cell // 2
        draw.text((center, TITLE_HEIGHT // 2), title, fill=INK, font=font, anchor="mm")
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            corner = (GAP + column * (cell + GAP), TITLE_HEIGHT + row * (cell + GAP))
            sheet.paste(_fit(picture, cell), corner)
    _draw_legend(draw, legend, height - LEGEND_HEIGHT, font)
    return np.asarray(sheet)


def _fit(picture: np.ndarray, cell: int) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(picture))
    scale = cell / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Masks must not gain colours, and small scenes look the same either way.
    image = image.resize(size, Image.Resampling.NEAREST)
    canvas = Image.new("RGB", (cell, cell), BACKGROUND)
    canvas.paste(image, ((cell - size[0]) // 2, (cell - size[1]) // 2))
    return canvas


def _draw_legend(
    draw: ImageDraw.ImageDraw,
    legend: Sequence[tuple[str, tuple[int, int, int]]],
    top: int,
    font: ImageFont.FreeTypeFont,
) -> None:
    left = GAP
    for name, color in legend:
        draw.rectangle((left, top + 6, left + 12, top + 18), fill=color, outline=INK)
        draw.text((left + 17, top + 12), name, fill=INK, font=font, anchor="lm")
        left += 34 + round(draw.textlength(name, font=font))
