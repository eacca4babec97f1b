"""Check a data set before training, or write a clean copy of it."""

import sys
from argparse import Namespace
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine import config
from utils import cli
from utils.errors import OptionError
from utils.files import output_path, require_outside

NO_MAP = "--class-map: --preset knows what its labels mean; leave one of them out"
ONLY_FOR_CONVERT = ("class_map", "classes", "unchanged_where_equal", "resolve_disagreement")
ONLY_FOR_CHECKING = (
    *("strict", "bands", "hash_distance", "split", "val_list", "train_list"),
    *("val_fraction", "folds", "fold", "split_seed"),
)
EPILOG = """examples:
  python tools/check_data.py data/dataset
  python tools/check_data.py data/dataset --val-list val.txt --strict
  python tools/check_data.py data/dataset --split k-fold --folds 5 --fold 0
  python tools/check_data.py data/jpeg_labels --convert data/dataset
  python tools/check_data.py data/other --convert data/dataset --class-map map.json
  python tools/check_data.py data/Landsat-SCD --preset landsat-scd --convert data/landsat

map.json says what foreign values, colours or names stand for:
  {"0": "unchanged", "7": "tree", "#ff8000": 5, "255,0,0": "water"}
Names are those of ROOT/classes.json and stand for index and colour; a palette label in which the
two differ needs a map of colours alone. With --classes they are mapped to another class list.

Exit status: 0 no errors, 1 errors (or pairs that could not be converted), 2 wrong use.
Copies are found where whole images repeat, also re-encoded, flipped or turned; tiles that merely
overlap are not.
"""


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Parse the command line."""
    parser = cli.make_parser(__doc__, EPILOG)
    about = "folder with train/{im1,im2,label1,label2} or train/{im1,im2,label}, val/… "
    about += "(default: data/dataset)"
    place = {"type": Path, "default": config.DATA_ROOT}
    parser.add_argument("root", nargs="?", **place, metavar="ROOT", help=about)
    cli.add_options(parser, config.DataConfig, "preset")
    group = parser.add_argument_group("check")
    cli.add_options(group, config.SplitConfig)
    about = "bits of 63 in which the perceptual hashes of a copy may differ (default: 6)"
    group.add_argument("--hash-distance", type=cli.natural, default=6, metavar="BITS", help=about)
    cli.add_options(group, config.BandConfig, "bands")
    group.add_argument("--strict", action="store_true", help="take warnings for errors")
    add = parser.add_argument_group("convert").add_argument
    about = (
        "instead of checking, write a copy with index-PNG labels, or change masks of 0 and 255, "
    )
    about += "into this empty folder"
    add("--convert", type=output_path, metavar="OUT", help=about)
    about = "Euclidean distance in RGB up to which a label colour counts as the nearest class's; "
    about += "442 takes any (default: 30)"
    add("--color-distance", type=cli.natural, default=30, metavar="D", help=about)
    add("--class-map", type=Path, metavar="FILE", help="JSON: foreign values, colours, names")
    about = "class list of the copy: second, a JSON list of classes, or a folder with a "
    about += "classes.json (default: ROOT's classes.json, else second)"
    add("--classes", metavar="NAME", help=about)
    about = "set labels to 0 where both dates have the same class"
    add("--unchanged-where-equal", action="store_true", help=about)
    about = "set labels to 0 where only one date has a class"
    add("--resolve-disagreement", action="store_true", help=about)
    group = parser.add_argument_group("run")
    place = {"type": output_path, "default": config.OUTDIR / "check"}
    about = "where report and pictures go (default: outdir/check)"
    group.add_argument("--outdir", **place, metavar="DIR", help=about)
    config.add_processes_arg(group, "that decode files")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    require_outside(args.root, args.outdir, [args.outdir])
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    for name in ONLY_FOR_CHECKING if args.convert else ONLY_FOR_CONVERT:
        if name in given:
            use = "a check; --convert takes all pairs" if args.convert else "--convert OUT"
            raise OptionError(f"--{name.replace('_', '-')} is for {use}")
    if args.preset and args.class_map:
        raise OptionError(NO_MAP)
    return args


def main(argv: list[str] | None = None) -> int:
    """Check or convert, print what was found, and return the exit status."""
    args = parse_args(argv)
    commands = import_module("tools.checking.commands")  # late, so that --help starts fast
    return commands.convert(args) if args.convert else commands.check(args)


if __name__ == "__main__":
    cli.run(lambda: sys.exit(main()))
