"""Write one HTML page of training runs and predicted masks, to open without a network."""

import sys
from argparse import Namespace
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine import config
from utils import cli
from utils.files import output_path

EPILOG = """examples:
  python tools/report.py outdir
  python tools/report.py outdir/logs/A outdir/logs/B --masks outdir/masks/val --split val
  python tools/report.py outdir --data-root data/dataset   # also where it holds masks alone
  python tools/report.py outdir --format tex
  python tools/report.py outdir/studies/recipe

A run is shown with the best epoch of its metrics.csv; the pairs with the largest share of wrong
pixels come first. Pairs without labels, or with those of one date alone, are shown by the share
predicted to change. Runs that differ in the seed alone, or in the fold, get a row of their mean.
"""


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Parse the command line."""
    parser = cli.make_parser(__doc__, EPILOG)
    about = "outdir/logs/<run>, an outdir for all of its runs, or the folder of a study"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=about)
    add = parser.add_argument_group("masks").add_argument
    about = "folder of predicted masks, im1 and im2, or change (default: masks/SPLIT of the first "
    add("--masks", type=Path, metavar="DIR", help=about + "run's outdir, if it is there)")
    about = "data set they are of (default: that of the first run's options)"
    add("--data-root", type=Path, metavar="DIR", help=about)
    about = "a public set, in its published folders (default: that of the first run's options)"
    add("--preset", choices=config.PRESETS, help=about)
    about = "test: ROOT/test, or ROOT/val without; val: the validation pairs of the first run; "
    about += "train: ROOT/train (default: test)"
    add("--split", choices=("test", "val", "train"), default="test", help=about)
    add("--names", type=Path, metavar="FILE", help="only these pairs, one name a line")
    about = "pairs to show, the worst ones; about 0.2 MB each at 512 pixels (default: 24)"
    add("--pairs", type=cli.natural, default=24, metavar="N", help=about)
    group = parser.add_argument_group("output")
    about = "html: the page; md or tex: the tables of its runs alone (default: html)"
    group.add_argument("--format", choices=("html", "md", "tex"), default="html", help=about)
    about = "the page (default: report.FORMAT in the first run's outdir)"
    group.add_argument("--out", type=output_path, metavar="FILE", help=about)
    config.add_processes_arg(group, "that read masks, fewer for few pairs")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> Path:
    """Write the page and return its path."""
    options = parse_args(argv)
    return import_module("tools.reporting.page").write_report(options)  # late: --help needs none


if __name__ == "__main__":
    cli.run(main)
