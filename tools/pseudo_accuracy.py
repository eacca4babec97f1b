"""Compare pseudo masks with the truth, where it is known: coverage and accuracy."""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import importlib

from engine import config
from utils import cli

EPILOG = """example:
  python tools/pseudo_accuracy.py --data-root data/sample --masks outdir/masks/train

ROOT/train/truth1 and truth2 hold the class of every pixel at each date. They only measure; nothing
trains on them.
"""


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Parse the command line."""
    parser = cli.make_parser(__doc__, EPILOG)
    cli.add_options(parser, config.DataConfig, "data_root")
    about = "folder of pseudo masks, with im1 and im2 (default: outdir/masks/train)"
    masks = config.OUTDIR / "masks" / "train"
    parser.add_argument("--masks", type=Path, default=masks, metavar="DIR", help=about)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Print and return coverage and accuracy, as fractions."""
    args = parse_args(argv)
    truth = importlib.import_module("tools.scenes.truth")  # late: --help is instant
    result = truth.measure_pseudo_labels(args.data_root, args.masks)
    print(
        f"unlabelled pixels that got a class: {100 * result['coverage']:.2f} %\n"
        f"of these, right: {100 * result['accuracy']:.2f} %"
    )
    return result


if __name__ == "__main__":
    cli.run(main)
