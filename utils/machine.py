"""What this machine has to give: cores, threads and memory, within the limits of a container."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path, PurePosixPath

GROUPS = (Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
SHORTEST_LOOK_S = 0.5  # the kernel counts in steps of 10 ms
SPARE = 0.5  # of a core: what always runs beside a program leaves it all cores


def processes_here() -> int:
    """Return how many processes of this run share the machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def usable_cores(processes: int | None = None, most: int = 8) -> int:
    """Return a process's share of the cores that this run may use, from 1 to ``most``."""
    return max(1, min(most, int(core_limit() / (processes or processes_here()))))


def choose_threads(most: int, processes: int) -> tuple[int, str]:
    """Return how many threads each of some processes should compute with, and what lowered it.

    ``OMP_NUM_THREADS`` decides, ``most`` being what torch takes it for; else the share of the cores
    that other programs leave.
    """
    if re.match("[1-9]", os.environ.get("OMP_NUM_THREADS", "")):
        return most, ""
    share, cores, taken = usable_cores(processes, most), len(_own_cores()), others_share()
    free = max(1, min(share, int((cores - taken + SPARE) / processes)))
    return free, f"others take {taken:.1f} of {cores} cores" if free < share else ""


def core_limit(own: Path = GROUPS[0], root: Path = GROUPS[1]) -> float:
    """Return how many cores the affinity and the container's quota allow, a fraction maybe."""
    limit = float(len(_own_cores()))
    for group in _groups("cpu", own, root):
        quota = _numbers(group / "cpu.max")
        quota = quota or _numbers(group / "cpu.cfs_quota_us") + _numbers(
            group / "cpu.cfs_period_us"
        )
        if len(quota) == 2 and min(quota) > 0:
            limit = min(limit, quota[0] / quota[1])
    return limit


def available_memory(own: Path = GROUPS[0], root: Path = GROUPS[1]) -> int | None:
    """Return the bytes that this machine and its container can still give; None if unknown."""
    found = []
    with suppress(OSError, AttributeError):
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        found.append(1024 * int(re.search(r"MemAvailable: +(\d+)", text)[1]))
    names = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
    for group in _groups("memory", own, root):
        for files in names:
            numbers = [number for name in files for number in _numbers(group / name)]
            if len(numbers) == 2:
                with suppress(OSError):  # files that the kernel keeps, and gives up when asked
                    text = (group / "memory.stat").read_text(encoding="ascii")
                    kept = re.findall(r"^(?:total_)?inactive_file (\d+)", text, re.MULTILINE)
                    numbers[1] -= max(map(int, kept), default=0)
                found.append(max(0, numbers[0] - numbers[1]))
    return min(found, default=None)


def _groups(controller: str, own: Path, root: Path) -> Iterator[Path]:
    """Yield the folders of the control groups this process is in, and of those around them."""
    with suppress(OSError):
        for line in own.read_text(encoding="utf-8").splitlines():
            _, names, place = line.split(":", 2)
            if not names or controller in names.split(","):
                path = PurePosixPath("/", place).relative_to("/")
                # In a container the path may be the host's, of which only the top is mounted.
                for group in (path, *path.parents):
                    yield (root / controller if names else root) / group


def _numbers(path: Path) -> list[int]:
    with suppress(OSError, ValueError):  # "max" is no limit
        return [int(word) for word in path.read_text(encoding="ascii").split()]
    return []


def _own_cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


@cache
def first_look() -> tuple[float, float, float]:
    """Look at the clock, the own cores' busy seconds and this program's, when a script starts."""
    return _look()


@cache
def others_share() -> float:
    """Return how many of the own cores other programs kept busy since `first_look`.

    A script's start takes seconds anyway, and the load average would still count what ran a minute
    before. 0 where nothing tells.
    """
    (start, busy, own), (now, busy_now, own_now) = first_look(), _look()
    if now - start < SHORTEST_LOOK_S:
        return 0.0
    return max(0.0, (busy_now - busy - own_now + own) / (now - start))


def _look() -> tuple[float, float, float]:
    ticks, cores = 0, _own_cores()
    with suppress(OSError):
        for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
            core = re.match(r"cpu(\d+) ", line)
            if core and int(core[1]) in cores:
                user, nice, system, _idle, _wait, *interrupts = map(int, line.split()[1:9])
                ticks += user + nice + system + sum(interrupts)
    per_second = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
    return time.monotonic(), ticks / per_second, sum(os.times()[:4])
