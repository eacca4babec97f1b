"""Options of the scripts, and the way errors are shown."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import label
import test as predict
import train
from datasets.classes import PRESETS
from engine.config import REPO, LabelConfig, TrainConfig
from tools import check_data, compose_pairs, demo, make_sample_data, report, score
from utils import cli
from utils.errors import DataError, OptionError, UserError, one_line
from utils.files import DATES, LABELS, output_path


@pytest.mark.parametrize(
    ("script", "defaults"),
    [
        ("train.py", {
            "--model": "pspnet", "--backbone": "hrnet_w18", "--batch-size": "8", "--epochs": "30",
            "--val-batch-size": "16", "--lr": "1.5e-4", "--weight-decay": "1e-4",
            "--data-root": "data/dataset", "--outdir": "outdir",
            "--pretrained-dir": "data/pretrained_models",
        }),
        ("label.py", {"--test-batch-size": "16", "--vote": "hard", "--tta": "on"}),
        ("test.py", {"--test-batch-size": "16", "--split": "test", "--compile": "auto"}),
    ],
)  # fmt: skip
def test_help_starts_at_once_and_tells_the_published_defaults(script, defaults):
    code = f"""
import runpy, sys
sys.argv = ['{script}', '--help']
try:
    runpy.run_path('{script}', run_name='__main__')
finally:
    heavy = {{'torch', 'timm', 'numpy', 'albumentations'}} & set(sys.modules)
    print('heavy:', sorted(heavy), file=sys.stderr)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {script}")
    assert "example" in done.stdout
    assert done.stderr == "heavy: []\n"
    options = " ".join(done.stdout.partition("\n\n")[2].split())
    for option, default in defaults.items():
        text = options.split(f" {option}", maxsplit=1)[1]
        assert text.split("(default: ")[1].startswith(default), option


@pytest.mark.parametrize(
    ("script", "options"),
    [
        (train, ["--batch-size", "0"]),
        (train, ["--epochs", "two"]),
        (train, ["--lr", "nan"]),
        (train, ["--model", "unet"]),
        (train, ["--class-weights", "1,,2"]),
        (train, ["--crop-size", "1.5"]),
        (train, ["--seed", str(2**70)]),
        (train, ["--light"]),
        (train, ["--threads", "0"]),
        (train, ["--change-weight", "much"]),
        (train, ["--change-sampling", "0"]),
        (train, ["--recipe", "secret"]),
        (train, ["--crops-per-image", "2"]),
        (train, ["--name", "../a"]),
        (train, ["--name", "a_latest"]),
        (train, ["--compile", "--checkpoint-activations"]),
        (train, ["--pseudo-label-root", "masks"]),
        (label, ["--vote", "loud"]),
        (label, ["--vote", "soft", "--min-confidence", "1.5"]),
        (label, ["--min-confidence", "0.5"]),
        (label, ["--decode", "joint"]),
        (predict, ["--time-limit", "0"]),
        (predict, ["--split", "train"]),
    ],
)
def test_bad_options_are_one_line_and_status_2(script, options, monkeypatch, capsys, tmp_path):
    argv = ["--data-root", str(tmp_path / "none"), *options]
    monkeypatch.setattr(sys, "argv", ["x.py", *argv])
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: script.main(argv))
    assert stop.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in message and "none" not in message  # not the data set's


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DataError("a.png: broken"), "a.png: broken"),
        (DataError("first\n  second\n"), "first second"),
        (DataError(""), "DataError"),
        (
            DataError(
                "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent "
                'call last):\n  File "x.py", line 1, in f\nutils.errors.DataError: a: b: c\n'
            ),
            "a: b: c",
        ),
    ],
)
def test_one_line(error, line):
    assert one_line(error) == line


def ended(work: Callable[[], object], monkeypatch, capsys, *options: str) -> tuple[int, str]:
    """Return the status and what is said of a main that fails."""
    monkeypatch.setattr(sys, "argv", ["train.py", *options])
    with pytest.raises(SystemExit) as stop:
        cli.run(work)
    return stop.value.code, capsys.readouterr().err


