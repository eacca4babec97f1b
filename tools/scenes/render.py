"""Light, season, trees, shadows, atmosphere and sensor of a procedural aerial scene.

Everything here but the trees is a nuisance: it changes the image between the dates, never the
class of a pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tools.scenes.draw import BUILDING, LOW_VEGETATION, PLAYGROUND, TREE, WATER, Canvas, Rng

CELL = 6  # pixels between trees of a closed canopy
TREE_HEIGHT = 4.0  # pixels
SHADOW_REACH = 6  # pixels
DARK_LEAVES = np.array([0.145, 0.27, 0.14], np.float32)
LIGHT_LEAVES = np.array([0.285, 0.37, 0.19], np.float32)
SKY_LIGHT = np.array([0.46, 0.50, 0.60], np.float32)  # what a shadow leaves of red, green, blue
# Per class 0..6: strength of coarse and fine texture, relative to the colour.
COARSE_TEXTURE = np.array([0, 0.03, 0.06, 0.10, 0.05, 0.02, 0.02], np.float32)
FINE_TEXTURE = np.array([0, 0.015, 0.05, 0.07, 0.10, 0.025, 0.025], np.float32)
GREY = np.array([0.3, 0.59, 0.11], np.float32)  # of red, green, blue
# Near infrared that each class 0..6 reflects, 0..1: water hardly any, plants most.
INFRARED = np.array([0, 0.04, 0.3, 0.6, 0.5, 0.35, 0.3], np.float32)
STEPS = 12  # 16-bit values per 8-bit one: like reflectances, they use a small part of the range


@dataclass(frozen=True)
class Nature:
    """What both dates share: places for trees, and the grain of the ground.

    Tree cells are (rows, columns) float32 on a jittered grid that reaches beyond the scene;
    a tree stands where the tree density of the land exceeds ``threshold``. ``coarse`` and
    ``fine`` are (H, W) float32 noise of about unit variance.
    """

    y: np.ndarray
    x: np.ndarray
    radius: np.ndarray
    tint: np.ndarray
    threshold: np.ndarray
    coarse: np.ndarray
    fine: np.ndarray


def plan_nature(rng: Rng, height: int, width: int) -> Nature:
    """Place the tree cells and draw the grain of a scene."""
    rows, columns = height // CELL + 4, width // CELL + 4
    y, x = np.mgrid[:rows, :columns].astype(np.float32) - 1.5
    jitter = rng.uniform(-0.32, 0.32, (2, rows, columns)).astype(np.float32)
    radius = CELL * rng.uniform(0.42, 0.78, (rows, columns)).astype(np.float32)
    tint, threshold = rng.random((2, rows, columns), np.float32)
    grain = [smooth_noise(rng, height, width, spacing) for spacing in (12, 2)]
    return Nature((y + jitter[0]) * CELL, (x + jitter[1]) * CELL, radius, tint, threshold, *grain)


def smooth_noise(rng: Rng, height: int, width: int, spacing: float) -> np.ndarray:
    """(H, W) float32 noise that varies over ``spacing`` pixels."""
    shape = (int(height / spacing) + 3, int(width / spacing) + 3)
    nodes = Image.fromarray(rng.standard_normal(shape, np.float32))
    box = (1, 1, 1 + width / spacing, 1 + height / spacing)
    return np.asarray(nodes.resize((width, height), Image.Resampling.BICUBIC, box))


def light_scene(rng: Rng, canvas: Canvas, nature: Nature) -> tuple[np.ndarray, np.ndarray]:
    """Sunlit scene: radiance (H, W, 3) float32, about 0..1, and class (H, W) uint8, 1..6."""
    albedo, classes, elevation, density = canvas.layers()
    crown, cell, shade = _grow_trees(nature, canvas.sun, classes, density)
    opacity = np.clip(crown * 3, 0, 1)
    is_tree = opacity > 0.5
    classes[is_tree] = TREE
    leaves = DARK_LEAVES + nature.tint.ravel()[cell][..., None] * (LIGHT_LEAVES - DARK_LEAVES)
    albedo += opacity[..., None] * (leaves * shade[..., None] - albedo)
    albedo *= _season(rng)[classes]
    texture = 1 + COARSE_TEXTURE[classes] * nature.coarse + FINE_TEXTURE[classes] * nature.fine
    albedo *= texture[..., None]
    shadow = _cast_shadows(np.maximum(elevation, TREE_HEIGHT * crown), canvas.sun)
    albedo *= 1 - shadow[..., None] * (1 - SKY_LIGHT)
    return albedo, classes


def photograph(rng: Rng, radiance: np.ndarray) -> np.ndarray:
    """Radiance (H, W, 3) float32 -> image (H, W, 3) uint8 through haze, lens and sensor."""
    height, width = radiance.shape[:2]
    image = _blur_and_shift(radiance, rng.uniform(-0.5, 0.5, 2), rng.uniform(0.35, 0.65))
    gain = rng.uniform(0.85, 1.15) * rng.uniform(0.96, 1.04, 3)
    contrast = rng.uniform(0.88, 1.12)
    image = (image - 0.45) * (contrast * gain).astype(np.float32) + (0.45 * gain).astype(np.float32)
    haze = rng.uniform(0, 0.18) * (1 + 0.3 * smooth_noise(rng, height, width, 80))
    image += np.clip(haze, 0, 0.4)[..., None] * (np.array([0.76, 0.79, 0.83], np.float32) - image)
    noise = rng.standard_normal(image.shape, np.float32)
    image += np.float32(rng.uniform(0.006, 0.02)) * noise
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def sense(
    image: np.ndarray, truth: np.ndarray, bands: int, bits: int, seed: Sequence[int]
) -> np.ndarray:
    """Return an RGB scene, (H, W, 3) uint8, as (H, W, bands) uint8 or uint16, of 8 or 16 ``bits``.

    One band is grey, three are RGB, four RGB and near infrared, which ``truth`` decides, the class
    of every pixel; ``seed`` decides the noise.
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


