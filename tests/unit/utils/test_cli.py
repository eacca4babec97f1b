"""Options of the scripts, and the way errors are shown."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from tests.helpers.script_runs import train_argv

import label
import test as predict
import train
from engine.config import REPO
from utils import cli
from utils.errors import OptionError, UserError

SCRIPTS = ("train.py", "label.py", "test.py")


def test_defaults_are_the_published_ones():
    args = train.parse_args([])
    assert args.data_root == REPO / "data" / "dataset"
    assert args.outdir == REPO / "outdir"
    assert args.pretrained_dir == REPO / "data" / "pretrained_models"
    assert (args.model, args.backbone, args.lightweight) == ("pspnet", "hrnet_w18", False)
    assert (args.batch_size, args.val_batch_size, args.epochs) == (8, 16, 30)
    assert (args.lr, args.weight_decay) == (1.5e-4, 1e-4)
    for script in (label, predict):
        args = script.parse_args([])
        assert args.data_root == REPO / "data" / "dataset"
        assert args.test_batch_size == 16
        assert args.checkpoints is None
    assert label.parse_args([]).tta
    assert label.parse_args([]).vote == "hard"


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_starts_without_torch(script):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{script}', '--help']\n"
        "try:\n"
        f"    runpy.run_path('{script}', run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    status = stop.code or 0\n"
        "heavy = {'torch', 'timm', 'numpy', 'albumentations'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy), file=sys.stderr)\n"
        "sys.exit(status)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {script}")
    assert "--data-root" in done.stdout
    assert "example" in done.stdout
    assert done.stderr == "heavy: []\n"


@pytest.mark.parametrize(
    ("script", "options"),
    [
        (train, ["--batch-size", "0"]),
        (train, ["--epochs", "-1"]),
        (train, ["--epochs", "two"]),
        (train, ["--lr", "nan"]),
        (train, ["--lr", "0"]),
        (train, ["--lr", "inf"]),
        (train, ["--weight-decay", "-1"]),
        (train, ["--model", "unet"]),
        (train, ["--class-weights", "1,,2"]),
        (train, ["--class-weights", "1,0,2"]),
        (train, ["--workers", "-1"]),
        (train, ["--crop-size", "1.5"]),
        (train, ["--light"]),
        (label, ["--vote", "loud"]),
        (label, ["--vote", "soft", "--min-confidence", "1.5"]),
        (label, ["--min-confidence", "0.5"]),
        (label, ["--checkpoints"]),
        (predict, ["--time-limit", "0"]),
        (predict, ["--split", "train"]),
        (predict, ["--test-batch-size", "0"]),
    ],
)
def test_bad_options_exit_with_status_2(script, options, capsys):
    with pytest.raises(SystemExit) as stop:
        script.parse_args(options)
    assert stop.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in message


def raising(error: BaseException) -> Callable[[], None]:
    """Return a main that fails."""

    def fail() -> None:
        raise error

    return fail


def test_user_errors_are_one_line_and_status_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py"])

    with pytest.raises(SystemExit) as stop:
        cli.run(raising(UserError("a.png: broken;\n  copy it again")))
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: a.png: broken; copy it again\n"


def test_interruption_is_status_130(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py"])

    with pytest.raises(SystemExit) as stop:
        cli.run(raising(KeyboardInterrupt))
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--debug"])

    with pytest.raises(UserError):
        cli.run(raising(UserError("broken")))


def test_a_broken_cache_of_the_compiler_is_one_line_and_status_2(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["test.py"])
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def load_broken(graph: object, inputs: object) -> None:
        raise ImportError("a.main.so: file too short")

    def compiled() -> None:
        torch.compile(lambda x: x + 1, backend=load_broken)(torch.ones(1))

    with pytest.raises(SystemExit) as stop:
        cli.run(compiled)
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"error: compiling failed (ImportError: a.main.so: file too short); remove {tmp_path}, "
        "where a killed program may have left a broken file, or do without: no --compile in "
        "training, --compile off elsewhere\n"
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "CUDA out of"),
        (RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory"), "[enforce"),
    ],
)
def test_too_little_memory_is_one_line_and_status_2(error, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py"])

    with pytest.raises(SystemExit) as stop:
        cli.run(raising(error))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: out of memory ({said}")
    assert "--batch-size" in line


def test_other_errors_are_not_hidden(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])

    with pytest.raises(ZeroDivisionError):
        cli.run(raising(ZeroDivisionError))


def test_unknown_device_is_an_error(sample_root, tmp_path):
    with pytest.raises(OptionError, match="--device tpu: not usable here"):
        train.main(train_argv(sample_root, tmp_path, "--device", "tpu"))