def raising(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("a.png: broken;\n  copy it"), 2, "error: a.png: broken; copy it\n"),
        (OptionError("--lr: no"), 2, "error: --lr: no\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to"), 2, "error: out of memory (CUDA"),
        (RuntimeError("DefaultCPUAllocator: can't"), 2, "error: out of memory (DefaultCPUAll"),
    ],
)
def test_an_error_of_users_is_one_line_and_a_status(error, status, said, monkeypatch, capsys):
    code, err = ended(raising(error), monkeypatch, capsys)
    assert code == status and err.startswith(said) and len(err.splitlines()) == 1
    assert ("--batch-size" in err) == ("out of memory" in err)
    with pytest.raises(type(error)):
        ended(raising(error), monkeypatch, capsys, "--debug")


def test_a_broken_cache_of_the_compiler_is_one_line_and_status_2(monkeypatch, capsys):
    def load_broken(graph: object, inputs: object) -> None:
        raise ImportError("a.main.so: file too short")

    def compiled() -> None:
        torch.compile(lambda x: x + 1, backend=load_broken)(torch.ones(1))

    status, err = ended(compiled, monkeypatch, capsys)
    assert status == 2
    assert err.startswith(
        "error: compiling failed (ImportError: a.main.so: file too short); remove "
    )
    assert err.endswith("do without: no --compile in training, --compile off elsewhere\n")


def test_other_errors_are_not_hidden(monkeypatch, capsys):
    with pytest.raises(ZeroDivisionError):
        ended(raising(ZeroDivisionError()), monkeypatch, capsys)
    cli.run(lambda: 3)
    assert capsys.readouterr() == ("", "")


def printed(text: str, encoding: str) -> bytes:
    raw = io.BytesIO()
    stream = cli._SafeStream(io.TextIOWrapper(raw, encoding=encoding))
    print(text, file=stream, flush=True)
    return raw.getvalue()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\x1b[2J\x07\r\x7f\x9b", r"a\x1b[2J\x07\r\x7f\x9b"),
        ("\u202egnp.exe\u2066\u200f\u061c\u2028", r"\u202egnp.exe\u2066\u200f\u061c\u2028"),
        ("a\tb\n→ ü 中 \u200d", "a\tb\n→ ü 中 \u200d"),
        ("\udcff", r"\udcff"),  # a byte of a file name that is no UTF-8
    ],
)
def test_no_name_steers_the_terminal(name, shown):
    assert printed(name, "utf-8") == f"{shown}\n".encode()
    assert printed(name, "ascii") == f"{shown}\n".encode("ascii", "backslashreplace")


@pytest.mark.parametrize(
    "streams", [">&- 2>&- <&-", ">/dev/full 2>/dev/full", "| true", "2>&1 | true"]
)
def test_work_goes_on_where_nothing_can_be_printed(streams, tmp_path):
    code = """
import sys
from utils import cli
def main():
    for line in range(20000):
        print(line, flush=line % 2)
    print("said", file=sys.stderr, flush=True)
    with open(sys.argv[1], "w") as file:
        file.write(str(file.fileno() > 2))
    raise cli.UserError("no")
cli.run(main)
"""
    command = f'{{ "$0" -c "$1" "$2"; echo $? >"$3"; }} {streams}'
    out, status = tmp_path / "out", tmp_path / "status"
    argv = ["sh", "-c", command, sys.executable, code, str(out), str(status)]
    subprocess.run(argv, check=False, cwd=REPO, timeout=60)
    assert (out.read_text(), status.read_text()) == ("True", "2\n")


# --- --config -------------------------------------------------------------------------------


