"""Write one HTML page of training runs and predicted masks, to open without a network."""

import contextlib
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets.bands import RGB
from datasets.splits import SplitOptions
from engine import config
from utils import cli
from utils.cli import run
from utils.errors import DataError, OptionError, UserError

if TYPE_CHECKING:  # functions import torch themselves, so that --help starts at once
    from datasets.pairs import Pair
    from tools.reporting.page import Masks
    from tools.reporting.runs import Run, RunSplit

EPILOG = """examples:
  python tools/report.py outdir
  python tools/report.py outdir/logs/A outdir/logs/B --masks outdir/masks/val --split val

A run is shown with the best epoch of its metrics.csv; the pairs with the largest share of wrong
pixels come first. Pairs without labels, or with those of one date alone, are shown by the share
predicted to change.
"""


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Parse the command line."""
    parser = cli.make_parser(__doc__, EPILOG)
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="outdir/logs/<run>, or an outdir for all of its runs",
    )
    group = parser.add_argument_group("masks")
    group.add_argument(
        "--masks",
        type=Path,
        metavar="DIR",
        help="folder of predicted masks, im1 and im2, or change (default: masks/SPLIT of the first "
        "run's outdir, if it is there)",
    )
    group.add_argument(
        "--data-root",
        type=Path,
        metavar="DIR",
        help="data set they are of (default: that of the first run's options)",
    )
    group.add_argument(
        "--split",
        choices=("test", "val", "train"),
        default="test",
        help="test: ROOT/val; val: the validation pairs of the first run; train: ROOT/train "
        "(default: test)",
    )
    group.add_argument(
        "--names", type=Path, metavar="FILE", help="only these pairs, one name a line"
    )
    group.add_argument(
        "--pairs",
        type=cli.natural,
        default=24,
        metavar="N",
        help="pairs to show, the worst ones; about 0.2 MB each at 512 pixels (default: 24)",
    )
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the page (default: report.html in the first run's outdir)",
    )
    config.add_processes_arg(group, "that read masks, fewer for few pairs")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> Path:
    """Write the page and return its path."""
    args = parse_args(argv)
    from tools.reporting.page import render_page
    from tools.reporting.runs import find_run_folders, group_by_split, read_run
    from utils.files import write_text

    folders, unfinished = find_run_folders(args.runs)
    for folder in unfinished:
        print(f"left out: {folder}: no finished epoch yet")
    runs = [read_run(folder) for folder in folders]
    find_splits(runs)
    groups = group_by_split(runs)
    masks = read_masks(args, runs[0])
    out = args.out or runs[0].outdir / "report.html"
    if out.is_dir():
        raise OptionError(f"--out {out}: is a folder; name a file in it")
    page = render_page(groups, masks, time.strftime("%Y-%m-%d %H:%M"))
    write_text(out, page)
    shown = f", {len(masks.pairs)} of {masks.total} pairs" if masks else ", no masks"
    print(f"{len(runs)} runs{shown}: {out}  ({len(page) / 1e6:.1f} MB)")
    if len(groups) > 1:
        print(f"note: {len(groups)} validation splits, in a table each: not to be compared")
    return out


def find_splits(runs: Sequence["Run"]) -> None:
    """Set each run's split: from its checkpoint, else from its options and data."""
    from tools.reporting.runs import add_splits_of_checkpoints

    add_splits_of_checkpoints(runs)
    for each in runs:
        if each.split.val is None and each.options:
            each.split = split_of_options(each.options)


def split_of_options(chosen: dict) -> "RunSplit":
    """Divide the data set as the options say; where it is gone, only lists are certain."""
    from datasets.pairs import split_pairs
    from tools.reporting.runs import UNKNOWN, RunSplit

    with contextlib.suppress(UserError):
        if chosen.get("data_root"):
            options_of_split = SplitOptions.from_options(chosen)
            split = split_pairs(Path(chosen["data_root"]), options_of_split)[0]
            known_from = "options and the data as they are now"
            return RunSplit(split.protocol, split.val, known_from, split.train)
    protocol = chosen.get("split") or ("lists" if chosen.get("val_list") else UNKNOWN)
    return RunSplit(protocol, None, "options alone")


def read_masks(args: Namespace, first: "Run") -> "Masks | None":
    """Count all masks and read those to show; None where no masks are asked for or found.

    Raises:
        DataError: folders or files are missing or do not fit.
        OptionError: the masks of training pairs are pseudo masks.
    """
    from datasets.pairs import and_more
    from datasets.task import load_classes
    from tools.reporting.page import Masks
    from tools.reporting.pairs import choose_pairs, count_pairs
    from tools.scoring.folders import find_masks

    folder = args.masks or first.outdir / "masks" / args.split
    if args.masks is None:
        if args.split == "train":
            raise OptionError(
                "--split train: OUTDIR/masks/train holds pseudo masks, which predict no change; "
                "name predictions with --masks"
            )
        if not folder.is_dir():
            print(f"note: no {folder}, so no gallery; test.py writes masks, --masks names others")
            return None
    root = args.data_root or Path(first.options.get("data_root") or config.DATA_ROOT)
    classes = load_classes(root)
    pairs = find_pairs(args, root, first)
    masks = find_masks(folder, classes.is_binary)
    missing = [pair.name for pair in pairs if pair.name not in masks]
    if missing:
        raise DataError(
            f"{folder}: no masks for pair {missing[0]}{and_more(missing)}; predict all "
            "pairs, choose another --split, or list those to show with --names"
        )
    counts = count_pairs(pairs, masks, classes, args.workers)
    bands = tuple(first.options.get("bands", RGB.numbers))
    shown = choose_pairs(args.pairs, pairs, masks, counts, classes, bands)
    title = f"{'/'.join(folder.resolve().parts[-2:])} of {'/'.join(root.resolve().parts[-2:])}"
    return Masks(title, classes.names, classes.colors, len(pairs), counts, shown)


def find_pairs(args: Namespace, root: Path, first: "Run") -> "list[Pair]":
    """Return the pairs of the split that ``--names`` lets pass."""
    from datasets.pairs import differing_labels, index_pairs
    from tools.scoring.folders import read_names

    if args.split == "val":
        pairs = validation_pairs(root, first)
    else:
        pairs = index_pairs(root / ("val" if args.split == "test" else "train"))
    if args.split == "test" and differing_labels(root):
        print(f"note: {differing_labels(root)}: no scores of its masks")
        pairs = [pair.without_labels() for pair in pairs]
    if not args.names:
        return pairs
    by_name = {pair.name: pair for pair in pairs}
    files = {name: (pair.image1, pair.image2) for name, pair in by_name.items()}
    return [by_name[name] for name in read_names(args.names, files)]


def validation_pairs(root: Path, run: "Run") -> "list[Pair]":
    """Return the pairs that a run was validated on, as far as its files tell.

    Raises:
        DataError: nothing tells which, or the data set has not all of them.
    """
    from datasets.pairs import split_pairs
    from tools.reporting.pairs import find_recorded_pairs

    if run.split.val:
        return find_recorded_pairs(root, run.split.val, run.folder)
    if not run.options:
        raise DataError(
            f"--split val: {run.folder} has no options.json and no checkpoint, which would tell on "
            "what it was validated; restore one, or name pairs of another --split with --names"
        )
    return split_pairs(root, SplitOptions.from_options(run.options))[2]


if __name__ == "__main__":
    run(main)
