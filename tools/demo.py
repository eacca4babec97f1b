"""Run the whole recipe on generated scenes: teachers, pseudo labels, retraining, submission."""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import importlib
import shutil
import time
from typing import Any

from engine.config import OUTDIR
from utils import cli
from utils.errors import UserError
from utils.files import output_path


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Parse the command line."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument_group("size of the demo").add_argument
    add("--train-pairs", type=cli.positive_int, default=160, metavar="N", help="(default: 160)")
    add("--val-pairs", type=cli.positive_int, default=32, metavar="N", help="(default: 32)")
    add("--size", type=cli.positive_int, default=96, metavar="PIXELS", help="(default: 96)")
    add("--epochs", type=cli.positive_int, default=8, metavar="N", help="(default: 8)")
    about = "everything goes here, and what an earlier demo left here goes (default: outdir/demo)"
    place = {"type": output_path, "default": OUTDIR / "demo"}
    parser.add_argument("--outdir", **place, metavar="DIR", help=about)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run the recipe, print a table, draw ``overview.png``, and return the table's rows."""
    args = parse_args(argv)
    started = time.perf_counter()
    clear_earlier_demo(args.outdir)
    stages = importlib.import_module("tools.scenes.stages")  # late: --help is instant
    sizes = ["--train-pairs", args.train_pairs, "--val-pairs", args.val_pairs, "--size", args.size]
    rows, accuracy = stages.run_recipe(args.outdir, sizes, args.epochs)
    stages.draw_overview(args.outdir)
    print(f"\n{stages.format_table(rows)}\nall scores: the {args.val_pairs} pairs of data/val")
    print("what pseudo labels bring: the student beside teacher A, the same network without them\n")
    print(
        f"pseudo labels: {100 * accuracy['coverage']:.1f} % of the unlabelled pixels got a class, "
        f"{100 * accuracy['accuracy']:.1f} % of these the right one"
    )
    print(f"pictures: {args.outdir / 'overview.png'}  ({time.perf_counter() - started:.0f} s)")
    return rows


def clear_earlier_demo(outdir: Path) -> None:
    """Remove what an earlier demo wrote; refuse a folder that holds anything else."""
    if outdir.exists() and not outdir.is_dir():
        raise UserError(f"{outdir}: a file; name another folder with --outdir")
    marker = outdir / "demo.json"
    if outdir.exists() and any(outdir.iterdir()) and not marker.exists():
        raise UserError(f"{outdir}: not empty and not of an earlier demo; choose another --outdir")
    for name in ("data", "models", "masks", "logs"):
        shutil.rmtree(outdir / name, ignore_errors=True)
    outdir.mkdir(parents=True, exist_ok=True)
    marker.write_text("{}\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
