"""What differs between two dates without being a change: light, sensor, registration."""

import io
import math

import numpy as np
from PIL import Image, ImageFilter

MARGIN = 4  # pixels mirrored at the edges, so that a moved image has no empty rows

MAX_SHIFT = 0.5  # pixels, each way; a corner moves as far again by the turn


def disturb(image: np.ndarray, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """Return an image as another day and another sensor would have it.

    Gain, bias and gamma per channel; sub-pixel shift and a small turn; blur, noise and JPEG
    artefacts each in some of the images.

    Args:
        image: (H, W, 3) float32 or uint8 in 0..255.
        rng: decides every draw.
        strength: scales every range; 0 returns the image, rounded.

    Returns:
        (H, W, 3) uint8.
    """
    if strength == 0:
        return to_uint8(image)
    seen = move(to_uint8(relight(image, rng, strength)), rng, strength)
    if rng.random() < 0.5:
        seen = _blurred(seen, strength * rng.uniform(0.2, 0.8))
    if rng.random() < 0.7:
        sigma = strength * rng.uniform(0.5, 4)
        seen = to_uint8(seen + sigma * rng.standard_normal(seen.shape, dtype=np.float32))
    if rng.random() < 0.4:
        loss = strength * rng.uniform(5, 35)
        seen = _as_jpeg(seen, quality=max(20, round(98 - loss)))
    return seen


def relight(image: np.ndarray, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """Change gain, bias and gamma, for all channels together and a little for each.

    Args:
        image: (H, W, 3) in 0..255.
        rng: decides every draw.
        strength: scales the ranges.

    Returns:
        (H, W, 3) float32 in 0..255.
    """

    def draw(common: float, own: float) -> np.ndarray:
        return strength * (rng.uniform(-common, common) + rng.normal(0, own, 3))

    gain, gamma, bias = np.exp(draw(0.15, 0.03)), np.exp(draw(0.2, 0.03)), draw(12, 3)
    shade = np.arange(256)[:, None] / 255
    curve = np.clip(255 * gain * shade**gamma + bias, 0, 255).astype(np.float32)
    levels = to_uint8(image)
    return np.stack([curve[levels[..., i], i] for i in range(3)], axis=-1)


def move(image: np.ndarray, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """Shift by a part of a pixel and turn by a small angle, with mirrored edges.

    Shift and turn each move a pixel by at most about ``strength / 2`` pixels, whatever the size.

    Args:
        image: (H, W, 3) uint8.
        rng: decides every draw.
        strength: scales the ranges.

    Returns:
        (H, W, 3) uint8 of the same size.
    """
    height, width = image.shape[:2]
    reach = strength * MAX_SHIFT
    down, right, turn = rng.uniform(-reach, reach, 3)
    angle = turn / (math.hypot(height, width) / 2)
    margin = MARGIN + math.ceil(2 * reach)
    padded = Image.fromarray(
        np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    )
    moved = padded.rotate(math.degrees(angle), Image.Resampling.BICUBIC, translate=(right, down))
    return np.asarray(moved)[margin : margin + height, margin : margin + width]


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Round and clip to uint8."""
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def _as_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))
