"""Pairs as a report embeds them: small pictures as data URIs, class maps that a page recolours."""

import base64
import colorsys
import io
from collections.abc import Sequence
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

Color = tuple[int, int, int]

SHOWN_SIDE = 512  # pixels; larger pictures are reduced to it
JPEG_QUALITY = 88
# Okabe and Ito's eight colours (2008), the black one lightened so that it shows on dark roofs. For
# red-green blindness the last two are the ones nearest to others: they are taken where needed.
OKABE_ITO: tuple[Color, ...] = (
    *((0, 114, 178), (230, 159, 0), (240, 228, 66), (213, 94, 0), (86, 180, 233), (64, 64, 64)),
    *((0, 158, 115), (204, 121, 167)),
)
FIRST_COLORS = 6


class PairMaps(NamedTuple):
    """What there is to see of one pair."""

    images: Sequence[np.ndarray]  # (H, W, 3) uint8 of both dates
    predictions: Sequence[np.ndarray]  # (H, W) uint8 indices of both dates; or one change mask
    labels: Sequence[np.ndarray]  # the same; empty where the pair has none


def mask_step(entries: int) -> int:
    """Return the distance of two neighbouring indices in an embedded mask's grey values.

    As wide as possible, so that browsers that add noise to what a page reads from a canvas still
    leave the indices legible.
    """
    return 255 // max(1, entries - 1)


def encode_pair(maps: PairMaps, entries: int) -> dict[str, Any]:
    """Return plain values for JSON, pictures as data URIs of at most 512 pixels a side.

    Images are JPEG files; maps are palette PNG files whose grey values stand for class indices, of
    which there are ``entries``.
    """
    height, width = maps.images[0].shape[:2]
    scale = min(1, SHOWN_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # Small pictures are shown enlarged, where halved colour would bleed.
    jpeg = {"quality": JPEG_QUALITY, "subsampling": 0 if max(size) <= 256 else 2}
    greys = [channel for i in range(entries) for channel in (i * mask_step(entries),) * 3]

    def picture(image: np.ndarray) -> str:
        shown = Image.fromarray(np.ascontiguousarray(image))
        return _uri(shown.resize(size, Image.Resampling.LANCZOS), "jpeg", **jpeg)

    def mask(indices: np.ndarray) -> str:
        shown = Image.fromarray(np.ascontiguousarray(indices))
        shown = shown.resize(size, Image.Resampling.NEAREST)
        shown.putpalette(greys)
        return _uri(shown, "png", optimize=True)

    return {
        "width": size[0],
        "height": size[1],
        "fullWidth": width,
        "fullHeight": height,
        "images": [picture(image) for image in maps.images],
        "predictions": [mask(indices) for indices in maps.predictions],
        "labels": [mask(indices) for indices in maps.labels],
    }


def _uri(picture: Image.Image, kind: str, **options: Any) -> str:
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"


def safe_colors(colors: Sequence[Color]) -> list[Color]:
    """Return colours that the colour-blind can tell apart, each as near as can be to the given one.

    Up to eight classes take Okabe and Ito's colours. More get generated ones that differ in
    lightness too, but so many cannot all be told apart by colour alone. *Unchanged*, the first of
    the ``colors``, stays white.
    """
    classes = len(colors) - 1
    if classes > len(OKABE_ITO):
        return [(255, 255, 255), *(_generated(i) for i in range(classes))]
    candidates = OKABE_ITO[: max(FIRST_COLORS, classes)]
    given, safe = oklab(colors[1:]), oklab(candidates)
    distance = np.linalg.norm(given[:, None] - safe[None], axis=2).tolist()
    choice = min(
        permutations(range(len(candidates)), classes),
        key=lambda order: sum(row[column] for row, column in zip(distance, order, strict=True)),
    )
    return [(255, 255, 255), *(candidates[index] for index in choice)]


def oklab(colors: Sequence[Color]) -> np.ndarray:
    """Return sRGB colours, 0..255, in Ottosson's OKLab (2020), (n, 3): distances as perceived."""
    coded = np.asarray(colors) / 255
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    cones = linear @ np.array(
        [
            [0.4122214708, 0.2119034982, 0.0883024619],
            [0.5363325363, 0.6806995451, 0.2817188376],
            [0.0514459929, 0.1073969566, 0.6299787005],
        ]
    )
    return np.cbrt(cones) @ np.array(
        [
            [0.2104542553, 1.9779984951, 0.0259040371],
            [0.7936177850, -2.4285922050, 0.7827717662],
            [-0.0040720468, 0.4505937099, -0.8086757660],
        ]
    )


def _generated(index: int) -> Color:
    hue = index * 0.618034 % 1  # the golden angle keeps neighbours apart
    lightness = (0.38, 0.72, 0.55)[index % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)
