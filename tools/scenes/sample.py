"""Sample data on disk: procedural scenes in the layout of SECOND."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from datasets.classes import SECOND_CLASSES
from datasets.images import save_raster
from tools.scenes.folders import SPLITS, read_truth
from tools.scenes.render import sense
from tools.scenes.scene import make_scene
from utils.parallel import ParallelMap
from utils.pictures import save_change_mask, save_image
from utils.text import progress

USUAL_CHANGE = 0.25  # share of changed pixels from which on every pair has some


@dataclass(frozen=True)
class SampleSet:
    """What sample data to write: the same seed, the same bytes."""

    train_pairs: int
    val_pairs: int
    height: int  # pixels, at least 32
    width: int
    seed: int
    label_format: str = "rgb"  # of SECOND; index; binary: change masks instead of label1, label2
    bands: int = 3  # as `sense` takes them
    bits: int = 8
    changed: float | None = None  # share of all pixels, 0..1; as scenes are drawn without it

    def changed_in(self, index: int) -> float | None:
        """Return the share of pixels to change in a pair: in most none where change is rare.

        Multiples of the golden ratio spread evenly, over any regular part of the pairs too.
        """
        if not self.changed:
            return self.changed
        pairs = min(1.0, (self.changed / USUAL_CHANGE) ** 0.5)  # share of those with any change
        place = index * (5**0.5 - 1) / 2 % 1 / pairs
        return self.changed / pairs * (0.4 + 1.2 * place) if place < 1 else 0.0


def write_sample_data(root: Path, sample: SampleSet, workers: int = 1) -> float:
    """Write ``root/{train,val}/{im1,im2,label1,label2,truth1,truth2}/<00000>.png``.

    Truth is always class indices. Scene i of a split depends on (seed, split, i) alone, so neither
    ``workers`` nor a restart changes a byte. Returns the share of the pixels whose class differs
    between the dates, 0..1.
    """
    pairs = zip(SPLITS, (sample.train_pairs, sample.val_pairs), strict=True)
    jobs = [
        (Path(root) / split, (sample.seed, number, index))
        for number, (split, count) in enumerate(pairs)
        for index in range(count)
    ]
    shares = ParallelMap(partial(write_scene, sample=sample), jobs, workers)
    return float(np.mean(list(progress(shares, "writing", unit="pair"))))


def write_scene(job: tuple[Path, tuple[int, int, int]], sample: SampleSet) -> float:
    """Write one pair, given its folder and seed; return the share of its pixels that change."""
    folder, seed = job
    name = f"{seed[-1]:05d}.png"
    labels = ("label",) if sample.label_format == "binary" else ("label1", "label2")
    truths = read_truth(folder, name, ("im1", "im2", *labels))
    if truths:
        return float(np.mean(truths[0] != truths[1]))
    scene = make_scene(seed, sample.height, sample.width, sample.changed_in(seed[-1]))
    for date, image, label, truth in (
        (1, scene.image1, scene.label1, scene.truth1),
        (2, scene.image2, scene.label2, scene.truth2),
    ):
        # The truth comes first: it tells generated folders from real ones, even unfinished.
        save_image(folder / f"truth{date}" / name, truth)
        if (sample.bands, sample.bits) == (3, 8):
            save_image(folder / f"im{date}" / name, image)
        else:
            sensed = sense(image, truth, sample.bands, sample.bits, (*seed, date))
            save_raster(folder / f"im{date}" / name, sensed)
        if sample.label_format != "binary":
            shown = SECOND_CLASSES.to_rgb(label) if sample.label_format == "rgb" else label
            save_image(folder / f"label{date}" / name, shown)
    if sample.label_format == "binary":
        save_change_mask(folder / "label" / name, (scene.label1 > 0).astype(np.uint8))
    return float(np.mean(scene.label1 > 0))
