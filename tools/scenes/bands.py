"""Procedural scenes as other sensors would see them: grey, near infrared, 16 bits."""

from collections.abc import Sequence

import numpy as np

GREY = np.array([0.3, 0.59, 0.11], np.float32)  # of red, green, blue
# Near infrared that each class 0..6 reflects, 0..1: water hardly any, plants most.
INFRARED = np.array([0, 0.04, 0.3, 0.6, 0.5, 0.35, 0.3], np.float32)
STEPS = 12  # 16-bit values per 8-bit one: like reflectances, they use a small part of the range


def sense(
    image: np.ndarray, truth: np.ndarray, bands: int, bits: int, seed: Sequence[int]
) -> np.ndarray:
    """Return an RGB scene, (H, W, 3) uint8, as (H, W, bands) uint8 or uint16.

    Args:
        image: the scene.
        truth: (H, W) uint8 class of every pixel, 1..6.
        bands: 1 grey, 3 RGB, 4 RGB and near infrared.
        bits: 8 or 16.
        seed: decides the noise.
    """
    rng = np.random.default_rng(seed)
    values = image.astype(np.float32)
    grey = values @ GREY
    if bands == 1:
        values = grey[..., None]
    elif bands == 4:
        infrared = 255 * INFRARED[truth] * (0.7 + 0.6 * grey / 255)
        infrared += 4 * rng.standard_normal(truth.shape, np.float32)
        values = np.concatenate([values, np.clip(infrared, 0, 255)[..., None]], axis=-1)
    if bits == 8:
        return np.rint(values).astype(np.uint8)
    return (values * STEPS + rng.integers(0, STEPS, values.shape)).astype(np.uint16)
