"""Cores, threads and memory that a container leaves to a program."""

import os
import subprocess
import sys

import pytest

from tests.helpers.processes import REPO
from utils.machine import available_memory, choose_threads, core_limit, usable_cores

CORES = len(os.sched_getaffinity(0))


def write(folder, own, files):
    (folder / "own").write_text(own)
    for name, text in files.items():
        (folder / "sys" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "sys" / name).write_text(text)
    return folder / "own", folder / "sys"


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        ("0::/pod/me\n", {"pod/cpu.max": "50000 100000\n", "pod/me/cpu.max": "max 100000\n"}, 0.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, CORES),
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, CORES),
        # v1 within a container: the path is the host's, the mount the container's own.
        (
            "5:cpu,cpuacct:/docker/a:b\n4:memory:/docker/a:b\n",
            {"cpu/cpu.cfs_quota_us": "75000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            0.75,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "1\n"}, CORES),
        ("", {}, CORES),
    ],
)
def test_the_quota_limits_the_cores(own, files, limit, tmp_path):
    assert core_limit(*write(tmp_path, own, files)) == limit


@pytest.mark.parametrize(
    ("own", "files"),
    [
        (
            "0::/a\n",
            {
                "a/memory.max": "3000\n",
                "a/memory.current": "2500\n",
                "a/memory.stat": "anon 5\ninactive_file 1500\n",
                "memory.max": "max\n",
            },
        ),
        (
            "4:memory:/a\n",
            {
                "memory/memory.limit_in_bytes": "3000\n",
                "memory/memory.usage_in_bytes": "2500\n",
                "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 1500\n",
            },
        ),
    ],
)
def test_memory_that_is_left(own, files, tmp_path):
    assert available_memory(*write(tmp_path, own, files)) == 2000
    assert 10**6 < available_memory(tmp_path / "none", tmp_path) < 10**14


def test_shares_of_processes(monkeypatch):
    assert usable_cores(1, most=1000) == int(max(1, core_limit()))
    assert usable_cores(1000) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert choose_threads(5, 1) == (5, "")


def test_threads_are_fewer_where_other_programs_are_busy():
    code = """
import time
from utils.machine import choose_threads, first_look
first_look()
time.sleep(1)
print(*choose_threads(1000, 1))
"""
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    loops = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(CORES)]
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO,
            env=env,
        )  # fmt: skip
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    threads, said = done.stdout.split(maxsplit=1) if CORES > 1 else (1, "others take")
    assert int(threads) < max(2, CORES)
    assert said.startswith("others take")
