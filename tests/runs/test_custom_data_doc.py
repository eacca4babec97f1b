"""docs/custom_data.md: every command runs, every named file exists."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from tests.helpers.image_files import read
from tests.helpers.one_date_scenes import SIDE, save, single_date_set
from tools.scenes.sample import SampleSet, write_sample_data

DOC = Path(__file__).resolve().parents[2] / "docs" / "custom_data.md"


# The commands of docs/custom_data.md, as written but for sizes and what a test can afford.
SMALL = {"hrnet_w18": "mobilenetv3_small_050", "400": "12", "100": "4", "256": "64"}
FAST = ["--workers", "0", "--amp", "off", "--device", "cpu"]


def doc_commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", DOC.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def prepare_doc_data(root: Path) -> None:
    """Pairs with labels 0, 10, … 60; a single-date set; and the JSON files of the page."""
    write_sample_data(root / "data" / "raw", SampleSet(10, 3, SIDE, SIDE, 0, "index"))
    for path in root.glob("data/raw/*/label[12]/*.png"):
        save(path, 10 * read(path))
    for folder in root.glob("data/raw/*/truth[12]"):
        shutil.rmtree(folder)
    single_date_set(root / "data" / "city")
    (root / "data" / "city" / "classes.json").unlink()
    page = DOC.read_text(encoding="utf-8")
    for name, text in re.findall(r"^`(data/\S+\.json)`\n\n```json\n(.*?)```", page, re.S | re.M):
        (root / name).write_text(text, encoding="utf-8")


def test_every_command_of_the_page_runs(tmp_path, monkeypatch):
    prepare_doc_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    for line in doc_commands():
        if not line.startswith("python "):
            subprocess.run(["bash", "-c", line], check=True, timeout=20)
            continue
        for word, small in SMALL.items():
            line = re.sub(rf"(?<![a-z0-9]){word}(?![a-z0-9])", small, line)  # noqa: PLW2901
        script, *words = [word for word in shlex.split(line)[1:] if word != "--pretrained"]
        if script in ("train.py", "label.py", "test.py"):
            words += FAST
        if script == "train.py":
            words += ["--epochs", "1", "--batch-size", "4", "--no-tensorboard"]
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        result = module.main(words)
        assert "check_data" not in script or result == 0, line
    assert len(list(Path("data/own/train/label1").iterdir())) == 10
    assert len(list(Path("outdir/composed/masks/test/im2").iterdir())) == 4
    assert json.loads(Path("outdir/check-list/report.json").read_text())["passed"]


def test_the_page_is_short_and_its_files_exist():
    text = DOC.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 160
    for name in re.findall(r"(?:tools|tests)/\w+\.py", text):
        assert (DOC.parents[1] / name).exists(), name
