"""Compare this project with the published execution pattern, in alternation in one process."""

import multiprocessing
import sys
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bench.cases import REFERENCE, InferCase, Options, TrainCase
from bench.file_cases import LabelCase, LoadCase
from bench.floor import floor
from bench.machine import (
    PeakMemory,
    describe_machine,
    machine_line,
    seconds,
    spread,
    use_backend,
)
from bench.report import variant_lines
from engine import config
from utils import cli
from utils.cli import run
from utils.files import write_json

CASES = {"train": TrainCase, "infer": InferCase, "label": LabelCase, "load": LoadCase}
TEACHERS = "hrnet_w40,hrnet_w40,hrnet_w48,hrnet_w48,hrnet_w64"
ROUNDS = {"train": 5, "infer": 5, "label": 3, "load": 5}
BATCH = {"train": 8, "infer": 4, "label": 16, "load": 1}
PROFILE_ROWS = 15
EPILOG = """examples:
  python bench/compare.py --what infer --models 2 --lightweight --size 512 --compile
  python bench/compare.py --what label --size 512 --pairs 16 --out outdir/bench/label-512.json
  python bench/report.py outdir/bench/*.json
"""


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Parse the command line."""
    parser = cli.make_parser(__doc__, EPILOG)
    parser.add_argument("--what", choices=tuple(CASES), required=True, help="what to compare")
    _add_network_args(parser)
    group = parser.add_argument_group("pairs")
    group.add_argument("--size", type=cli.positive_int, default=256, metavar="PIXELS")
    group.add_argument(
        "--batch-size",
        type=cli.positive_int,
        metavar="N",
        help=f"pairs per batch (default: {BATCH})",
    )
    group.add_argument(
        "--pairs", type=cli.positive_int, default=8, metavar="N", help="files of label and load (8)"
    )
    group.add_argument(
        "--data-root", type=Path, metavar="DIR", help="real pairs instead of generated scenes"
    )
    group = parser.add_argument_group("measurement")
    group.add_argument(
        "--rounds", type=cli.positive_int, metavar="N", help=f"A B, A B, … (default: {ROUNDS})"
    )
    group.add_argument(
        "--repeat",
        type=cli.positive_int,
        default=1,
        metavar="N",
        help="batches or steps per round, where one is too short to time (default: 1)",
    )
    group.add_argument(
        "--memory",
        action=BooleanOptionalAction,
        default=True,
        help="measure peak memory of train and infer, in a process of its own (default: on)",
    )
    group.add_argument("--profile", action="store_true", help="show where our variant spends time")
    group.add_argument("--device", default="auto", metavar="NAME", help="as in train.py")
    group.add_argument(
        "--out", type=Path, metavar="FILE", help="JSON (default: outdir/bench/WHAT.json)"
    )
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    args.batch_size = args.batch_size or BATCH[args.what]
    args.rounds = args.rounds or ROUNDS[args.what]
    args.out = args.out or config.OUTDIR / "bench" / f"{args.what}.json"
    if args.checkpoints and args.what in ("train", "load"):
        parser.error("--checkpoints is for infer and label")
    if args.compile and args.what == "load":
        parser.error("--compile: nothing to compile in load")
    return args


def _add_network_args(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("networks")
    group.add_argument("--backbone", default="hrnet_w18", metavar="NAME", help="of train and infer")
    group.add_argument(
        "--backbones",
        default=TEACHERS,
        metavar="NAMES",
        help=f"ensemble of label, with commas (default: {TEACHERS})",
    )
    group.add_argument(
        "--models", type=cli.positive_int, default=2, metavar="N", help="of infer (2)"
    )
    group.add_argument("--model", choices=config.MODELS, default="pspnet", help="heads (pspnet)")
    group.add_argument("--lightweight", action="store_true", help="lightweight heads")
    group.add_argument(
        "--checkpoints",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="trained models for infer and label instead of random weights",
    )
    group.add_argument(
        "--views", type=int, choices=(1, 6), default=6, help="of infer and label (6)"
    )
    group.add_argument("--amp", choices=("auto", "bf16", "fp16", "off"), default="auto")
    step = group.add_mutually_exclusive_group()
    step.add_argument(
        "--compile", action="store_true", help="compare a third variant, compiled by inductor"
    )
    step.add_argument("--checkpoint-activations", action="store_true", help="in our training step")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print a table, write the JSON and return its content."""
    args = parse_args(argv)
    options = to_options(args)
    case = CASES[args.what](options)
    machine = describe_machine(case.device)
    print(f"{machine_line(machine)}\n{described(options)}, rounds {args.rounds}", flush=True)
    result = {"what": args.what, "machine": machine, "rounds": args.rounds, "amp": case.amp}
    result |= {"command": command(argv), "options": asdict(options), "size": case.size}
    result |= {"networks": [asdict(config) for config in case.configs]}
    result |= {"pairs": case.pairs, **measure(case, options.variants(), args.rounds)}
    if args.memory and args.what in ("train", "infer"):
        for name, variant in result["variants"].items():
            variant["peak_memory_bytes"] = peak_memory(options, name)
    works = case.works()
    if works:
        views = 1 if args.what == "train" else args.views
        result["floor"] = floor(
            works, case.pairs, views, args.what == "train", case.device, case.amp
        )
    if hasattr(case, "extras"):
        result |= case.extras()
    if args.profile:
        result["profile"] = profile(case.make("ours"), case.device)
    for line in variant_lines(result):
        print(line)
    write_json(args.out, result)
    return result


