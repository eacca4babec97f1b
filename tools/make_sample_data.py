"""Write procedural sample data in the layout of SECOND: python tools/make_sample_data.py"""

import sys
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import importlib
import re

from engine.config import REPO
from utils import cli
from utils.errors import OptionError
from utils.files import output_path

MOST_CHANGED = 0.3
MIN_SIDE = 32  # of tools.scenes.scene, which takes long to import


def parse_size(text: str) -> tuple[int, int]:
    """'128' -> (128, 128); '96x160' -> (96, 160), height first."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip().lower())
    if not match:
        raise ArgumentTypeError(f"{text!r} is neither a side like 128 nor HxW like 96x160")
    height, width = int(match[1]), int(match[2] or match[1])
    if min(height, width) < MIN_SIDE:
        raise ArgumentTypeError(f"{text!r}: both sides must be at least {MIN_SIDE} pixels")
    return height, width


def parse_args(argv: list[str] | None) -> Namespace:
    """Read the command line."""
    parser = cli.make_parser(
        "Write procedural bi-temporal aerial scenes with labels, in SECOND's layout:\n"
        "DIR/{train,val}/{im1,im2,label1,label2,truth1,truth2}/00000.png.",
    )
    add = parser.add_argument_group("where").add_argument
    add("folder", nargs="?", type=output_path, metavar="DIR", help="same as --out")
    add("--out", type=output_path, metavar="DIR", help="folder to write (default: data/sample)")
    add("--overwrite", action="store_true", help="replace sample data that is already in DIR")
    add = parser.add_argument_group("what").add_argument
    add("--train-pairs", type=cli.natural, default=64, metavar="N", help="pairs (default: 64)")
    add("--val-pairs", type=cli.natural, default=16, metavar="N", help="pairs (default: 16)")
    about = "pixels, at least 32, as one side or height x width (default: 128)"
    add("--size", type=parse_size, default="128", metavar="S|HxW", help=about)
    about = "the same seed writes the same bytes (default: 0)"
    add("--seed", type=cli.natural, default=0, metavar="N", help=about)
    about = "share of changed pixels, 0 to 0.3, about; rare change is in few pairs (default: 0.22)"
    add("--changed", type=cli.fraction, metavar="P", help=about)
    about = "class colours, class indices as 8-bit grey, or change masks of 0 and 255 in label "
    about += "instead of label1 and label2 (default: rgb)"
    add("--label-format", choices=("rgb", "index", "binary"), default="rgb", help=about)
    about = "1 grey, 3 RGB, 4 RGB and near infrared (default: 3)"
    add("--bands", type=int, choices=(1, 3, 4), default=3, help=about)
    add("--bits", type=int, choices=(8, 16), default=8, help="per value (default: 8)")
    add = parser.add_argument_group("how").add_argument
    add("--workers", type=cli.natural, default=1, metavar="N", help="processes (default: 1)")
    add("--debug", action="store_true", help="show tracebacks of user errors")
    args = parser.parse_args(argv)
    if args.folder and args.out:
        raise OptionError("name the folder once: either DIR or --out DIR")
    if args.train_pairs + args.val_pairs == 0:
        raise OptionError("nothing to write: --train-pairs and --val-pairs are both 0")
    if (args.changed or 0) > MOST_CHANGED:
        raise OptionError(f"--changed {args.changed}: scenes change by {MOST_CHANGED} at the most")
    return args


def main(argv: list[str] | None = None) -> None:
    """Write the data and print one line about it."""
    args = parse_args(argv)
    root = args.folder or args.out or REPO / "data" / "sample"
    writing = importlib.import_module("tools.scenes.sample")  # late: --help is instant
    folders = importlib.import_module("tools.scenes.folders")
    pairs, form = (args.train_pairs, args.val_pairs), (args.label_format, args.bands, args.bits)
    sample = writing.SampleSet(*pairs, *args.size, args.seed, *form, args.changed)
    record = {"tool": Path(__file__).name, **vars(sample)}
    if not folders.goes_on(root, record, args.overwrite):
        folders.make_room(root, args.overwrite)
    with folders.unfinished(root, record):
        changed = writing.write_sample_data(root, sample, args.workers)
    print(
        f"{args.train_pairs} training and {args.val_pairs} validation pairs of "
        f"{sample.height}x{sample.width} pixels, {changed:.1%} of the pixels changed, in {root}"
    )


if __name__ == "__main__":
    cli.run(main)
