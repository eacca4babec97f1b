"""A set of scenes of one date, to compose pairs from."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.classes import SECOND_CLASSES
from tools.scenes.scene import make_scene

SIDE = 64
SCENES = 14
IGNORED = 255


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def single_date_set(root: Path, side: int = 72) -> Path:
    """Scenes of six classes, masks as indices, some pixels with 255."""
    for index in range(SCENES):
        scene = make_scene((9, index), side, side)
        mask = scene.truth1.copy()
        if index % 3 == 0:
            mask[:, :9] = IGNORED
        save(root / "images" / f"tile{index // 4}_{index:02d}.png", scene.image1)
        save(root / "masks" / f"tile{index // 4}_{index:02d}.png", mask)
    classes = zip(SECOND_CLASSES.names, SECOND_CLASSES.colors, strict=True)
    (root / "classes.json").write_text(json.dumps([{"name": n, "color": c} for n, c in classes]))
    return root
