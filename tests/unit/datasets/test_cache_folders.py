"""Caches in shared memory go with their program, or with the next one after a killed one."""

import atexit
import os
import signal
import time
from pathlib import Path

import pytest

from datasets import cache
from datasets.cache import LOCK, cache_folder
from tests.helpers.processes import Child, ended, eventually


@pytest.fixture
def memory(tmp_path, monkeypatch) -> Path:
    """A folder that stands for the shared memory."""
    folder = tmp_path / "memory"
    folder.mkdir()
    monkeypatch.setattr(cache, "SHARED_MEMORY", folder)
    return folder


def hold(memory: Path) -> None:
    """Take a folder as a program does that has a forked reader, and stay."""
    cache.SHARED_MEMORY = memory
    folder = cache_folder("ram", memory)
    (folder / "decoded.bin").write_bytes(b"0" * 1000)
    if os.fork() == 0:
        (folder / "reader").touch()
    time.sleep(300)


def test_the_folder_of_a_killed_program_goes_and_that_of_a_running_one_stays(memory, tmp_path):
    with ended(Child(tmp_path / "printed", hold, memory)) as child:
        eventually(lambda: list(memory.glob("*/reader")))
        (held,) = memory.iterdir()
        own = cache_folder("ram", tmp_path)
        assert set(memory.iterdir()) == {held, own}
        child.send(signal.SIGKILL)  # its reader goes on
        assert child.wait() == -signal.SIGKILL
        assert (held / "decoded.bin").exists()
        other = cache_folder("ram", tmp_path)
        assert set(memory.iterdir()) == {own, other}


def test_a_program_that_ends_removes_its_folder(memory, tmp_path, monkeypatch):
    at_exit = []
    monkeypatch.setattr(atexit, "register", lambda *call: at_exit.append(call))
    (folder,) = {cache_folder("ram", tmp_path), *memory.iterdir()}
    (folder / "decoded.bin").write_bytes(b"0")
    for function, *arguments in at_exit:
        function(*arguments)
    assert list(memory.iterdir()) == []


def test_only_folders_of_ones_own_with_a_lock_are_removed(memory, tmp_path, monkeypatch):
    left = memory / "scd-cache-left"
    left.mkdir()
    (left / LOCK).touch()
    (memory / "scd-cache-older").mkdir()
    (memory / "other").mkdir()
    (memory / "scd-cache-link").symlink_to(memory / "other")
    (memory / "other" / LOCK).touch()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: left.stat().st_uid + 1)
        cache_folder("ram", tmp_path)
        assert left.exists()
    cache_folder("ram", tmp_path)
    assert not left.exists()
    assert {"scd-cache-older", "other", "scd-cache-link"} <= {p.name for p in memory.iterdir()}