def to_options(args: Namespace) -> Options:
    """Return what is measured, without how it is shown."""
    if args.what == "label":
        backbones = tuple(args.backbones.split(","))
    else:
        backbones = (args.backbone,) * (args.models if args.what == "infer" else 1)
    values = {**vars(args), "backbones": backbones, "checkpoints": tuple(args.checkpoints)}
    return Options(**{field.name: values[field.name] for field in fields(Options)})


def described(options: Options) -> str:
    """Return all options as one line."""
    return ", ".join(f"{key} {value}" for key, value in asdict(options).items())


def command(argv: list[str] | None) -> str:
    """Return the command line, without folders of this machine."""
    words = sys.argv[1:] if argv is None else argv
    words = [Path(word).name if Path(word).is_absolute() else word for word in words]
    return " ".join(["python bench/compare.py", *words])


def measure(case: Any, names: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """Run the variants in turn, ``rounds`` times, and relate each to the baseline of its round.

    Variants that keep their models are run once beforehand; that takes what compiling takes.
    """
    calls, warmups, outputs, peaks = {}, {}, {}, {}
    for name in names:
        calls[name] = case.make(name)
        use_backend(of_baseline=name == REFERENCE)
        if not case.starts_anew:
            warmups[name] = seconds(calls[name], case.device)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            use_backend(of_baseline=name == REFERENCE)  # not on anyone's clock
            taken, outputs[name], peak = _timed(calls[name], case)
            times[name].append(taken)
            peaks[name] = max(peaks.get(name, 0), peak)
        print(
            f"round {number + 1}: " + ", ".join(f"{n} {times[n][-1]:.3g} s" for n in names),
            flush=True,
        )
    variants = {}
    for name in names:
        median = spread(times[name])["median"]
        variants[name] = {"seconds": times[name], "pairs_per_s": case.pairs / median}
        if name in warmups:
            variants[name]["warmup_s"] = warmups[name]
        if peaks[name]:
            variants[name]["peak_memory_bytes"] = peaks[name]
        if name != REFERENCE:
            ratios = [a / b for a, b in zip(times[REFERENCE], times[name], strict=True)]
            variants[name]["ratio"] = spread(ratios)
            if hasattr(case, "agreement"):
                variants[name]["agreement"] = case.agreement(outputs[REFERENCE], outputs[name])
    if "compiled" in variants and "warmup_s" in variants["compiled"]:
        saved = 1 / variants["ours"]["pairs_per_s"] - 1 / variants["compiled"]["pairs_per_s"]
        pays = variants["compiled"]["warmup_s"] / saved if saved > 0 else None
        variants["compiled"]["pays_after_pairs"] = pays
    return {"variants": variants}


def _timed(call: Callable[[], object], case: Any) -> tuple[float, object, int]:
    """Return seconds, output and, on CUDA where nothing else is resident, peak bytes of a call."""
    outputs = []
    if not (case.starts_anew and case.device.type == "cuda"):
        return seconds(lambda: outputs.append(call()), case.device), outputs[0], 0
    with PeakMemory(case.device) as memory:
        taken = seconds(lambda: outputs.append(call()), case.device)
    return taken, outputs[0], memory.peak_bytes


def peak_memory(options: Options, name: str) -> int:
    """Return the peak memory of a variant that has a fresh process to itself, in bytes."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak_memory, options, name, torch.get_num_threads()).result()


def _peak_memory(options: Options, name: str, threads: int) -> int:
    torch.set_num_threads(threads)
    use_backend(of_baseline=name == REFERENCE)
    case = CASES[options.what](replace(options, repeat=1))
    with PeakMemory(case.device) as memory:
        call = case.make(name)
        for _ in range(2):  # the optimiser's state appears with the first step
            call()
    return memory.peak_bytes


def profile(call: Callable[[], object], device: torch.device) -> list[dict[str, Any]]:
    """Run a variant under the profiler, print its costs, and return the largest."""
    from torch.profiler import ProfilerActivity

    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if device.type == "cuda" else []
    use_backend(of_baseline=False)
    call()
    with torch.profiler.profile(activities=activities) as profiler:
        call()
    rows = profiler.key_averages()
    key = f"self_{'device' if device.type == 'cuda' else 'cpu'}_time_total"
    print(rows.table(sort_by=key, row_limit=PROFILE_ROWS, max_name_column_width=40))
    total = sum(getattr(row, key) for row in rows) or 1
    largest = sorted(rows, key=lambda row: -getattr(row, key))[:PROFILE_ROWS]
    return [
        {
            "name": row.key,
            "calls": row.count,
            "self_ms": getattr(row, key) / 1000,
            "share": getattr(row, key) / total,
        }
        for row in largest
    ]


if __name__ == "__main__":
    run(main)
