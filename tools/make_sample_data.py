"""Write procedural sample data in the layout of SECOND: python tools/make_sample_data.py"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import re

from engine import config
from utils import cli
from utils.cli import run
from utils.errors import OptionError, UserError

DEFAULT_ROOT = config.REPO / "data" / "sample"
SPLITS = ("train", "val")
FOLDERS = ("im1", "im2", "label1", "label2", "label", "truth1", "truth2")
GENERATED_NAME = re.compile(r"\d{5,}\.png")
LEFTOVER_NAME = re.compile(r"\.\d{5,}\.png\..*\.tmp")  # of a run that was killed
MIN_SIDE = 32  # of tools.scenes.scene, which is imported late so that --help starts fast


def parse_size(text: str) -> tuple[int, int]:
    """'128' -> (128, 128); '96x160' -> (96, 160), height first."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip().lower())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a side like 128 nor HxW like 96x160")
    height = int(match[1])
    width = int(match[2] or match[1])
    if min(height, width) < MIN_SIDE:
        raise argparse.ArgumentTypeError(f"{text!r}: both sides must be at least {MIN_SIDE} pixels")
    return height, width


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(
        "Write procedural bi-temporal aerial scenes with labels, in SECOND's layout:\n"
        "DIR/{train,val}/{im1,im2,label1,label2,truth1,truth2}/00000.png.",
    )
    where = parser.add_argument_group("where")
    where.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="same as --out")
    where.add_argument(
        "--out", type=Path, metavar="DIR", help="folder to write (default: data/sample)"
    )
    where.add_argument(
        "--overwrite", action="store_true", help="replace sample data that is already in DIR"
    )
    what = parser.add_argument_group("what")
    what.add_argument(
        "--train-pairs",
        type=cli.natural,
        default=64,
        metavar="N",
        help="pairs (default: %(default)s)",
    )
    what.add_argument(
        "--val-pairs",
        type=cli.natural,
        default=16,
        metavar="N",
        help="pairs (default: %(default)s)",
    )
    what.add_argument(
        "--size",
        type=parse_size,
        default="128",
        metavar="S|HxW",
        help=f"pixels, at least {MIN_SIDE}, as one side or height x width (default: %(default)s)",
    )
    what.add_argument(
        "--seed",
        type=cli.natural,
        default=0,
        metavar="N",
        help="the same seed writes the same bytes (default: %(default)s)",
    )
    what.add_argument(
        "--label-format",
        choices=("rgb", "index", "binary"),
        default="rgb",
        help="class colours, class indices as 8-bit grey, or change masks of 0 and 255 in label "
        "instead of label1 and label2 (default: %(default)s)",
    )
    what.add_argument(
        "--bands",
        type=int,
        choices=(1, 3, 4),
        default=3,
        help="1 grey, 3 RGB, 4 RGB and near infrared (default: %(default)s)",
    )
    what.add_argument(
        "--bits", type=int, choices=(8, 16), default=8, help="per value (default: %(default)s)"
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--workers",
        type=cli.natural,
        default=1,
        metavar="N",
        help="processes (default: %(default)s)",
    )
    how.add_argument("--debug", action="store_true", help="show tracebacks of user errors")
    return parser.parse_args(argv)


def data_folders(root: Path) -> list[Path]:
    """Return the folders that sample data is written to, as far as they are there."""
    folders = (root / split / folder for split in SPLITS for folder in FOLDERS)
    return [folder for folder in folders if folder.is_dir()]


def list_files(root: Path) -> list[Path]:
    """Every visible file in the folders that sample data is written to."""
    files = (path for folder in data_folders(root) for path in sorted(folder.iterdir()))
    return [path for path in files if not path.name.startswith(".")]


def make_room(root: Path, overwrite: bool) -> None:
    """Remove old sample data from ``root``; real data, and any data unless asked, is refused.

    Folders that become empty go too: one without files would count as labels still.

    Raises:
        UserError: the folder has pairs and ``overwrite`` is off, or pairs of another origin.
    """
    files = list_files(root)
    if files and not overwrite:
        raise UserError(
            f"{root} already has {len(files)} files of image pairs; "
            "pass --overwrite to replace sample data, or choose another folder"
        )
    # Only sample data knows the class of unchanged pixels; a real data set must never be lost.
    truths = {(path.parents[1], path.name) for path in files if path.parent.name == "truth1"}
    foreign = [path for path in files if (path.parents[1], path.name) not in truths]
    foreign += [path for path in files if not GENERATED_NAME.fullmatch(path.name)]
    if foreign:
        raise UserError(
            f"{foreign[0]} is not sample data, nothing was overwritten; choose another folder"
        )
    # The truth goes last, so that an interrupted removal still looks like sample data.
    for path in sorted(files, key=lambda path: path.parent.name == "truth1"):
        path.unlink()
    for folder in data_folders(root):
        for path in list(folder.iterdir()):
            if LEFTOVER_NAME.fullmatch(path.name):
                path.unlink()
        if not any(folder.iterdir()) and not folder.is_symlink():
            folder.rmdir()


def share_changed(root: Path) -> float:
    """Share of the pixels below ``root`` whose class differs between the dates, 0..1."""
    import numpy as np

    from datasets.images import open_image

    changed = total = 0
    for path in sorted(root.glob("*/truth1/*.png")):
        truth1 = np.asarray(open_image(path))
        truth2 = np.asarray(open_image(path.parents[1] / "truth2" / path.name))
        changed += int((truth1 != truth2).sum())
        total += truth1.size
    return changed / max(total, 1)


def main(argv: list[str] | None = None) -> None:
    """Write the data and print one line about it."""
    args = parse_args(argv)
    if args.folder and args.out:
        raise OptionError("name the folder once: either DIR or --out DIR")
    if args.train_pairs + args.val_pairs == 0:
        raise OptionError("nothing to write: --train-pairs and --val-pairs are both 0")
    root = args.folder or args.out or DEFAULT_ROOT
    make_room(root, args.overwrite)

    from tools.scenes.scene import write_sample_data

    height, width = args.size
    write_sample_data(
        root,
        args.train_pairs,
        args.val_pairs,
        height,
        width,
        args.seed,
        args.label_format,
        args.workers,
        progress=sys.stderr.isatty(),
        bands=args.bands,
        bits=args.bits,
    )
    print(
        f"{args.train_pairs} training and {args.val_pairs} validation pairs of {height}x{width} "
        f"pixels, {share_changed(root):.1%} of the pixels changed, in {root}"
    )


if __name__ == "__main__":
    run(main)
