"""Score a folder of masks, of this project or any other, against labels."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine import config
from utils import cli
from utils.cli import run
from utils.errors import OptionError

if TYPE_CHECKING:  # functions import torch themselves, so that --help starts at once
    from datasets.classes import ClassList
    from tools.scoring.statistics import PairCounts

EPILOG = """examples:
  python tools/score.py --prediction outdir/masks/test --label data/dataset/val
  python tools/score.py --prediction A --versus B --label data/dataset/val --matrix transitions

Each folder has label1 and label2, or im1 and im2, with masks of the same names: class indices or
class colours. Change masks without classes, 0 and 255, are one per pair: in label, in change, or in
the folder itself; or in label1 and label2, which count first. docs/metrics.md explains the scores.
"""
MATRIX_NAMES = {"dates": "dates", "transitions": "transitions", "7": "dates", "37": "transitions"}


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Parse the command line."""
    parser = cli.make_parser(__doc__, EPILOG)
    _add_input_args(parser)
    group = parser.add_argument_group("scores")
    group.add_argument(
        "--matrix",
        choices=tuple(MATRIX_NAMES),
        default="dates",
        help="dates (or 7): one matrix of classes over both dates; transitions (or 37): one of "
        "from→to entries; 7 and 37 are their sizes for SECOND (default: dates)",
    )
    group.add_argument(
        "--one-sided",
        choices=("error", "unchanged", "keep"),
        default="error",
        help="pixels predicted to change at one date alone: stop, count them as unchanged at both, "
        "or keep them as they are, which only dates can (default: error)",
    )
    group.add_argument(
        "--bootstrap",
        type=cli.natural,
        default=1000,
        metavar="N",
        help="resamples of the images for 95 %% intervals; 0 for none (default: 1000)",
    )
    group.add_argument(
        "--seed", type=cli.natural, default=0, metavar="N", help="of the resamples (default: 0)"
    )
    group = parser.add_argument_group("output")
    group.add_argument("--json", type=Path, metavar="FILE", help="write all values as JSON")
    group.add_argument("--csv", type=Path, metavar="FILE", help="write a row of scores per image")
    config.add_processes_arg(group, "that read masks, fewer for few pairs")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


def _add_input_args(parser: config.argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("masks")
    group.add_argument(
        "--prediction", type=Path, required=True, metavar="DIR", help="folder to score"
    )
    group.add_argument(
        "--label", type=Path, required=True, metavar="DIR", help="folder that is right"
    )
    group.add_argument(
        "--versus",
        type=Path,
        metavar="DIR",
        help="second folder to score, B; says whether --prediction, A, is better",
    )
    group.add_argument(
        "--names",
        type=Path,
        metavar="FILE",
        help="score only these pairs, one name a line (default: all; no folder may have more)",
    )
    group.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="JSON list of classes, or a folder with a classes.json (default: classes.json beside "
        "the labels or one folder up, else SECOND's classes, or none for change masks)",
    )


def main(argv: list[str] | None = None) -> dict:
    """Print the scores; return what ``--json`` writes."""
    args = parse_args(argv)
    from tools.scoring.folders import MaskCounter, count_all, find_jobs

    if MATRIX_NAMES[args.matrix] == "transitions" and args.one_sided == "keep":
        raise OptionError(
            "--one-sided keep: a change at one date alone is no transition; use --one-sided "
            "unchanged, or --matrix dates"
        )
    if args.versus and not args.bootstrap:
        raise OptionError("--versus compares by resampling; give --bootstrap at least 1")
    classes, source = find_classes(args.classes, args.label)
    folders = [args.prediction, *([args.versus] if args.versus else [])]
    if classes.is_binary and MATRIX_NAMES[args.matrix] == "transitions":
        raise OptionError("--matrix transitions: change masks without classes have none")
    jobs = find_jobs(args.label, folders, args.names, classes.is_binary)
    counts = count_all(jobs, MaskCounter(classes, args.one_sided), args.workers)
    return report(args, classes, source, [job.name for job in jobs], counts)


def find_classes(path: Path | None, label: Path) -> tuple["ClassList", str]:
    """Return the class list and where it comes from.

    Raises:
        DataError: the file is missing or malformed.
    """
    from datasets.classes import (
        CHANGE_CLASSES,
        CLASSES_FILE,
        SECOND_CLASSES,
        classes_file,
        read_classes,
    )
    from datasets.task import is_mask_folder

    if path is not None:
        file = classes_file(path)
        return read_classes(file), str(file)
    for file in (label / CLASSES_FILE, label.absolute().parent / CLASSES_FILE):
        if file.exists():
            return read_classes(file), str(file)
    if is_mask_folder(label):
        return CHANGE_CLASSES, "the labels are change masks"
    return SECOND_CLASSES, "SECOND's"


def report(
    args: Namespace,
    classes: "ClassList",
    classes_source: str,
    names: Sequence[str],
    counts: Sequence[Sequence["PairCounts"]],
) -> dict:
    """Score the counts, print the tables, write the files; return what ``--json`` writes."""
    from tools.scoring import statistics
    from tools.scoring.report import Report, csv_text
    from utils.files import write_json, write_text

    matrix = MATRIX_NAMES[args.matrix]
    tallies = [statistics.tally(pairs, matrix) for pairs in counts]
    samples = statistics.bootstrap(tallies, args.bootstrap, args.seed) if args.bootstrap else []
    result = Report(
        folders=[args.prediction, *([args.versus] if args.versus else [])],
        label=args.label,
        pair_names=names,
        class_names=classes.names,
        classes_source=classes_source,
        matrix=matrix,
        one_sided=args.one_sided,
        resamples=args.bootstrap,
        seed=args.seed,
        counts=counts,
        tallies=tallies,
        samples=samples,
    )
    print(result.text())
    if args.json:
        write_json(args.json, result.to_dict())
    if args.csv:
        write_text(args.csv, csv_text(result.rows()))
    return result.to_dict()


if __name__ == "__main__":
    run(main)
