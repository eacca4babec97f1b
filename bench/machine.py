"""What a machine can do: its class, its measured matrix rate and copy bandwidth, peak memory."""

import os
import platform
import statistics
import threading
import time
from collections.abc import Callable
from types import TracebackType

import torch

from engine.runtime import set_backend_options
from utils.parallel import give_back_freed_memory

RATE_SIDES = {"cpu": 2048, "cuda": 8192}
COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}
REPETITIONS = 7
RSS_INTERVAL_S = 0.002
UNITS = ("amx_bf16", "avx512_bf16", "avx512_f", "avx2")


def describe_machine(device: torch.device) -> dict:
    """Return the class of machine, versions and thread count."""
    able = torch.cpu.get_capabilities()
    machine = {
        "cpu": _cpu_model(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "ram_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "units": [unit for unit in UNITS if able.get(unit)],
        "device": device.type,
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine["gpu"] = properties.name
        machine["gpu_memory_gb"] = round(properties.total_memory / 1e9)
    return machine


def machine_line(machine: dict) -> str:
    """Return the class of machine as one line."""
    parts = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads",
        f"{machine['ram_gb']} GB",
        "/".join(machine["units"]) or "no vector units",
    ]
    if "gpu" in machine:
        parts.append(f"{machine['gpu']} {machine['gpu_memory_gb']} GB")
    return ", ".join([*parts, f"torch {machine['torch']}"])


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def wait(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the wall-clock time of a call, device work included."""
    wait(device)
    started = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - started


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


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the measured rate of a square matrix product, in FLOP/s."""
    set_backend_options()
    side = RATE_SIDES.get(device.type, RATE_SIDES["cpu"])
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty(side, side, device=device, dtype=dtype)
    return 2 * side**3 / _best_seconds(lambda: torch.mm(a, b, out=out), device)


def copy_bandwidth(device: torch.device) -> float:
    """Return the measured bandwidth of copying a large tensor, in bytes/s, read plus written."""
    size = COPY_BYTES.get(device.type, COPY_BYTES["cpu"])
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _best_seconds(lambda: target.copy_(source), device)


def _best_seconds(work: Callable[[], object], device: torch.device) -> float:
    work()
    return min(seconds(work, device) for _ in range(REPETITIONS))


class PeakMemory:
    """A context that measures how much memory its block takes at the most, in ``peak_bytes``.

    On CUDA all that is allocated at the peak, which is exact; on a CPU how far the process's
    resident memory rises above what it is at the start, sampled every two milliseconds, so that it
    should surround a process's first use of a model.
    """

    def __init__(self, device: torch.device) -> None:
        self.peak_bytes = 0
        self._device = device
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "PeakMemory":
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._start = resident_bytes()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device.type == "cuda":
            self.peak_bytes = torch.cuda.max_memory_allocated(self._device)
        else:
            self._done.set()
            self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(RSS_INTERVAL_S):
            self.peak_bytes = max(self.peak_bytes, resident_bytes() - self._start)


def resident_bytes() -> int:
    """Return this process's resident memory without mapped files; 0 where no system tells."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            _, resident, shared, *_ = map(int, file.read().split())
            return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def spread(values: list[float]) -> dict:
    """Return median, lowest and highest value."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