def _grow_trees(
    nature: Nature, sun: np.ndarray, classes: np.ndarray, density: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Crown height 0..1, index of the cell it belongs to and its shading, each (H, W)."""
    height, width = classes.shape
    root_y = np.clip(nature.y.round().astype(int), 0, height - 1)
    root_x = np.clip(nature.x.round().astype(int), 0, width - 1)
    stands = density[root_y, root_x] > nature.threshold
    strength = np.where(stands, 1 / nature.radius**2, np.float32(np.inf)).astype(np.float32)
    columns = nature.x.shape[1]
    home = ((np.arange(height) // CELL + 2) * columns)[:, None] + np.arange(width) // CELL + 2
    y, x = np.mgrid[:height, :width].astype(np.float32)
    crown = np.zeros((height, width), np.float32)
    cell = home.copy()
    for step in [dy * columns + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
        index = home + step
        distance = (y - nature.y.ravel()[index]) ** 2 + (x - nature.x.ravel()[index]) ** 2
        dome = 1 - (distance + 1e-3) * strength.ravel()[index]
        higher = dome > crown
        crown[higher] = dome[higher]
        cell[higher] = index[higher]
    crown[np.isin(classes, (BUILDING, WATER, PLAYGROUND))] = 0
    slope = (x - nature.x.ravel()[cell]) * sun[0] + (y - nature.y.ravel()[cell]) * sun[1]
    shade = 0.8 + 0.25 * crown + 0.38 * slope / nature.radius.ravel()[cell]
    return crown, cell, shade.astype(np.float32)


def _cast_shadows(elevation: np.ndarray, sun: np.ndarray) -> np.ndarray:
    """Share of the sunlight that is blocked, (H, W) float32."""
    height, width = elevation.shape
    padded = np.pad(elevation, SHADOW_REACH, mode="edge")
    shadow = np.zeros_like(elevation)
    for distance in range(1, SHADOW_REACH + 1):
        x, y = (SHADOW_REACH + np.round(distance * sun)).astype(int)
        above = padded[y : y + height, x : x + width] - elevation - distance * 0.8
        np.maximum(shadow, above, out=shadow)
    return np.clip(shadow, 0, 1)


def _season(rng: Rng) -> np.ndarray:
    """(7, 3) float32 factors per class and colour: fresh, dry or autumnal vegetation."""
    factors = np.ones((7, 3), np.float32)
    dryness, autumn = rng.uniform(-0.4, 1), rng.uniform(-0.4, 1)
    factors[LOW_VEGETATION] += dryness * np.array([0.16, 0.04, 0.02])
    factors[TREE] += autumn * np.array([0.22, 0.02, -0.04])
    factors[WATER] += rng.normal(0, 0.06, 3)
    return factors


def _blur_and_shift(image: np.ndarray, shift: np.ndarray, spread: float) -> np.ndarray:
    """Gaussian point spread of ``spread`` pixels, centred ``shift`` (y, x) pixels off."""
    for axis in (0, 1):
        taps = np.exp(-((np.arange(-1, 2) - shift[axis]) ** 2) / (2 * spread**2))
        taps = (taps / taps.sum()).astype(np.float32)
        places = np.arange(image.shape[axis])
        before, here, after = (image.take(places + i, axis, mode="clip") for i in (-1, 0, 1))
        image = taps[0] * before + taps[1] * here + taps[2] * after
    return image
