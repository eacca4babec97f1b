"""Check a data set before training, or write a clean copy of it."""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from collections import Counter
from typing import TYPE_CHECKING

from datasets.splits import SplitOptions
from engine import config
from utils import cli
from utils.cli import run
from utils.errors import OptionError, UserError

if TYPE_CHECKING:
    from datasets.classes import ClassList
    from tools.checking.inspection import Report

OUTDIR = config.OUTDIR / "check"
ONLY_FOR_CONVERT = ("class_map", "classes", "unchanged_where_equal", "resolve_disagreement")
ONLY_FOR_CHECKING = (
    *("strict", "bands", "hash_distance", "split", "val_list", "train_list"),
    *("val_fraction", "folds", "fold", "split_seed"),
)
PICTURES = ("transitions.png", "classes.png", "suspicious.png")
EPILOG = """examples:
  python tools/check_data.py data/dataset
  python tools/check_data.py data/dataset --val-list val.txt --strict
  python tools/check_data.py data/dataset --split k-fold --folds 5 --fold 0
  python tools/check_data.py data/jpeg_labels --convert data/dataset
  python tools/check_data.py data/other --convert data/dataset --class-map map.json

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
    parser.add_argument(
        "root",
        nargs="?",
        type=Path,
        default=config.DATA_ROOT,
        metavar="ROOT",
        help="folder with train/{im1,im2,label1,label2} or train/{im1,im2,label}, val/… (default: "
        "data/dataset)",
    )
    group = parser.add_argument_group("check")
    config.add_split_args(group)
    group.add_argument(
        "--hash-distance",
        type=cli.natural,
        default=6,
        metavar="BITS",
        help="bits of 63 in which the perceptual hashes of a copy may differ (default: 6)",
    )
    config.add_bands_arg(group, (1, 2, 3), "3")
    group.add_argument("--strict", action="store_true", help="take warnings for errors")
    group = parser.add_argument_group("convert")
    group.add_argument(
        "--convert",
        type=Path,
        metavar="OUT",
        help="instead of checking, write a copy with index-PNG labels, or change masks of 0 and "
        "255, into this empty folder",
    )
    group.add_argument(
        "--color-distance",
        type=cli.natural,
        default=30,
        metavar="D",
        help="Euclidean distance in RGB up to which a label colour counts as the nearest class's; "
        "442 takes any (default: 30)",
    )
    group.add_argument(
        "--class-map", type=Path, metavar="FILE", help="JSON: foreign values, colours, names"
    )
    group.add_argument(
        "--classes",
        metavar="NAME",
        help="class list of the copy: second, a JSON list of classes, or a folder with a "
        "classes.json (default: ROOT's classes.json, else second)",
    )
    group.add_argument(
        "--unchanged-where-equal",
        action="store_true",
        help="set labels to 0 where both dates have the same class",
    )
    group.add_argument(
        "--resolve-disagreement",
        action="store_true",
        help="set labels to 0 where only one date has a class",
    )
    group = parser.add_argument_group("run")
    group.add_argument(
        "--outdir",
        type=Path,
        default=OUTDIR,
        metavar="DIR",
        help="where report and pictures go (default: outdir/check)",
    )
    config.add_processes_arg(group, "that decode files")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    SplitOptions.from_options(vars(args))  # refuses what cannot be before a file is read
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    for name in ONLY_FOR_CHECKING if args.convert else ONLY_FOR_CONVERT:
        if name in given:
            use = "a check; --convert takes all pairs" if args.convert else "--convert OUT"
            raise OptionError(f"--{name.replace('_', '-')} is for {use}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Check or convert, print what was found, and return the exit status."""
    args = parse_args(argv)
    return convert(args) if args.convert else check(args)


