"""How images of any bands and depth are shown: contact sheets, reports, TensorBoard."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from utils.files import atomic_path, require_regular

Palette = Sequence[tuple[int, int, int]]
SHOWN_PERCENT = (2, 98)
GAP, TITLE_HEIGHT, LEGEND_HEIGHT = 4, 20, 24  # of a contact sheet, in pixels
BACKGROUND, INK = (250, 250, 250), (30, 30, 30)
CHANGE_MASKS = "change"  # folder of predicted change masks
# Masks hold few colours in large areas: level 1 costs a third of the default's time and about a
# tenth more bytes.
PNG_LEVEL = 1
NOTE = "Work"  # the text chunk of a mask that tells what made it


def to_rgb(values: np.ndarray) -> np.ndarray:
    """Show an image of any number of bands and bits: (H, W, bands) → (H, W, 3) uint8.

    One or two bands are shown as grey, of more the first three. 8-bit values stay as they are;
    others are stretched band by band, from the 2nd to the 98th percentile of this very image, so
    that brightness cannot be compared between two pictures.
    """
    shown = values[..., :3] if values.shape[-1] >= 3 else np.repeat(values[..., :1], 3, axis=2)
    if shown.dtype == np.uint8:
        return shown
    low, high = np.percentile(shown, SHOWN_PERCENT, axis=(0, 1))
    span = np.where(high > low, high - low, 1)
    return (255 * np.clip((shown - low) / span, 0, 1) + 0.5).astype(np.uint8)


def contact_sheet(
    titles: Sequence[str],
    rows: Sequence[Sequence[np.ndarray]],
    cell: int = 160,
    legend: Sequence[tuple[str, tuple[int, int, int]]] = (),
) -> np.ndarray:
    """Arrange pictures, (H, W, 3) uint8, in a grid of titled columns; return one of that kind.

    ``cell`` is the side of the square each picture is scaled into; the legend is drawn below.
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
    left, top = GAP, height - LEGEND_HEIGHT
    for name, color in legend:
        draw.rectangle((left, top + 6, left + 12, top + 18), fill=color, outline=INK)
        draw.text((left + 17, top + 12), name, fill=INK, font=font, anchor="lm")
        left += 34 + round(draw.textlength(name, font=font))
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


def save_image(path: Path, array: np.ndarray) -> None:
    """Write (H, W) or (H, W, 3) uint8 as PNG."""
    _save(path, Image.fromarray(np.ascontiguousarray(array)))


def save_change_mask(path: Path, mask: np.ndarray, note: str = "") -> None:
    """Write an (H, W) uint8 map of change, 1 = changed, as a grey PNG of 0 and 255."""
    _save(path, Image.fromarray(np.ascontiguousarray(mask * np.uint8(255))), note)


def save_mask(path: Path, mask: np.ndarray, palette: Palette, note: str = "") -> None:
    """Write an (H, W) uint8 map of indices of a palette as PNG, which viewers show in colours.

    `read_note` gives the ``note`` back.
    """
    image = Image.fromarray(np.ascontiguousarray(mask))
    image.putpalette([channel for color in palette for channel in color])
    _save(path, image, note)


def read_note(path: Path) -> str:
    """Return the note in a mask's header; "" where there is none, or no such PNG."""
    with suppress(OSError, ValueError):
        require_regular(path)
        with Image.open(path, formats=("PNG",)) as image:
            return str(image.info.get(NOTE, ""))
    return ""


def _save(path: Path, image: Image.Image, note: str = "") -> None:
    texts = PngInfo()
    if note:
        texts.add_text(NOTE, note)
    with atomic_path(Path(path)) as temporary:
        image.save(temporary, format="PNG", compress_level=PNG_LEVEL, pnginfo=texts)
