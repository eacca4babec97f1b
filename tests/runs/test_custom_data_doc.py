"""docs/custom_data.md: every command runs, every named file exists."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from tests.helpers.image_files import read
from tests.helpers.one_date_scenes import SIDE, save, single_date_set
from tests.helpers.pages import SCRIPTS, assert_files_exist, command_lines, load, read_page
from tools import make_sample_data

PAGE = read_page("docs/custom_data.md")
# The commands of docs/custom_data.md, as written but for sizes and what a test can afford.
SMALL = {"hrnet_w18": "test_convnext", "400": "12", "100": "4", "256": "64"}
FAST = ["--workers", "0", "--amp", "off", "--device", "cpu"]


def prepare_doc_data(root: Path) -> None:
    """Pairs with labels 0, 10, … 60; a single-date set; and the JSON files of the page."""
    counts = ["--train-pairs", "10", "--val-pairs", "3", "--size", str(SIDE)]
    make_sample_data.main([str(root / "data" / "raw"), *counts, "--label-format", "index"])
    for path in root.glob("data/raw/*/label[12]/*.png"):
        save(path, 10 * read(path))
    for folder in root.glob("data/raw/*/truth[12]"):
        shutil.rmtree(folder)
    single_date_set(root / "data" / "city")
    (root / "data" / "city" / "classes.json").unlink()
    for name, text in re.findall(r"^`(data/\S+\.json)`\n\n```json\n(.*?)```", PAGE, re.S | re.M):
        (root / name).write_text(text, encoding="utf-8")


def test_every_command_of_the_page_runs(tmp_path, monkeypatch):
    prepare_doc_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    for line in command_lines(PAGE):
        if not line.startswith("python "):
            subprocess.run(["bash", "-c", line], check=True, timeout=20)
            continue
        for word, small in SMALL.items():
            line = re.sub(rf"(?<![a-z0-9]){word}(?![a-z0-9])", small, line)  # noqa: PLW2901
        script, *words = [word for word in shlex.split(line)[1:] if word != "--pretrained"]
        if script in SCRIPTS:
            words += FAST
        if script == "train.py":
            words += ["--epochs", "1", "--batch-size", "4", "--no-tensorboard"]
        result = load(script).main(words)
        assert "check_data" not in script or result == 0, line
    assert len(list(Path("data/own/train/label1").iterdir())) == 10
    assert len(list(Path("outdir/composed/masks/test/im2").iterdir())) == 4
    assert json.loads(Path("outdir/check-list/report.json").read_text())["passed"]


def test_the_page_is_short_and_its_files_exist():
    assert len(PAGE.splitlines()) <= 160
    assert_files_exist(PAGE)