def check(args: Namespace) -> int:
    """Inspect the data set, print tables and findings, write report and pictures."""
    from datasets.task import load_classes
    from tools.checking import tables
    from tools.checking.inspection import inspect_dataset
    from utils.files import write_json
    from utils.text import progress

    report = inspect_dataset(
        args.root,
        load_classes(args.root),
        SplitOptions.from_options(vars(args)),
        args.color_distance,
        args.hash_distance,
        args.workers,
        lambda items, unit: progress(items, "checking", unit=unit),
        args.bands,
    )
    print(tables.split_table(report), tables.folder_table(report), sep="\n\n", end="\n\n")
    if report.band_statistics():
        print(tables.band_table(report), end="\n\n")
    if report.classes.is_binary:
        print("binary change labels: change masks without classes", end="\n\n")
    elif report.transitions()[1:, 1:].any():
        print(tables.class_table(report), end="\n\n")
    if report.transitions(both_dates=True)[1:, 1:].any():
        print(tables.transition_table(report), end="\n\n")
    for finding in report.findings:
        print("\n".join(finding.lines()), end="\n\n")
    levels = Counter(finding.level for finding in report.findings)
    print(f"{levels['error']} kinds of errors, {levels['warning']} kinds of warnings")
    failed = bool(levels["error"] or (args.strict and levels["warning"]))
    write_json(args.outdir / "report.json", tables.to_dict(report) | {"passed": not failed})
    pictures = draw_pictures(report, args.outdir)
    print(f"written to {args.outdir}: {', '.join(['report.json', *pictures])}")
    return int(failed)


def convert(args: Namespace) -> int:
    """Write the clean copy and list what was left out."""
    from datasets.task import load_classes
    from tools.checking.class_map import load_class_map
    from tools.checking.conversion import Rules, convert_dataset
    from utils.files import write_json
    from utils.text import progress

    source = load_classes(args.root)
    target = target_classes(args.classes) if args.classes else source
    require_same_classes(args, source, target)
    class_map = load_class_map(args.class_map, source, target) if args.class_map else None
    rules = Rules(
        target,
        class_map,
        args.color_distance,
        args.unchanged_where_equal,
        args.resolve_disagreement,
    )
    result = convert_dataset(
        args.root,
        args.convert,
        rules,
        args.workers,
        lambda items, unit: progress(items, "converting", unit=unit),
    )
    left_out = [{"files": list(entry.files), "reason": entry.detail} for entry in result.left_out]
    for entry in result.left_out[:20]:
        print(f"left out: {', '.join(entry.files)}: {entry.detail}")
    if len(left_out) > 20:
        print(f"… and {len(left_out) - 20} more")
    write_json(args.outdir / "convert.json", {"written": result.written, "left_out": left_out})
    print(
        f"{result.written} pairs written to {args.convert}, {len(left_out)} left out "
        f"(all in {args.outdir / 'convert.json'}); now: python tools/check_data.py {args.convert}"
    )
    return int(bool(left_out))


def require_same_classes(args: Namespace, source: "ClassList", target: "ClassList") -> None:
    """Refuse to read labels of one class list as those of another.

    Raises:
        OptionError: ROOT lists other classes, and there is no map between the two.
    """
    from datasets.classes import CLASSES_FILE

    file = args.root / CLASSES_FILE
    if source != target and file.exists() and not args.class_map:
        raise OptionError(
            f"--classes {args.classes}: {file} lists other classes; say with --class-map which of "
            "them becomes which"
        )


def target_classes(name: str) -> "ClassList":
    """Return SECOND's class list, or the one of a file or folder."""
    from datasets.classes import CLASSES_FILE, SECOND_CLASSES, classes_file, read_classes

    if name == "second":
        return SECOND_CLASSES
    path = classes_file(Path(name))
    if not path.is_file():
        raise OptionError(
            f"--classes {name}: neither second nor a JSON file nor a folder with a {CLASSES_FILE}"
        )
    return read_classes(path)


def draw_pictures(report: "Report", outdir: Path) -> list[str]:
    """Draw what there is to draw; return the names. Pictures of an earlier check go."""
    from tools.checking import charts, tables
    from tools.checking.suspicious import suspicious_sheet
    from utils.pictures import save_image

    for name in PICTURES:
        (outdir / name).unlink(missing_ok=True)
    written = []
    counts = report.transitions(both_dates=True)[1:, 1:]
    if counts.any():
        names, colors = report.classes.names[1:], report.classes.colors[1:]
        labelled = [s for s in report.splits if len(report.dates(s)) == 2]
        labelled = [s for s in labelled if report.transitions(s)[1:, 1:].any()]
        shares = {split: tables.class_shares(report, split) for split in labelled}
        try:
            charts.plot_transitions(outdir / PICTURES[0], counts, names)
            charts.plot_class_shares(outdir / PICTURES[1], shares, names, colors)
            written += PICTURES[:2]
        except UserError as error:
            print(f"note: {error}")
    sheet = suspicious_sheet(report)
    if sheet is not None:
        save_image(outdir / PICTURES[2], sheet)
        written.append(PICTURES[2])
    return written


if __name__ == "__main__":
    run(lambda: sys.exit(main()))
