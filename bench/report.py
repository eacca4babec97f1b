"""Turn the JSON files of compare.py into the tables of docs/performance.md."""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli import make_parser, run
from utils.errors import UserError
from utils.files import write_text

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
HEADER = (
    "what", "variant", "pairs/s", "reference", "ratio (lowest to highest)", "same masks",
    "peak memory", "reference", "floor", "over floor",
)  # fmt: skip
NONE = "–"


def main(argv: Sequence[str] | None = None) -> str:
    """Print or insert the tables and return them."""
    parser = make_parser(__doc__)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="JSON of compare.py")
    parser.add_argument(
        "--into", type=Path, metavar="FILE", help="replace what stands between the two markers"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    text = tables([read_result(path) for path in args.files])
    if args.into is None:
        print(text)
        return text
    before, begin, rest = args.into.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"{args.into}: no {BEGIN} … {END} in it; add the two lines")
    write_text(args.into, f"{before}{BEGIN}\n{text}{END}{after}")
    return text


def read_result(path: Path) -> dict[str, Any]:
    """Read a file of compare.py.

    Raises:
        UserError: it is missing, or is none.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        title(result)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no result of compare.py ({error!r}); run it again") from error
    return result


def tables(results: list[dict[str, Any]]) -> str:
    """Return one table per class of machine, and the commands behind its rows."""
    by_machine: dict[str, list[dict]] = {}
    for result in results:
        by_machine.setdefault(machine_line(result["machine"]), []).append(result)
    parts = []
    for machine, group in by_machine.items():
        rows = [HEADER, ["---"] * len(HEADER), *(row for r in group for row in table_rows(r))]
        lines = [f"**{machine}**", "", *(f"| {' | '.join(row)} |" for row in rows)]
        notes = [f"- {note}" for result in group for note in notes_of(result)]
        lines += ["", *notes] if notes else []
        commands = [result["command"] for result in group]
        parts.append("\n".join([*lines, "", "```bash", *commands, "```", ""]))
    return "\n".join(parts)


def machine_line(machine: dict[str, Any]) -> str:
    """Return the class of machine as one line."""
    units = "/".join(machine["units"]) or "no vector units"
    gpu = f", {machine['gpu']} {machine['gpu_memory_gb']} GB" if "gpu" in machine else ""
    cpu = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    return f"{cpu}, {machine['ram_gb']} GB, {units}{gpu}, torch {machine['torch']}"


def table_rows(result: dict[str, Any]) -> list[list[str]]:
    """Return the cells of one row per variant of ours."""
    reference, floor = result["variants"]["reference"], result.get("floor")
    rows = []
    for name, variant in result["variants"].items():
        if name == "reference":
            continue
        seconds = statistics.median(variant["seconds"])
        rows.append(
            [
                title(result),
                name if result["amp"] == "off" else f"{name}, {result['amp']}",
                f"{variant['pairs_per_s']:.3g}",
                f"{reference['pairs_per_s']:.3g}",
                "{median:.2f} ({min:.2f} to {max:.2f})".format(**variant["ratio"]),
                f"{100 * variant['agreement']:.2f} %" if "agreement" in variant else NONE,
                _memory(variant),
                _memory(reference),
                f"{floor['seconds']:.3g} s, {floor['bound']}" if floor else NONE,
                f"{seconds / floor['seconds']:.1f} ×" if floor else NONE,
            ]
        )
    return rows


def _memory(variant: dict[str, Any]) -> str:
    size = variant.get("peak_memory_bytes")
    return f"{size / 1e6:.0f} MB" if size else NONE


def title(result: dict[str, Any]) -> str:
    """Return what a row is about."""
    options = result["options"]
    words = [result["what"]]
    if result["what"] != "load":
        names = [
            f"{network['model']} {network['backbone']}{' lightweight' * network['lightweight']}"
            for network in result["networks"]
        ]
        words += [f"{names.count(name)} × {name}" for name in dict.fromkeys(names)]
        words.append(f"batch {options['batch_size']}")
    if result["what"] in ("infer", "label"):
        words.append(f"{options['views']} views")
        words.append("trained" if options["checkpoints"] else "random weights")
    return ", ".join([*words, f"{result['size']}²"])


def notes_of(result: dict[str, Any]) -> list[str]:
    """Return what the columns do not hold: warm-up, waiting, augmentation, the floor's parts."""
    notes = []
    compiled = result["variants"].get("compiled", {})
    if "pays_after_pairs" in compiled:
        pays = compiled["pays_after_pairs"]
        after = "never pays" if pays is None else f"pays after {pays:.0f} pairs"
        notes.append(f"compiling took {compiled['warmup_s']:.0f} s and {after}")
    for name, shares in result.get("waiting_share", {}).items():
        share = 100 * statistics.median(shares)
        notes.append(f"{name}: the main thread waited for data {share:.1f} % of the time")
    if "augmentation_ms_per_pair" in result:
        notes.append(f"augmentation: {result['augmentation_ms_per_pair']:.2f} ms per pair")
    if floor := result.get("floor"):
        notes.append(
            f"floor: {floor['flops'] / 1e9:.0f} GFLOP at {floor['flop_per_s'] / 1e9:.0f} GFLOP/s = "
            f"{floor['arithmetic_s']:.3g} s; {floor['bytes'] / 1e9:.2f} GB at "
            f"{floor['bytes_per_s'] / 1e9:.1f} GB/s = {floor['memory_s']:.3g} s"
        )
    return [f"{title(result)}: {note}" for note in notes]


if __name__ == "__main__":
    run(main)
