"""tools/check_data.py."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from datasets.classes import SECOND_CLASSES
from tests.helpers.damages import disagree, flipped_leak, foreign_colors, same_dates
from tests.helpers.image_files import read
from tools import check_data
from utils.errors import UserError


def test_tool_on_a_clean_set(sample_root, tmp_path, capsys):
    assert check_data.main([str(sample_root), "--outdir", str(tmp_path), "--strict"]) == 0
    out = capsys.readouterr().out
    assert "train 12 12 64 × 64" in " ".join(out.split())
    assert "0 kinds of errors, 0 kinds of warnings" in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"] is True and report["findings"] == []
    assert report["splits"]["val"]["pairs"] == 4
    assert report["splits"]["train"]["label_pixels_read"] == 12 * 64 * 64
    assert report["folders"]["train/label1"]["label_formats"] == {"RGB in class colours": 12}
    assert not (tmp_path / "suspicious.png").exists()
    pytest.importorskip("matplotlib")
    for name in ("transitions.png", "classes.png"):
        assert Image.open(tmp_path / name).width > 400


def test_tool_names_files_and_remedy_and_fails(broken_root, tmp_path, capsys):
    same_dates(broken_root)
    argv = [str(broken_root), "--outdir", str(tmp_path / "out")]
    assert check_data.main(argv) == 0
    assert check_data.main([*argv, "--strict"]) == 1
    disagree(broken_root)
    flipped_leak(broken_root)
    assert check_data.main(argv) == 1
    out = capsys.readouterr().out
    assert "ERROR labels-disagree, 2 ×: pairs whose two labels disagree on what changed" in out
    assert "train/label1/00003.png + train/label2/00003.png" in out
    assert "--resolve-disagreement" in out
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["passed"] is False
    levels = {finding["kind"]: finding["level"] for finding in report["findings"]}
    assert levels["labels-disagree"] == "error" and levels["leak-near"] == "warning"
    assert Image.open(tmp_path / "out/suspicious.png").width > 5 * 170


def test_tool_notes_missing_matplotlib(sample_root, tmp_path):
    """In a process of its own: this one may have imported it."""
    code = "import sys; sys.modules['matplotlib.figure'] = None; from tools import check_data; "
    code += f"check_data.main([{str(sample_root)!r}, '--outdir', {str(tmp_path)!r}])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    assert b"matplotlib is missing; pip install matplotlib" in out.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_tool_converts_and_says_what_is_left_out(broken_root, tmp_path, capsys):
    foreign_colors(broken_root)
    out, outdir = tmp_path / "out", tmp_path / "check"
    options = [str(broken_root), "--convert", str(out), "--outdir", str(outdir)]
    assert check_data.main(options) == 1
    printed = capsys.readouterr().out
    assert "left out: train/im1/00003.png: label2/00003.png: foreign colours" in printed
    assert "15 pairs written" in printed
    assert json.loads((outdir / "convert.json").read_text())["written"] == 15
    shutil.rmtree(out)
    class_map = {name: name for name in SECOND_CLASSES.names} | {"#ff8000": "unchanged"}
    (tmp_path / "map.json").write_text(json.dumps(class_map))
    options += ["--class-map", str(tmp_path / "map.json"), "--resolve-disagreement"]
    assert check_data.main(options) == 0
    assert not read(out / "train/label2/00003.png")[:9, :9].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--class-map m.json", "--class-map is for --convert OUT"),
        ("--val-list no.txt", "cannot be read"),
        ("--train-list no.txt", "needs --val-list"),
        ("--convert {root}/x", "inside or around the source"),
        ("--convert {tmp}/x --classes third", "neither second nor"),
        *(
            (f"--convert {{tmp}}/x {given}", f"{given.split()[0]} is for a check; --convert takes")
            for given in ("--strict", "--bands 4", "--hash-distance 0", "--val-list a", "--fold 0")
        ),
    ],
)
def test_wrong_use_is_a_user_error(options, message, sample_root, tmp_path):
    argv = options.format(root=sample_root, tmp=tmp_path).split()
    with pytest.raises(UserError, match=message):
        check_data.main([str(sample_root), *argv, "--outdir", str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())


def test_conversion_to_another_class_list_needs_a_map(custom_root, tmp_path):
    argv = [str(custom_root), "--outdir", str(tmp_path / "log"), "--convert", str(tmp_path / "a")]
    with pytest.raises(UserError, match=r"--classes second: .*classes.json lists other classes"):
        check_data.main([*argv, "--classes", "second"])
    assert not list(tmp_path.iterdir())
    assert check_data.main([*argv, "--classes", str(custom_root)]) == 0
    names = {"same": "unchanged", "open": "ground", "built": "building"}
    (tmp_path / "map.json").write_text(json.dumps(names))
    argv[-1] = str(tmp_path / "b")
    options = ["--classes", "second", "--class-map", str(tmp_path / "map.json")]
    assert check_data.main([*argv, *options]) == 0
    label = "train/label1/00003.png"
    expected = np.array([0, 2, 5])[read(tmp_path / "a" / label)]
    assert np.array_equal(read(tmp_path / "b" / label), expected)


def test_script_exits_2_with_one_line(tmp_path):
    command = [sys.executable, check_data.__file__, str(tmp_path / "none")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and "no such folder" in result.stderr
    assert result.stderr.count("\n") == 1
