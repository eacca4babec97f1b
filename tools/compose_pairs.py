"""Make change detection pairs from a single-date segmentation set (image + class mask)."""

import sys
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import importlib
import os
import re

from engine import config
from utils import cli
from utils.errors import OptionError
from utils.files import output_path, read_text

MIN_SIDE = 32
MAX_CHANGED = 0.9
EPILOG = """examples:
  python tools/compose_pairs.py --images city/images --masks city/masks --out data/composed
  … --val-scenes "tile7_*"            validate on the scenes of one tile
  … --scene-pattern "^tile[0-9]+"     files of one tile are one place: never in both splits
  … --ignore 255 --ignore "#000000"   pixels without a class: never labelled
  … --class-map map.json              {"0": "building", "1": "road", "#ff8000": "tree"}

Regions of other scenes of the same split are pasted into one date or the other. A pixel is labelled
exactly where its class then differs between the dates. Pastes of the same class, light, noise, blur
and slight misregistration are in the images and carry no label. truth1 and truth2 hold the class of
every pixel; composed.json says which scenes each pair is made of.
"""


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Parse the command line."""
    parser = cli.make_parser(__doc__, EPILOG)
    add = parser.add_argument_group("source").add_argument
    add("--images", type=Path, required=True, metavar="DIR")
    add("--masks", type=Path, required=True, metavar="DIR")
    about = "JSON list of classes, or a folder with a classes.json (default: classes.json in or "
    add("--classes", type=Path, metavar="FILE", help=about + "above --images)")
    about = "value, or colour as #rrggbb or r,g,b, of pixels without a class; may be repeated"
    add("--ignore", action="append", default=[], metavar="VALUE", help=about)
    about = 'JSON: what foreign values and colours stand for; "unchanged" for no class'
    add("--class-map", type=Path, metavar="FILE", help=about)
    add = parser.add_argument_group("pairs").add_argument
    add("--out", type=output_path, required=True, metavar="ROOT", help="folder to write")
    add("--train-pairs", type=cli.natural, default=400, metavar="N", help="(default: 400)")
    add("--val-pairs", type=cli.natural, default=100, metavar="N", help="(default: 100)")
    about = "side of a pair (default: 256)"
    add("--size", type=cli.positive_int, default=256, metavar="PIXELS", help=about)
    about = "mean share of the pixels that change, above 0 up to 0.9 (default: 0.2)"
    add("--changed", type=cli.positive_float, default=0.2, metavar="P", help=about)
    about = "strength of light, noise, blur and misregistration (default: 1)"
    add("--nuisance", type=cli.non_negative_float, default=1.0, metavar="X", help=about)
    add("--seed", type=cli.natural, default=0, metavar="N", help="of all draws (default: 0)")
    add = parser.add_argument_group("splits").add_argument
    about = "share of the scenes like 0.2, names with commas and *, or a file of them, one a line "
    add("--val-scenes", type=_scenes, default="0.2", metavar="LIST", help=about + "(default: 0.2)")
    about = "part of a file name that names the place (default: all of it)"
    add("--scene-pattern", default=".*", metavar="REGEX", help=about)
    group = parser.add_argument_group("run")
    config.add_processes_arg(group, "that compose pairs")
    about = "replace composed pairs that are in ROOT"
    group.add_argument("--overwrite", action="store_true", help=about)
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    if args.size < MIN_SIDE:
        raise OptionError(f"--size {args.size}: at least {MIN_SIDE} pixels")
    if args.changed > MAX_CHANGED:
        raise OptionError(f"--changed {args.changed}: at most {MAX_CHANGED}")
    if args.train_pairs + args.val_pairs == 0:
        raise OptionError("nothing to write: --train-pairs and --val-pairs are both 0")
    if args.ignore and args.class_map:
        raise OptionError('--ignore and --class-map: map those values to "unchanged" in the map')
    return args


def _scenes(text: str) -> float | list[str]:
    if re.fullmatch(r"0?\.\d+", text):
        return float(text)
    names = text.split(",")
    if os.path.isfile(text):  # Path.is_file raises where a list is longer than a file name
        try:
            names = read_text(text).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ArgumentTypeError(f"{text}: cannot be read ({error})") from error
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise ArgumentTypeError(f"{text!r}: no names in it")
    return names


def main(argv: list[str] | None = None) -> None:
    """Check the scenes, compose and write the pairs, and print one line per split."""
    args = parse_args(argv)
    importlib.import_module("tools.composing.folders").compose_set(args)  # late: instant --help


if __name__ == "__main__":
    cli.run(main)
