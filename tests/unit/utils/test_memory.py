"""Whether memory that tensors have freed stays with the process."""

import subprocess
import sys

import pytest

from tests.helpers.processes import REPO
from utils.parallel import give_back_freed_memory, keep_freed_memory

# Prints how many pages another tensor of a size costs after some have been freed: each lies a
# little beside the last one's place, until there is room. Only its first megabytes are touched.
SCRIPT = """
import resource, sys, torch
from utils import parallel
getattr(parallel, sys.argv[1])()
touched = int(sys.argv[2])
for megabytes in map(int, sys.argv[3:]):
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(megabytes << 20, dtype=torch.uint8)[: touched << 20].fill_(1)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not keep_freed_memory() or not give_back_freed_memory(), reason="needs glibc")
@pytest.mark.parametrize("mode", ["keep_freed_memory", "give_back_freed_memory"])
def test_freed_memory_is_kept_or_given_back(mode):
    touched, sizes = 40, (40, 2500)
    command = [sys.executable, "-c", SCRIPT, mode, str(touched), *map(str, sizes)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPO)
    touched_pages = touched << 20 >> 12
    for pages in map(int, result.stdout.split()):
        if mode == "keep_freed_memory":
            assert pages < touched_pages / 20
        else:
            assert pages > touched_pages / 2
    assert len(result.stdout.split()) == len(sizes)
