"""Files that are whole or absent, and pictures written so."""

import csv
import errno
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from datasets.bands import RGB
from datasets.images import read_bands
from tests.helpers.processes import REPO
from utils.errors import DataError, UserError
from utils.files import atomic_path, read_json, read_text, remove_leftovers, write_csv, write_text
from utils.locks import exclusive, holder
from utils.pictures import save_image


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("durable", [False, True])
def test_atomic_path_makes_folders_and_replaces(tmp_path, durable):
    path = tmp_path / "a" / "b" / "file.txt"
    for text in ("old", "new"):
        with atomic_path(path, durable) as temporary:
            assert temporary.parent == path.parent
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "old"
        assert path.read_text() == text
    assert names(path.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt(), DataError("stop")])
def test_atomic_path_keeps_the_old_content_when_the_block_raises(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    for each in (path, tmp_path / "first.txt"):
        with pytest.raises(type(error)), atomic_path(each) as temporary:
            temporary.write_text("half of the ne")
            raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_file_in_the_place_of_a_folder_and_the_reverse(tmp_path):
    (tmp_path / "file").write_text("old")
    for path in (tmp_path / "file" / "a.txt", tmp_path / "file" / "b" / "a.txt"):
        with pytest.raises(UserError, match=f"cannot write {path}: .*change the folder"):
            write_text(path, "new")
    with pytest.raises(UserError, match=f"cannot write {tmp_path}"):
        write_text(tmp_path, "new")
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
@pytest.mark.parametrize("place", [(tempfile, "mkstemp"), (os, "replace")])
def test_folder_that_refuses_files(tmp_path, monkeypatch, number, place):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(*place, refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(UserError) as caught:
        write_text(tmp_path / "file.txt", "new")
    message = str(caught.value)
    assert str(tmp_path / "file.txt") in message and os.strerror(number) in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_written_files_follow_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "file.txt", "70 × 50")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == mode
    assert (tmp_path / "file.txt").read_bytes() == "70 × 50".encode()


def test_what_a_killed_program_leaves_is_removed_when_it_is_old(tmp_path):
    remove_leftovers(tmp_path / "none", 0)
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from utils.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1], '00001.png')) as temporary:\n"
        "    temporary.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    killed = subprocess.run(command, check=False, timeout=60, cwd=REPO)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.glob("*.tmp")
    remove_leftovers(tmp_path, 3600)
    assert left.exists()
    os.utime(left, (0, 0))
    remove_leftovers(tmp_path, 3600)
    assert not left.exists()


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_image_round_trip(tmp_path, shape):
    array = np.rot90(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    save_image(tmp_path / "new" / "a.png", array)
    expected = array if array.ndim == 3 else np.dstack([array] * 3)
    assert np.array_equal(read_bands(tmp_path / "new" / "a.png", RGB), expected)


def test_no_cell_of_a_csv_file_is_a_formula(tmp_path):
    texts = ["=1+1", "+a", "-a", "@a", "\t=a", "\r=a", "＝a"]
    plain = ["a=b", "a,b", 'a"b', "a\nb", "", -1.5, -2, None, "\udcff"]
    write_csv(tmp_path / "a.csv", [{"=old": 0}, *({"=name": cell} for cell in [*texts, *plain])])
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as file:
        found = [cell for (cell,) in csv.reader(file)]
    assert found[:2] == ["'=name", ""]
    assert found[2:] == [f"'{text}" for text in texts] + [
        *("a=b", "a,b", 'a"b', "a\nb", "", "-1.5", "-2", "", r"\udcff")
    ]


def test_special_files_are_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OSError, match=f"no regular file: .*{name}"):
            read_text(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none")


def test_json_nested_too_deeply_is_a_value_error(tmp_path):
    (tmp_path / "a.json").write_text("[" * 10**6)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(tmp_path / "a.json")


def test_a_lock_keeps_others_away_until_its_block_ends(tmp_path):
    lock = tmp_path / "folder" / ".lock"
    with exclusive(lock, "masks"):
        assert f"process {os.getpid()} on " in holder(lock)
        refusal = pytest.raises(UserError, match=r"folder: .* is writing masks there; wait for its")
        with refusal, exclusive(lock, "masks"):
            pass
    assert holder(lock) == ""
    assert not list(lock.parent.iterdir())
    with exclusive(lock, "masks"):
        pass
