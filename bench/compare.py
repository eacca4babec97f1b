"""Compare this project with the published execution pattern, in alternation in one process.

examples:
  python bench/compare.py --what infer --models 2 --lightweight --size 512 --compile
  python bench/compare.py --what label --size 512 --pairs 16 --out outdir/bench/label-512.json
  python bench/report.py outdir/bench/*.json
"""

import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.profiler import ProfilerActivity

from bench.cases import Case, InferCase, LabelCase, LoadCase, TrainCase
from bench.floor import floor
from bench.machine import describe_machine, peak_bytes, timed, use_backend
from bench.options import REFERENCE, Options
from bench.report import tables
from utils.cli import parse, run
from utils.files import write_json

CASES = {"train": TrainCase, "infer": InferCase, "label": LabelCase, "load": LoadCase}
PROFILE_ROWS = 15


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print a table, write the JSON and return its content."""
    words = sys.argv[1:] if argv is None else argv
    options = parse(Options, words, __doc__)
    case = CASES[options.what](options)
    print(", ".join(f"{key} {value}" for key, value in asdict(options).items()), flush=True)
    # Without folders of this machine.
    words = [Path(word).name if Path(word).is_absolute() else word for word in words]
    result = {
        "what": options.what,
        "machine": describe_machine(case.device),
        "rounds": options.rounds,
        "amp": case.precision.name,
        "command": " ".join(["python bench/compare.py", *words]),
        "options": asdict(options) | {"backbones": options.networks},
        "size": case.size,
        "networks": [asdict(config) for config in case.configs],
        "pairs": case.pairs,
        "variants": measure(case, options),
    }
    has_peak = options.what in ("train", "infer") or case.device.type == "cuda"
    if options.memory and case.configs and has_peak:
        for name, variant in result["variants"].items():
            variant["peak_memory_bytes"] = peak_memory(options, name)
    if case.configs:
        result["floor"] = floor(case)
    result |= case.extras
    if options.profile:
        result["profile"] = profile(case)
    print(tables([result]))
    write_json(options.out, result)
    return result


def measure(case: Case, options: Options) -> dict[str, dict[str, Any]]:
    """Run the variants in turn, ``rounds`` times, and relate each to the baseline of its round.

    Variants that keep their models are run once beforehand; that takes what compiling takes.
    """
    device, calls, outputs = case.device, {}, {}
    names = (REFERENCE, "ours", "compiled") if options.compile else (REFERENCE, "ours")
    variants: dict[str, dict[str, Any]] = {name: {"seconds": []} for name in names}
    for name, variant in variants.items():
        one = case.make(name)
        calls[name] = lambda one=one: [one() for _ in range(options.repeat)][-1]
        use_backend(of_baseline=name == REFERENCE)
        if not case.starts_anew:
            variant["warmup_s"], _ = timed(calls[name], device)
    for number in range(options.rounds):
        for name, variant in variants.items():
            use_backend(of_baseline=name == REFERENCE)  # not on anyone's clock
            taken, outputs[name] = timed(calls[name], device)
            variant["seconds"].append(taken)
        times = ", ".join(f"{name} {v['seconds'][-1]:.3g} s" for name, v in variants.items())
        print(f"round {number + 1}: {times}", flush=True)
    for variant in variants.values():
        variant["pairs_per_s"] = case.pairs / median(variant["seconds"])
    for name in names[1:]:
        both = zip(variants[REFERENCE]["seconds"], variants[name]["seconds"], strict=True)
        ratios = [a / b for a, b in both]
        spread = {"median": median(ratios), "min": min(ratios), "max": max(ratios)}
        variants[name]["ratio"] = spread
        maps = zip(case.maps(outputs[REFERENCE]), case.maps(outputs[name]), strict=True)
        equal = [(a == b).flatten() for a, b in maps]
        if equal:
            variants[name]["agreement"] = torch.cat(equal).double().mean().item()
    if "warmup_s" in variants.get("compiled", {}):
        saved = 1 / variants["ours"]["pairs_per_s"] - 1 / variants["compiled"]["pairs_per_s"]
        pays = variants["compiled"]["warmup_s"] / saved if saved > 0 else None
        variants["compiled"]["pays_after_pairs"] = pays
    return variants


def peak_memory(options: Options, name: str) -> int:
    """Return the peak memory of a variant that has a fresh process to itself, in bytes."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_memory, options, name, torch.get_num_threads()).result()


def _peak_memory(options: Options, name: str, threads: int) -> int:
    torch.set_num_threads(threads)
    use_backend(of_baseline=name == REFERENCE)
    case = CASES[options.what](options)

    def work() -> None:
        call = case.make(name)
        for _ in range(2 if options.what == "train" else 1):  # Adam's state comes with a step
            call()

    return peak_bytes(work, case.device)


def profile(case: Case) -> list[dict[str, Any]]:
    """Run our variant under the profiler, print its costs, and return the largest."""
    call, on_gpu = case.make("ours"), case.device.type == "cuda"
    use_backend(of_baseline=False)
    call()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        call()
    rows = profiler.key_averages()
    key = f"self_{'device' if on_gpu else 'cpu'}_time_total"
    print(rows.table(sort_by=key, row_limit=PROFILE_ROWS, max_name_column_width=40))
    costs = sorted(((getattr(row, key), row.count, row.key) for row in rows), reverse=True)
    total = sum(cost for cost, *_ in costs) or 1
    return [
        {"name": name, "calls": calls, "self_ms": cost / 1000, "share": cost / total}
        for cost, calls, name in costs[:PROFILE_ROWS]
    ]


if __name__ == "__main__":
    run(main)
