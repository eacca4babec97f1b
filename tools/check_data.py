"""Check a data set before training, or write a clean copy of it."""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from collections import Counter
from typing import TYPE_CHECKING, Any

from utils import options
from utils.cli import run
from utils.errors import OptionError, UserError

if TYPE_CHECKING:
    import numpy as np

    from datasets.classes import ClassList
    from datasets.inspection import Report

OUTDIR = options.OUTDIR / "check"
PICTURES = ("transitions.png", "classes.png", "suspicious.png")
EPILOG = """examples:
  python tools/check_data.py data/dataset
  python tools/check_data.py data/dataset --val-list val.txt --strict
  python tools/check_data.py data/jpeg_labels --convert data/dataset
  python tools/check_data.py data/other --convert data/dataset --class-map map.json

map.json says what foreign values, colours or names stand for:
  {"0": "unchanged", "7": "tree", "#ff8000": 5, "255,0,0": "water"}
Names are those of ROOT/classes.json; with --classes they are mapped to another class list.

Exit status: 0 no errors, 1 errors (or pairs that could not be converted), 2 wrong use.
Copies are found where whole images repeat, also re-encoded, flipped or turned; tiles that merely
overlap are not.
"""


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Parse the command line."""
    parser = options.make_parser(__doc__, EPILOG)
    parser.add_argument(
        "root",
        nargs="?",
        type=Path,
        default=options.DATA_ROOT,
        metavar="ROOT",
        help="folder with train/{im1,im2,label1,label2}, val/… (default: data/dataset)",
    )
    group = parser.add_argument_group("check")
    for name in ("val", "train"):
        group.add_argument(
            f"--{name}-list", type=Path, metavar="FILE", help=f"as train.py's --{name}-list"
        )
    group.add_argument(
        "--hash-distance",
        type=options.natural,
        default=6,
        metavar="BITS",
        help="bits of 63 in which the perceptual hashes of a copy may differ (default: 6)",
    )
    group.add_argument("--strict", action="store_true", help="take warnings for errors")
    group = parser.add_argument_group("convert")
    group.add_argument(
        "--convert",
        type=Path,
        metavar="OUT",
        help="instead of checking, write a copy with index-PNG labels into this empty folder",
    )
    group.add_argument(
        "--color-distance",
        type=options.natural,
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
        help="class list of the copy: second, or a folder with a classes.json (default: ROOT's "
        "classes.json, else second)",
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
    group.add_argument(
        "--workers",
        type=options.positive_int,
        default=options.default_workers("cuda"),
        metavar="N",
        help="processes that decode files (default: cores, 8 at the most)",
    )
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    only_for_convert = ("class_map", "classes", "unchanged_where_equal", "resolve_disagreement")
    for name in only_for_convert:
        if getattr(args, name) and args.convert is None:
            raise OptionError(f"--{name.replace('_', '-')} is for --convert OUT")
    return args


def main(argv: list[str] | None = None) -> int:
    """Check or convert, print what was found, and return the exit status."""
    args = parse_args(argv)
    return convert(args) if args.convert else check(args)


def check(args: Namespace) -> int:
    """Inspect the data set, print tables and findings, write report and pictures."""
    from datasets import load_classes
    from datasets.inspection import inspect_dataset
    from utils.files import write_json
    from utils.progress import progress

    report = inspect_dataset(
        args.root,
        load_classes(args.root),
        args.train_list,
        args.val_list,
        args.color_distance,
        args.hash_distance,
        args.workers,
        lambda items, unit: progress(items, "checking", unit),
    )
    for text in (split_table(report), folder_table(report), class_table(report)):
        print(text, end="\n\n")
    if report.transitions()[1:, 1:].any():
        print(transition_table(report), end="\n\n")
    for finding in report.findings:
        print(f"{finding.level}, {finding.kind}: {len(finding.entries)} × {finding}")
    levels = Counter(finding.level for finding in report.findings)
    print(f"{levels['error']} kinds of errors, {levels['warning']} kinds of warnings")
    failed = bool(levels["error"] or (args.strict and levels["warning"]))
    write_json(args.outdir / "report.json", to_dict(report) | {"passed": not failed})
    pictures = draw_pictures(report, args.outdir)
    print(f"written to {args.outdir}: {', '.join(['report.json', *pictures])}")
    return int(failed)


def convert(args: Namespace) -> int:
    """Write the clean copy and list what was left out."""
    from datasets.class_map import load_class_map
    from datasets.classes import load_classes
    from datasets.conversion import Rules, convert_dataset
    from utils.files import write_json
    from utils.progress import progress

    source = load_classes(args.root)
    target = target_classes(args.classes) if args.classes else source
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
        lambda items, unit: progress(items, "converting", unit),
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


def target_classes(name: str) -> "ClassList":
    """Return SECOND's class list, or the one of a folder."""
    from datasets.classes import CLASSES_FILE, SECOND_CLASSES, load_classes

    if name == "second":
        return SECOND_CLASSES
    if not (Path(name) / CLASSES_FILE).is_file():
        raise OptionError(f"--classes {name}: neither second nor a folder with a {CLASSES_FILE}")
    return load_classes(Path(name))


