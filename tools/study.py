"""Run a seeded comparison of recipes, and say what it has shown and what it has not."""

import sys
from argparse import Namespace
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine import config
from utils import cli
from utils.files import output_path

EPILOG = """examples:
  python tools/study.py studies/recipe.toml
  python tools/study.py studies/recipe.toml --seeds 0-1 --arms published,without --jobs 2

A study file asks a question and lists arms: recipes of train.py, label.py and test.py. Each is run
once per seed and data set; stages that arms have in common run once. The same command goes on with
what is not finished. OUT/NAME gets summary.md, .tex and .json, results.csv and counts per image;
docs/studies.md tells how to write a study and how to read it.
"""


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Parse the command line."""
    parser = cli.make_parser(__doc__, EPILOG)
    parser.add_argument("study", type=Path, metavar="FILE", help="what is asked: a TOML file")
    add = parser.add_argument_group("what to run now").add_argument
    about = "other seeds than the study's, as 0-4 or 0,1,5"
    add("--seeds", type=cli.number_list, metavar="LIST", help=about)
    about = "some of the arms, with commas between (default: all)"
    add("--arms", type=lambda text: text.split(","), metavar="NAMES", help=about)
    about = "stages at a time; the cores are divided among them, or each takes the next GPU "
    about += "(default: one per visible GPU, 1 without)"
    add("--jobs", type=cli.positive_int, metavar="N", help=about)
    group = parser.add_argument_group("output")
    place = {"type": output_path, "default": config.OUTDIR / "studies", "metavar": "DIR"}
    group.add_argument("--out", **place, help="folder of all studies (default: outdir/studies)")
    group.add_argument(
        "--debug",
        action="store_true",
        help="show the traceback of an error; a stage's is in its log",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> Path:
    """Run what is not finished, write the summary, and return the study's folder."""
    options = parse_args(argv)
    return import_module("tools.studying.study").run_study(options)  # late: --help needs none


if __name__ == "__main__":
    cli.run(main)
