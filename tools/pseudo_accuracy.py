"""Compare pseudo masks with the truth, where it is known: coverage and accuracy."""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import options
from utils.cli import run

EPILOG = """example:
  python tools/pseudo_accuracy.py --data-root data/sample --masks outdir/masks/train

ROOT/train/truth1 and truth2 hold the class of every pixel at each date. They only measure; nothing
trains on them.
"""


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Parse the command line."""
    parser = options.make_parser(__doc__, EPILOG)
    options.add_data_args(parser, split=False)
    parser.add_argument(
        "--masks",
        type=Path,
        default=options.OUTDIR / "masks" / "train",
        metavar="DIR",
        help="folder of pseudo masks, with im1 and im2 (default: outdir/masks/train)",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Print and return coverage and accuracy, as fractions."""
    args = parse_args(argv)
    result = measure(args.data_root, args.masks)
    print(
        f"unlabelled pixels that got a class: {100 * result['coverage']:.2f} %\n"
        f"of these, right: {100 * result['accuracy']:.2f} %"
    )
    return result


def measure(data_root: Path, masks: Path) -> dict[str, float]:
    """Return ``coverage`` and ``accuracy`` over the pixels the ground truth leaves unlabelled.

    Args:
        data_root: data set whose ``train`` folder has ``truth1`` and ``truth2``.
        masks: folder of pseudo masks, with ``im1`` and ``im2``.

    Raises:
        DataError: a mask or a truth file is missing or unreadable, or the labels are none that
            label.py votes on.
    """
    from datasets import load_classes
    from datasets.change_detection import index_voted_pairs
    from datasets.classes import read_label

    classes = load_classes(data_root)
    unlabelled = covered = right = 0
    for pair in index_voted_pairs(data_root, classes):
        for label_path, date in ((pair.label1, "1"), (pair.label2, "2")):
            free = read_label(label_path, classes) == 0
            vote = read_label(masks / f"im{date}" / f"{pair.name}.png", classes)[free]
            truth_path = data_root / "train" / f"truth{date}" / f"{pair.name}.png"
            truth = read_label(truth_path, classes)[free]
            unlabelled += free.sum()
            covered += (vote > 0).sum()
            right += ((vote > 0) & (vote == truth)).sum()
    return {
        "coverage": float(covered / max(1, unlabelled)),
        "accuracy": float(right / max(1, covered)),
    }


if __name__ == "__main__":
    run(main)
