"""The commands and names on the pages of the documentation, and whether they can be."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from tests.helpers.processes import REPO
from utils.errors import CheckpointError, DataError

SCRIPTS = ("train.py", "label.py", "test.py")


def read_page(name: str) -> str:
    return (REPO / name).read_text(encoding="utf-8")


def command_lines(page: str) -> list[str]:
    """The lines of the page's shell blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def commands(page: str) -> list[list[str]]:
    """The words of each line that starts a Python file or a Slurm job, from its name on."""
    found = []
    for line in command_lines(page):
        words = shlex.split(line, comments=True)
        first = [i for i, word in enumerate(words) if word.endswith((".py", ".sbatch"))]
        if first:
            found.append(words[first[0] :])
    return found


def load(script: str):
    return importlib.import_module(script.removesuffix(".py").replace("/", "."))


def assert_accepted(script: str, arguments: list[str], folder: Path) -> None:
    """Where the options can be, the first thing to fail is the data set, which is not there."""
    where = ["--data-root", str(folder / "none"), "--outdir", str(folder), "--device", "cpu"]
    with pytest.raises((DataError, CheckpointError)):
        load(script).main([*arguments, *where, "--nproc", "1"])


def assert_files_exist(page: str) -> None:
    for name in re.findall(r"(?:tools|docs|tests|utils|engine)/[\w./]+\.\w+", page):
        assert (REPO / name).exists(), name
