"""What a machine can do, and what time and memory a call takes on it."""

import os
import platform
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from engine.runtime import set_backend_options
from utils.parallel import give_back_freed_memory

RATE_SIDES, COPY_BYTES = (2048, 8192), (2**28, 2**31)  # on a CPU, on a GPU
REPETITIONS = 8
UNITS = ("amx_bf16", "avx512_bf16", "avx512_f", "avx2")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return the class of machine, versions and thread count."""
    able, cpu = torch.cpu.get_capabilities(), None
    affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    with suppress(OSError):
        cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    machine = {
        "cpu": cpu[1].strip() if cpu else platform.processor() or platform.machine(),
        "cores": len(affinity(0)),
        "threads": torch.get_num_threads(),
        "ram_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "units": [unit for unit in UNITS if able.get(unit)],
        "device": device.type,
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        machine |= {"gpu": gpu.name, "gpu_memory_gb": round(gpu.total_memory / 1e9)}
    return machine


def record(times: list[float], work: Callable, *arguments: object) -> object:
    """Return ``work(*arguments)``, and append the seconds that it takes to ``times``."""
    started = time.perf_counter()
    result = work(*arguments)
    times.append(time.perf_counter() - started)
    return result


def timed(work: Callable[[], object], device: torch.device) -> tuple[float, object]:
    """Return the wall-clock time of a call, device work included, and what it returns."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    wait(device)
    started = time.perf_counter()
    output = work()
    wait(device)
    return time.perf_counter() - started, output


def use_backend(of_baseline: bool) -> None:
    """Set what belongs to the whole process, as the next variant has it.

    The baseline runs with the framework's values, and without the memory that ours has kept.
    """
    if not of_baseline:
        set_backend_options()
        return
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = False
    give_back_freed_memory()


def measured_rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Return the rates of a large matrix product (FLOP/s) and copy (bytes/s, read and written)."""
    set_backend_options()
    side, size = RATE_SIDES[device.type == "cuda"], COPY_BYTES[device.type == "cuda"]
    a, b, out = (torch.rand(side, side, device=device).to(dtype) for _ in range(3))
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    product_s, copy_s = (
        min(timed(work, device)[0] for _ in range(REPETITIONS))
        for work in (lambda: torch.mm(a, b, out=out), lambda: target.copy_(source))
    )
    return 2 * side**3 / product_s, 2 * size / copy_s


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Return how much memory a call takes at the most; 0 where no system tells.

    On CUDA all that is allocated at the peak; on a CPU how far the process's resident memory rises
    above what it is at the start, so that the process should do nothing else.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak so far
    except OSError:
        return 0
    start = _peak_resident_bytes()
    work()
    return _peak_resident_bytes() - start


def _peak_resident_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status)[1])
