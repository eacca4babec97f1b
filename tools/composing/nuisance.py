"""What differs between two dates without being a change: light, sensor, registration.

Images are (H, W, 3) in 0..255. ``rng`` decides every draw, and ``strength`` scales every range.
"""

import io
import math

import numpy as np
from PIL import Image, ImageFilter

MARGIN = 4  # pixels mirrored at the edges, so that a moved image has no empty rows
MAX_SHIFT = 0.5  # pixels, each way; a corner moves as far again by the turn


def disturb(image: np.ndarray, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """Return an image as another day and another sensor would have it, as uint8.

    Gain, bias and gamma per channel; sub-pixel shift and a small turn; blur, noise and JPEG
    artefacts each in some of the images. Strength 0 returns the image, rounded.
    """
    if strength == 0:
        return to_uint8(image)
    seen = move(relight(image, rng, strength), rng, strength)
    if rng.random() < 0.5:
        blur = ImageFilter.GaussianBlur(strength * rng.uniform(0.2, 0.8))
        seen = np.asarray(Image.fromarray(seen).filter(blur))
    if rng.random() < 0.7:
        sigma = strength * rng.uniform(0.5, 4)
        seen = to_uint8(seen + sigma * rng.standard_normal(seen.shape, dtype=np.float32))
    if rng.random() < 0.4:
        quality, buffer = max(20, round(98 - strength * rng.uniform(5, 35))), io.BytesIO()
        Image.fromarray(seen).save(buffer, format="JPEG", quality=quality)
        seen = np.asarray(Image.open(buffer).convert("RGB"))
    return seen


def relight(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Change gain, bias and gamma, for all channels together and a little for each; uint8."""

    def draw(common: float, own: float) -> np.ndarray:
        return strength * (rng.uniform(-common, common) + rng.normal(0, own, 3))

    gain, gamma, bias = np.exp(draw(0.15, 0.03)), np.exp(draw(0.2, 0.03)), draw(12, 3)
    shade = np.arange(256)[:, None] / 255
    curve = to_uint8((255 * gain * shade**gamma + bias).astype(np.float32))
    return curve[to_uint8(image), np.arange(3)]


def move(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Shift a uint8 image by a part of a pixel and turn it by a small angle, with mirrored edges.

    Shift and turn each move a pixel by at most about ``strength / 2`` pixels, whatever the size.
    """
    height, width = image.shape[:2]
    reach = strength * MAX_SHIFT
    down, right, turn = rng.uniform(-reach, reach, 3)
    angle = math.degrees(turn / (math.hypot(height, width) / 2))
    margin = MARGIN + math.ceil(2 * reach)
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    moved = Image.fromarray(padded).rotate(angle, Image.Resampling.BICUBIC, translate=(right, down))
    return np.asarray(moved)[margin : margin + height, margin : margin + width]


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Round and clip to uint8."""
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
