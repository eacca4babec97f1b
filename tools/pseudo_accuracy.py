"""Compare pseudo masks with the truth, where it is known: coverage and accuracy."""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine import config
from utils import cli
from utils.cli import run

EPILOG = """example:
  python tools/pseudo_accuracy.py --data-root data/sample --masks outdir/masks/train

ROOT/train/truth1 and truth2 hold the class of every pixel at each date. They only measure; nothing
trains on them.
"""


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Parse the command line."""
    parser = cli.make_parser(__doc__, EPILOG)
    cli.add_options(parser, config.DataConfig, ["data_root"])
    parser.add_argument(
        "--masks",
        type=Path,
        default=config.OUTDIR / "masks" / "train",
        metavar="DIR",
        help="folder of pseudo masks, with im1 and im2 (default: outdir/masks/train)",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Print and return coverage and accuracy, as fractions."""
    args = parse_args(argv)
    from tools.pseudo_accuracy import measure_pseudo_labels

    result = measure_pseudo_labels(args.data_root, args.masks)
    print(
        f"unlabelled pixels that got a class: {100 * result['coverage']:.2f} %\n"
        f"of these, right: {100 * result['accuracy']:.2f} %"
    )
    return result


if __name__ == "__main__":
    run(main)

# MERGE
"""Pseudo masks compared with the truth of generated and composed sets."""

from pathlib import Path

import numpy as np

from datasets.classes import ClassList
from datasets.labels import read_label
from datasets.pairs import index_voted_pairs
from datasets.task import load_classes
from utils.errors import DataError


def measure_pseudo_labels(data_root: Path, masks: Path) -> dict[str, float]:
    """Return ``coverage`` and ``accuracy`` over the pixels the ground truth leaves unlabelled.

    Args:
        data_root: data set whose ``train`` folder has ``truth1`` and ``truth2``.
        masks: folder of pseudo masks, with ``im1`` and ``im2``.

    Returns:
        The share of these pixels that got a class, and the share of the right ones among them;
        0..1.

    Raises:
        DataError: a mask or a truth file is missing, unreadable or of another size than its label,
            or the labels are none that label.py votes on.
    """
    classes = load_classes(data_root)
    unlabelled = covered = right = 0
    for pair in index_voted_pairs(data_root, classes):
        for label_path, date in ((pair.label1, "1"), (pair.label2, "2")):
            label = read_label(label_path, classes)
            free = label == 0
            others = (masks / f"im{date}", data_root / "train" / f"truth{date}")
            vote, truth = (
                _read_same_size(folder / f"{pair.name}.png", classes, label_path, label)[free]
                for folder in others
            )
            unlabelled += free.sum()
            covered += (vote > 0).sum()
            right += ((vote > 0) & (vote == truth)).sum()
    return {
        "coverage": float(covered / max(1, unlabelled)),
        "accuracy": float(right / max(1, covered)),
    }


def _read_same_size(
    path: Path, classes: ClassList, label_path: Path, label: np.ndarray
) -> np.ndarray:
    mask = read_label(path, classes)
    if mask.shape != label.shape:
        raise DataError(
            f"{path}: {mask.shape[1]} × {mask.shape[0]} pixels, but {label_path} has "
            f"{label.shape[1]} × {label.shape[0]}; compare masks and truth of the labels' size"
        )
    return mask
