import subprocess
import sys
from pathlib import Path

import pytest

from utils.memory import give_back_freed_memory, keep_freed_memory

REPO = Path(__file__).parents[1]
MEGABYTES = 40
PAGES = MEGABYTES << 20 >> 12

# Prints how many pages another tensor of a size costs after some have been freed: each lies a
# little beside the last one's place, until there is room.
SCRIPT = f"""
import resource, sys, torch
from utils import memory
getattr(memory, sys.argv[1])()
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones({MEGABYTES} << 20, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not keep_freed_memory() or not give_back_freed_memory(), reason="needs glibc")
@pytest.mark.parametrize("mode", ["keep_freed_memory", "give_back_freed_memory"])
def test_freed_memory_is_kept_or_given_back(mode):
    command = [sys.executable, "-c", SCRIPT, mode]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPO)
    pages = int(result.stdout)
    assert pages < PAGES / 20 if mode == "keep_freed_memory" else pages > PAGES / 2
