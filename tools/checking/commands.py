"""What tools/check_data.py does: check a data set, or convert it."""

from argparse import Namespace
from collections import Counter
from pathlib import Path

from datasets.classes import (
    CLASSES_FILE,
    SECOND_CLASSES,
    ClassList,
    classes_file,
    find_preset,
    read_classes,
)
from datasets.splits import SplitOptions
from datasets.task import load_classes
from tools.checking.class_map import load_class_map
from tools.checking.conversion import Rules, convert_dataset
from tools.checking.inspection import CheckOptions, inspect_dataset
from tools.checking.pictures import draw_pictures
from tools.checking.tables import tables, to_dict
from utils.errors import OptionError
from utils.files import write_json
from utils.text import plural

LISTED = 20  # pairs left out; convert.json has all


def check(args: Namespace) -> int:
    """Inspect the data set, print tables and findings, write report and pictures."""
    options = CheckOptions(
        SplitOptions.from_options(vars(args)),
        args.bands,
        args.color_distance,
        args.hash_distance,
        args.workers,
        find_preset(args.preset, args.root),
    )
    report = inspect_dataset(args.root, load_classes(args.root, options.preset), options)
    for part in (*tables(report), *report.findings):
        print(part, end="\n\n")
    levels = Counter(finding.level for finding in report.findings)
    errors, warnings = (plural(levels[level], "kind") for level in ("error", "warning"))
    print(f"{errors} of errors, {warnings} of warnings")
    failed = bool(levels["error"] or (args.strict and levels["warning"]))
    write_json(args.outdir / "report.json", to_dict(report) | {"passed": not failed})
    written = ["report.json", *draw_pictures(report, args.outdir)]
    print(f"written to {args.outdir}: {', '.join(written)}")
    return int(failed)


def convert(args: Namespace) -> int:
    """Write the clean copy and list what was left out; other classes need a map to them."""
    preset = find_preset(args.preset, args.root, coded=True)
    source = load_classes(args.root, preset)
    own = args.preset and set(source.names) == set(SECOND_CLASSES.names)
    target = SECOND_CLASSES if own else source
    target = _target_classes(args.classes) if args.classes else target
    file = args.root / CLASSES_FILE
    named = file.exists() or args.preset
    if named and not args.class_map and not set(source.names) <= set(target.names):
        raise OptionError(
            f"--classes {args.classes}: {file} lists other classes; say with --class-map which of "
            "them becomes which"
        )
    class_map = load_class_map(args.class_map, source, target) if args.class_map else None
    how = (args.color_distance, args.unchanged_where_equal, args.resolve_disagreement)
    rules = Rules(target, class_map, *how, preset, source if named else target)
    written, entries = convert_dataset(args.root, args.convert, rules, args.workers)
    left_out = [{"files": entry.files, "reason": entry.detail} for entry in entries]
    for entry in entries[:LISTED]:
        print(f"left out: {', '.join(entry.files)}: {entry.detail}")
    if len(left_out) > LISTED:
        print(f"… and {len(left_out) - LISTED} more")
    write_json(args.outdir / "convert.json", {"written": written, "left_out": left_out})
    print(
        f"{written} pairs written to {args.convert}, {len(left_out)} left out "
        f"(all in {args.outdir / 'convert.json'}); now: python tools/check_data.py {args.convert}"
    )
    return int(bool(left_out))


def _target_classes(name: str) -> ClassList:
    """Return SECOND's class list, or the one of a file or folder."""
    if name == "second":
        return SECOND_CLASSES
    path = classes_file(Path(name))
    if not path.is_file():
        raise OptionError(
            f"--classes {name}: neither second nor a JSON file nor a folder with a {CLASSES_FILE}"
        )
    return read_classes(path)
