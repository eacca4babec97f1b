"""Score a folder of masks, of this project or any other, against labels."""

import sys
from argparse import Namespace
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine import config
from utils import cli
from utils.files import output_path

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
    add = parser.add_argument_group("masks").add_argument
    add("--prediction", type=Path, required=True, metavar="DIR", help="folder to score")
    add("--label", type=Path, required=True, metavar="DIR", help="folder that is right")
    about = "a public set: --label is a split of it as it is published, ROOT/test"
    add("--preset", choices=config.PRESETS, help=about)
    about = "second folder to score, B; says whether --prediction, A, is better"
    add("--versus", type=Path, metavar="DIR", help=about)
    about = "score only these pairs, one name a line (default: all; no folder may have more)"
    add("--names", type=Path, metavar="FILE", help=about)
    about = "JSON list of classes, or a folder with a classes.json (default: classes.json beside "
    about += "the labels or one folder up, else SECOND's classes, or none for change masks)"
    add("--classes", type=Path, metavar="FILE", help=about)
    about = "whose pixels without data count nowhere, in the images beside the labels, as --bands "
    about += "of train.py (default: those of A's metrics.json, which test.py writes, else 3)"
    add("--bands", type=config.band_numbers, metavar="N|B,B,…", help=about)
    add = parser.add_argument_group("scores").add_argument
    about = "dates (or 7): one matrix of classes over both dates; transitions (or 37): one of "
    about += "from→to entries; 7 and 37 are their sizes for SECOND (default: dates)"
    add("--matrix", choices=tuple(MATRIX_NAMES), default="dates", help=about)
    about = "pixels predicted to change at one date alone: stop, count them as unchanged at both, "
    about += "or keep them as they are, which only dates can (default: error)"
    add("--one-sided", choices=("error", "unchanged", "keep"), default="error", help=about)
    about = "resamples of the images for 95 %% intervals; 0 for none (default: 1000)"
    add("--bootstrap", type=cli.natural, default=1000, metavar="N", help=about)
    add("--seed", type=cli.natural, default=0, metavar="N", help="of the resamples (default: 0)")
    group = parser.add_argument_group("output")
    file = {"type": output_path, "metavar": "FILE"}
    group.add_argument("--json", **file, help="write all values as JSON")
    group.add_argument("--csv", **file, help="write a row of scores per image")
    config.add_processes_arg(group, "that read masks, fewer for few pairs")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(argv)
    options.matrix = MATRIX_NAMES[options.matrix]
    return options


def main(argv: list[str] | None = None) -> dict:
    """Print the scores; return what ``--json`` writes."""
    options = parse_args(argv)
    return import_module("tools.scoring.report").score_folders(options)  # late: --help needs none


if __name__ == "__main__":
    cli.run(main)
