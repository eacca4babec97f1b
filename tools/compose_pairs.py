"""Make change detection pairs from a single-date segmentation set (image + class mask)."""

import sys
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import os
import re
from typing import TYPE_CHECKING

from engine import config
from utils import cli
from utils.cli import run
from utils.errors import OptionError

if TYPE_CHECKING:
    from tools.composing.source import MaskReader

MIN_SIDE = 32
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
    group = parser.add_argument_group("source")
    for name in ("images", "masks"):
        group.add_argument(f"--{name}", type=Path, required=True, metavar="DIR")
    group.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="JSON list of classes, or a folder with a classes.json (default: classes.json in or "
        "above --images)",
    )
    group.add_argument(
        "--ignore",
        action="append",
        type=_ignored,
        default=[],
        metavar="VALUE",
        help="value, or colour as #rrggbb or r,g,b, of pixels without a class; may be repeated",
    )
    group.add_argument(
        "--class-map",
        type=Path,
        metavar="FILE",
        help='JSON: what foreign values and colours stand for; "unchanged" for no class',
    )
    group = parser.add_argument_group("pairs")
    group.add_argument("--out", type=Path, required=True, metavar="ROOT", help="folder to write")
    group.add_argument(
        "--train-pairs", type=cli.natural, default=400, metavar="N", help="(default: 400)"
    )
    group.add_argument(
        "--val-pairs", type=cli.natural, default=100, metavar="N", help="(default: 100)"
    )
    group.add_argument(
        "--size", type=_side, default=256, metavar="PIXELS", help="side of a pair (default: 256)"
    )
    group.add_argument(
        "--changed",
        type=_share,
        default=0.2,
        metavar="P",
        help="mean share of the pixels that change, above 0 up to 0.9 (default: 0.2)",
    )
    group.add_argument(
        "--nuisance",
        type=cli.non_negative_float,
        default=1.0,
        metavar="X",
        help="strength of light, noise, blur and misregistration (default: 1)",
    )
    group.add_argument(
        "--seed", type=cli.natural, default=0, metavar="N", help="of all draws (default: 0)"
    )
    group = parser.add_argument_group("splits")
    group.add_argument(
        "--val-scenes",
        type=_val_scenes,
        default="0.2",
        metavar="LIST",
        help="share of the scenes like 0.2, names with commas and *, or a file of them, one a line "
        "(default: 0.2)",
    )
    group.add_argument(
        "--scene-pattern",
        type=_pattern,
        metavar="REGEX",
        help="part of a file name that names the place (default: all of it)",
    )
    group = parser.add_argument_group("run")
    config.add_processes_arg(group, "that compose pairs")
    group.add_argument(
        "--overwrite", action="store_true", help="replace composed pairs that are in ROOT"
    )
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    if args.train_pairs + args.val_pairs == 0:
        raise OptionError("nothing to write: --train-pairs and --val-pairs are both 0")
    if args.ignore and args.class_map:
        raise OptionError('--ignore and --class-map: map those values to "unchanged" in the map')
    return args


def _side(text: str) -> int:
    side = cli.positive_int(text)
    if side < MIN_SIDE:
        raise ArgumentTypeError(f"{text!r}: at least {MIN_SIDE} pixels")
    return side


def _ignored(text: str) -> int | tuple[int, int, int]:
    """255, #ff8000 or 255,128,0."""
    text = text.strip()
    if re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        return tuple(bytes.fromhex(text[1:]))
    channels = [int(part) for part in text.split(",")] if re.fullmatch(r"[\d, ]+", text) else []
    if len(channels) in (1, 3) and max(channels) <= 255:
        return channels[0] if len(channels) == 1 else tuple(channels)
    raise ArgumentTypeError(f"{text!r}: neither a value 0 to 255 nor a colour #rrggbb or r,g,b")


def _share(text: str) -> float:
    share = cli.positive_float(text)
    if share > 0.9:
        raise ArgumentTypeError(f"{text!r}: at most 0.9")
    return share


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ArgumentTypeError(f"{text!r} is no regular expression: {error}") from error
    return text


def _val_scenes(text: str) -> float | list[str]:
    if re.fullmatch(r"0?\.\d+", text):
        return float(text)
    if os.path.isfile(text):  # Path.is_file raises where a list is longer than a file name
        try:
            names = Path(text).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ArgumentTypeError(f"{text}: cannot be read ({error})") from error
    else:
        names = text.split(",")
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise ArgumentTypeError(f"{text!r}: no names in it")
    return names


def main(argv: list[str] | None = None) -> None:
    """Check the scenes, compose and write the pairs, and print one line per split."""
    args = parse_args(argv)

    from tools.composing import folders
    from tools.composing.compose import Recipe
    from tools.composing.source import find_scenes, require_scenes, split_scenes
    from utils.text import progress

    read_mask = mask_reader(args)
    scenes = find_scenes(args.images, args.masks, args.scene_pattern)
    pairs = {"train": args.train_pairs, "val": args.val_pairs}
    # Scenes named for validation are kept out of training even where no pair is made of them.
    val = args.val_scenes if args.val_pairs or isinstance(args.val_scenes, list) else 0.0
    splits = split_scenes(scenes, val, args.seed)
    splits = {split: members for split, members in splits.items() if pairs[split]}
    for split, members in splits.items():
        require_scenes(split, members)

    def bar(what: str) -> object:
        return lambda items, unit: progress(items, what, unit=unit)

    folders.check_scenes(splits, read_mask, args.size, args.workers, bar("checking"))
    jobs = folders.plan_pairs(splits, pairs, args.seed)
    folders.make_room(args.out, args.overwrite)
    record = {"images": str(args.images), "masks": str(args.masks), "seed": args.seed}
    recipe = Recipe(changed=args.changed, nuisance=args.nuisance)
    written = folders.write_pairs(
        args.out, jobs, read_mask, args.size, recipe, record, args.workers, bar("composing")
    )
    for split, result in written.items():
        print(
            f"{split}: {result.pairs} pairs of {args.size} × {args.size} pixels from "
            f"{len(splits[split])} scenes, {result.changed / max(result.known, 1):.1%} changed"
        )
    print(f"written to {args.out}; now: python tools/check_data.py {args.out}")


def mask_reader(args: Namespace) -> "MaskReader":
    """Return what reads the masks as the options say."""
    from datasets.classes import read_classes
    from tools.checking.class_map import load_class_map
    from tools.composing.folders import class_source, usable
    from tools.composing.source import MaskReader

    classes = usable(read_classes(class_source(args.classes, args.images)))
    class_map = load_class_map(args.class_map, classes, classes) if args.class_map else None
    return MaskReader(classes, tuple(args.ignore), class_map)


if __name__ == "__main__":
    run(main)
