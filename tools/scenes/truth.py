"""Pseudo masks compared with the truth of generated and composed sets."""

from pathlib import Path

import numpy as np

from datasets.bands import RGB
from datasets.images import valid_pixels
from datasets.labels import read_label
from datasets.pairs import index_voted_pairs
from datasets.task import load_classes
from utils.errors import DataError


def measure_pseudo_labels(data_root: Path, masks: Path) -> dict[str, float]:
    """Return ``coverage`` and ``accuracy`` where the labels of ``data_root/train`` say nothing
    and both images have data.

    They are the share of these pixels that got a class in the pseudo masks ``masks/{im1,im2}``, and
    the share of the right ones among them, by ``truth1`` and ``truth2``; 0..1.

    Raises:
        DataError: a mask or a truth file is missing, unreadable or of another size than its label,
            or the labels are none that label.py votes on.
    """
    classes = load_classes(data_root)
    unlabelled = covered = right = 0
    for pair in index_voted_pairs(data_root, classes):
        valid = valid_pixels((pair.image1, pair.image2), RGB.numbers)
        for label_path, date in ((pair.label1, "1"), (pair.label2, "2")):
            label = read_label(label_path, classes)
            maps = []
            for folder in (masks / f"im{date}", data_root / "train" / f"truth{date}"):
                path = folder / f"{pair.name}.png"
                maps.append(read_label(path, classes))
                if maps[-1].shape != label.shape:
                    height, width = maps[-1].shape
                    raise DataError(
                        f"{path}: {width} × {height} pixels, but {label_path} has {label.shape[1]} "
                        f"× {label.shape[0]}; compare masks and truth of the labels' size"
                    )
            asked = (label == 0) & (True if valid is None else valid)
            vote, truth = (values[asked] for values in maps)
            unlabelled += len(vote)
            covered += np.count_nonzero(vote)
            right += np.count_nonzero((vote > 0) & (vote == truth))
    return {"coverage": covered / max(1, unlabelled), "accuracy": right / max(1, covered)}