def write_json(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_options_come_from_a_file_and_the_command_line_wins(tmp_path):
    given = {
        "model": "fcn", "epochs": 3, "lr": 0.5, "bands": (4,), "class_weights": (2.0,),
        "tta": True, "tensorboard": False, "crop_size": 64, "val_list": tmp_path / "a.txt",
    }  # fmt: skip
    wanted = TrainConfig(**given)
    once = {"resume": "auto", "load_from": "a.pth", "debug": True, "dry_run": True}
    path = write_json(tmp_path / "a.json", json.dumps(wanted.to_dict() | once))
    assert cli.parse(TrainConfig, ["--config", path]) == replace(wanted, config=Path(path))
    argv = ["--epochs", "5", "--config", path, "--no-tta", "--bands", "2"]
    found = cli.parse(TrainConfig, argv)
    assert (found.epochs, found.tta, found.bands, found.lr) == (5, False, (1, 2), 0.5)
    text = '{"checkpoints": ["a.pth", "b.pth"], "tta": false}'
    found = cli.parse(LabelConfig, ["--config", write_json(tmp_path / "b.json", text)])
    assert [str(p) for p in found.checkpoints] == ["a.pth", "b.pth"] and found.tta is False


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"epoch": 3}', "unknown option --epoch; did you mean --epochs?"),
        ('{"epoch": null}', "unknown option --epoch; did you mean --epochs?"),
        ('{"epochs": "ten"}', "argument --epochs: 'ten' is not a whole number"),
        ('{"epochs": [1, 2]}', "[1, 2] is no value of --epochs"),
        ('{"epochs": true}', "true is no value of --epochs"),
        ('{"tta": "yes"}', '"yes" is no value of --tta'),
        ('{"bands": 3.5}', "3.5 is no value of --bands"),
        ('{"model": {"a": 1}}', "is no value of --model"),
        ('{"model": "unet"}', "argument --model: invalid choice: 'unet'"),
        ("[1]", "not options"),
        ('{"epochs": ', "cannot be read as JSON"),
        (None, "cannot be read as JSON (No such file or directory)"),
    ],
)
def test_mistakes_in_a_file_of_options_are_one_line(text, said, tmp_path, capsys):
    path = tmp_path / "a.json"
    if text is not None:
        write_json(path, text)
    with pytest.raises(SystemExit):
        cli.parse(TrainConfig, ["--config", str(path)])
    [line] = capsys.readouterr().err.splitlines()
    assert f"error: {path}: " in line and said in line


@pytest.mark.parametrize(
    ("tool", "options"),
    [
        (check_data, "{set} --outdir {place}"),
        (check_data, "other --convert {place}"),
        (compose_pairs, "--images a --masks b --out {place}"),
        (make_sample_data, "{place}"),
        (make_sample_data, "--out {place}"),
        (score, "--prediction a --label b --json {place}"),
        (score, "--prediction a --label b --csv {place}"),
        (report, "run --out {place}"),
        (demo, "--outdir {place}"),
    ],
)
def test_tools_write_nothing_among_the_files_of_a_data_set(tool, options, tmp_path, capsys):
    for name in ("train/im1", "train/im2", "train/label1", "test/im1", "test/im2"):
        (tmp_path / "set" / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "set" / "train" / "im1")
    for place in ("set/train/im1/a.png", "set/train/im1", "set/train/new", "set/test/x", "link/x"):
        words = options.format(set=tmp_path / "set", place=tmp_path / place).split()
        with pytest.raises(SystemExit):
            tool.parse_args(words)
        assert "lies in a data set" in capsys.readouterr().err
    for place in ("set/masks", "set/logs/scores.csv", "out/test/x"):
        tool.parse_args(options.format(set=tmp_path / "set", place=tmp_path / place).split())


def test_folders_of_flat_public_sets_are_known_as_such(tmp_path):
    forms = [form for preset in PRESETS.values() for form in preset.forms]
    forms = [form for form in forms if not any("/" in name for name in form.values())]
    assert {(form["im1"], form["im2"]) for form in forms} == set(DATES)
    labels = {name for form in forms for key, name in form.items() if key not in ("im1", "im2")}
    assert labels == set(LABELS)
    (tmp_path / "masks/test/im1").mkdir(parents=True)  # outputs are none
    (tmp_path / "masks/test/im2").mkdir()
    assert output_path(str(tmp_path / "masks/test/scores.json"))
