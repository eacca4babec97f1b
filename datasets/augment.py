"""Augmentation of bi-temporal pairs. The only place that knows albumentations."""

import os
import random
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

# Without this, importing albumentations asks the network for a newer release.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
import albumentations as A

_LABEL_KEYS = ("label1", "label2", "change_mask")
cv2.setNumThreads(0)  # one thread per worker: the workers are the parallelism


class TrainTransform:
    """Geometry drawn once per pair, colour drawn once per image, from the seed of the call alone.

    Geometry is the published recipe: identity, two flips and three quarter turns, one of the six
    with equal chance. A pair that is not square is turned by 180 degrees only, so that batches
    keep one shape. ``crop_size`` in pixels; `change_light` serves images that are not RGB.
    """

    def __init__(self, crop_size: int | None = None, is_rgb: bool = True) -> None:
        self.crop_size = crop_size
        self.is_rgb = is_rgb
        options = {"additional_targets": {"image2": "image", **dict.fromkeys(_LABEL_KEYS, "mask")}}
        crop = [A.RandomCrop(crop_size, crop_size)] if crop_size else []
        # OneOf draws in proportion to p; the turn draws 0, 90, 180 or 270 degrees by itself.
        square = A.OneOf([*_flips(0.25), A.RandomRotate90(p=1.0)], p=1.0)
        half_turn = A.Compose(_flips(1.0), p=0.25)
        whole = A.OneOf([*_flips(0.25), half_turn, A.NoOp(p=0.25)], p=1.0)
        hue = {"hue_shift_limit": 5, "sat_shift_limit": 15, "val_shift_limit": 0}
        self._square = A.Compose([*crop, square], **options)
        self._whole = A.Compose([whole], **options)
        light = A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5)
        self._color = A.Compose([light, A.HueSaturationValue(**hue, p=0.3)])

    def __call__(self, sample: dict[str, Any], seed: Sequence[int]) -> dict[str, Any]:
        """Return the sample, images (H, W, bands) and what labels (H, W) it has, transformed."""
        height, width = sample["image1"].shape[:2]
        geometry = self._square if self.crop_size or height == width else self._whole
        draws = np.random.SeedSequence(seed).generate_state(3)
        _seed(geometry, int(draws[0]))
        keys = ("image1", "image2", *(key for key in _LABEL_KEYS if key in sample))
        moved = geometry(image=sample["image1"], **{key: sample[key] for key in keys[1:]})
        moved["image1"] = moved.pop("image")
        for key, draw in zip(("image1", "image2"), draws[1:], strict=True):
            if not self.is_rgb:
                moved[key] = change_light(moved[key], np.random.default_rng(int(draw)))
            else:
                _seed(self._color, int(draw))
                moved[key] = self._color(image=moved[key])["image"]
        return {**sample, **{key: np.ascontiguousarray(moved[key]) for key in keys}}

    def __reduce__(self) -> tuple:
        # Built anew where it is unpickled: the pipelines' generators do not pickle everywhere.
        return TrainTransform, (self.crop_size, self.is_rgb)


def change_light(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast and balance of (H, W, bands) uint8 or uint16.

    With a chance of one half each: all bands get up to 20 % brighter or darker and their contrast
    up to 20 % stronger or weaker, and every band gets up to 5 % brighter or darker by itself; all
    measured at the band's mean in this image, since 16-bit sensors seldom fill their range.
    """
    brightness, contrast = rng.uniform(0.8, 1.2, 2) if rng.random() < 0.5 else (1.0, 1.0)
    balance = np.ones(image.shape[-1])
    if rng.random() < 0.5:
        balance = rng.uniform(0.95, 1.05, image.shape[-1])
    elif brightness == contrast == 1:
        return image
    mean = image.mean(axis=(0, 1))
    # mean · brightness + (value − mean) · contrast, all times balance
    offset = (mean * (brightness - contrast) * balance).astype(np.float32)
    values = image * (contrast * balance).astype(np.float32)
    values += offset
    top = np.iinfo(image.dtype).max
    return np.clip(np.rint(values, out=values), 0, top, out=values).astype(image.dtype)


def _flips(p: float) -> list[A.BasicTransform]:
    return [A.HorizontalFlip(p=p), A.VerticalFlip(p=p)]


def _seed(pipeline: A.Compose, seed: int) -> None:
    # One stream for all steps. ``set_random_seed`` would start each step at the same draw, and
    # tie the place of a crop to its turn, and a shift of hue to one of brightness.
    pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
