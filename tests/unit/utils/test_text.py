"""Progress where stderr is a file."""

import re
import time

from utils.text import plural, progress


def slow(items):
    for item in items:
        yield item
        time.sleep(0.01)


def test_progress_is_lines_in_a_file(capsys):
    assert list(slow(progress(range(60), "train 1/3", first_s=0.1))) == list(range(60))
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 3  # the next one after as much again as has passed
    found = re.fullmatch(r"train 1/3: (\d+) of 60, +\d+\.\d\dbatch/s, 00:00 left", lines[0])
    assert found and 2 <= int(found[1]) <= 11


def test_progress_without_a_length_and_over_soon(capsys):
    assert list(progress(iter("ab"), "read")) == ["a", "b"]
    assert capsys.readouterr().err == ""
    assert list(slow(progress(iter("abcdefgh"), "read", unit="pair", first_s=0.01)))
    assert re.match(r"read: \d of \?, ", capsys.readouterr().err)


def test_numbers_of_things():
    assert (plural(1, "view"), plural(6, "view"), plural(0, "class")) == (
        *("1 view", "6 views"),
        "0 classes",
    )