def split_table(report: "Report") -> str:
    """Pairs, sizes and share changed per split."""
    from utils.logging import table

    rows = []
    for split in report.splits:
        pairs = [pair for pair in report.pairs if pair.split == split]
        sizes = Counter(file.size for pair in pairs for file in pair.images if not file.error)
        labelled = sum(pair.pair.label1 is not None for pair in pairs)
        rows.append([split, len(pairs), labelled, usual(sizes, show_size), changed(report, split)])
    return table(["split", "pairs", "labelled", "size", "changed"], rows)


def folder_table(report: "Report") -> str:
    """File formats, modes and label formats per folder."""
    from utils.logging import table

    return table(
        ["folder", "files", "file type", "mode, bits", "label format"],
        [
            [folder, sum(facts["types"].values()), *(usual(facts[name]) for name in facts)]
            for folder, facts in folder_facts(report).items()
        ],
    )


def folder_facts(report: "Report") -> dict[str, dict[str, Counter]]:
    """Count file types, modes and label formats per folder."""
    from datasets.findings import relative

    facts: dict[str, dict[str, Counter]] = {}
    for pair in report.pairs:
        formats = [None, None, *pair.formats]
        for file, label_format in zip(pair.images + pair.labels, formats, strict=True):
            folder = relative(file.path.parent, report.root)
            names = ("types", "modes", "label_formats")
            of_folder = facts.setdefault(folder, {name: Counter() for name in names})
            of_folder["types"][file.format or "unreadable"] += 1
            of_folder["modes"][f"{file.mode} {file.bits}" if file.mode else "–"] += 1
            if label_format:
                of_folder["label_formats"][label_format] += 1
    return dict(sorted(facts.items()))


def class_table(report: "Report") -> str:
    """Share of each class in the changed area, per split and date."""
    from utils.logging import table

    splits = {split: class_shares(report, split) for split in report.splits}
    header = ["% of changed area", *(f"{split} {date}" for split in splits for date in (1, 2))]
    return table(
        header,
        [
            [name, *(f"{dates[date][i]:.1f}" for dates in splits.values() for date in (0, 1))]
            for i, name in enumerate(report.classes.names[1:])
        ],
    )


def transition_table(report: "Report") -> str:
    """From class (rows) to class (columns), in percent of the changed area of all splits."""
    from utils.logging import table

    counts = report.transitions()[1:, 1:]
    names = report.classes.names[1:]
    shares = 100 * counts / counts.sum()
    rows = [
        [name, *(f"{share:.1f}" for share in row)] for name, row in zip(names, shares, strict=True)
    ]
    return table(["from \\ to, %", *names], rows)


def class_shares(report: "Report", split: str) -> tuple["np.ndarray", "np.ndarray"]:
    """Percent of the changed area that each class covers at date 1 and at date 2."""
    counts = report.transitions(split)
    dates = (counts.sum(axis=1)[1:], counts.sum(axis=0)[1:])
    return tuple(100 * date / max(1, date.sum()) for date in dates)


def changed(report: "Report", split: str) -> str:
    """Share of the pixels that changed, or a dash without readable labels."""
    counts = report.transitions(split)
    return f"{100 * counts[1:, 1:].sum() / counts.sum():.1f} %" if counts.any() else "–"


def usual(counter: Counter, show: Any = str) -> str:
    """'PNG' where all agree, 'PNG (11), JPEG (1)' where not."""
    if len(counter) < 2:
        return "".join(show(value) for value in counter)
    shown = ", ".join(f"{show(value)} ({n})" for value, n in counter.most_common(3))
    return shown + (f", {len(counter) - 3} more" if len(counter) > 3 else "")


def show_size(size: tuple[int, int]) -> str:
    """(height, width) -> 'width × height'."""
    return f"{size[1]} × {size[0]}"


def to_dict(report: "Report") -> dict[str, Any]:
    """Everything as plain values for JSON; pixel counts, not percentages."""
    splits = {}
    for split in report.splits:
        pairs = [pair for pair in report.pairs if pair.split == split]
        counts = report.transitions(split)
        splits[split] = {
            "pairs": len(pairs),
            "labelled": sum(pair.pair.label1 is not None for pair in pairs),
            "label_pixels_read": int(counts.sum()),
            "changed_pixels": int(counts[1:, 1:].sum()),
            "class_pixels_date1": counts.sum(axis=1).tolist(),
            "class_pixels_date2": counts.sum(axis=0).tolist(),
            "transitions": counts.tolist(),
        }
    return {
        "root": str(report.root.resolve()),
        "classes": list(report.classes.names),
        "splits": splits,
        "folders": folder_facts(report),
        "findings": [finding.to_dict() for finding in report.findings],
        "pairs": [
            {
                "id": pair.pair.id,
                "split": pair.split,
                "size": list(pair.images[0].size),
                "changed": pair.changed,
            }
            for pair in report.pairs
        ],
    }


def draw_pictures(report: "Report", outdir: Path) -> list[str]:
    """Draw what there is to draw; return the names. Pictures of an earlier check go."""
    from datasets.suspicious import suspicious_sheet
    from utils import plots
    from utils.masks import save_image

    for name in PICTURES:
        (outdir / name).unlink(missing_ok=True)
    written = []
    counts = report.transitions()[1:, 1:]
    if counts.any():
        names, colors = report.classes.names[1:], report.classes.colors[1:]
        labelled = [split for split in report.splits if report.transitions(split)[1:, 1:].any()]
        shares = {split: class_shares(report, split) for split in labelled}
        try:
            plots.plot_transitions(outdir / PICTURES[0], counts, names)
            plots.plot_class_shares(outdir / PICTURES[1], shares, names, colors)
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
