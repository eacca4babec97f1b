"""train.py: --name, --config, --dry-run, --val-every, --crops-per-image, memory and threads."""

import csv
import json

import pytest
import torch

import label
import train
from engine import state
from tests.helpers.faults import CrashError, before_step, crash
from tests.helpers.runs import assert_same_values, best_files, latest_file, options, train_options
from utils.cli import WHY_THREADS
from utils.errors import OptionError, UserError
from utils.tensor_files import read_checkpoint


def rows(outdir):
    [path] = outdir.glob("logs/*/metrics.csv")
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_some_epochs_are_validated_and_a_resume_agrees(sample_root, tmp_path, capsys):
    def argv(outdir, *more):
        own = ("--epochs", 3, "--val-every", 2, "--crop-size", 32, "--crops-per-image", 2)
        return train_options(sample_root, tmp_path / outdir, *own, "--name", "a", *more)

    train.main(argv("whole"))
    printed = capsys.readouterr().out
    assert "3 × 6 steps of 4 pairs" in printed and "IoU: unchanged " in printed
    assert [bool(row["score"]) for row in rows(tmp_path / "whole")] == [False, True, True]
    assert all(float(row["loss_total"]) for row in rows(tmp_path / "whole"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(CrashError):
        before_step(patch, 7, crash)  # after an epoch that was not validated
        train.main(argv("half"))
    train.main(argv("half", "--resume"))
    half, whole = (read_checkpoint(tmp_path / d / "models/a_latest.pth") for d in ("half", "whole"))
    assert half.pop("run")[:2] == whole.pop("run")[:2] == "a_"
    assert_same_values(half, whole)


def test_seeds_live_in_one_folder(sample_root, tmp_path, capsys):
    for seed in (1, 2):
        argv = train_options(sample_root, tmp_path, "--seed", seed, "--name", f"seed_{seed}")
        train.main(argv)
    bests = best_files(tmp_path)
    assert [path.name[:7] for path in bests] == ["seed_1_", "seed_2_"]
    assert read_checkpoint(bests[1])["name"] == "seed_2"
    train.main([*argv, "--resume"])
    assert "resuming seed_2_" in capsys.readouterr().out
    with pytest.raises(OptionError, match="had name seed_2;"):
        train.main([*argv, "--name", "b", "--resume", str(tmp_path / "models/seed_2_latest.pth")])
    label.main(options(sample_root, tmp_path))
    assert "with 2 models" in capsys.readouterr().out


def test_a_dry_run_writes_nothing_and_tells_what_does_not_fit(sample_root, tmp_path, capsys):
    argv = train_options(sample_root, tmp_path / "out", "--dry-run", "--cache", "disk")
    assert train.main(argv) is None
    printed = capsys.readouterr().out
    assert "M parameters, float32, 1 thread, 0 readers; 1 × 3 steps of 4 pairs\n" in printed
    assert " GB free\n" in printed and printed.endswith("nothing was written\n")
    many = ("--crop-size", 64, "--crops-per-image", 10**5, "--batch-size", 10**6)
    train.main([*argv, *map(str, many)])
    warning = capsys.readouterr().out.splitlines()[-2]
    assert warning.startswith("warning: about ")
    assert " of 1000000 pairs at once: --accumulate, a smaller --batch-size" in warning
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/out: no way into .*file; free"):
        train.main([*argv, "--outdir", str(tmp_path / "file/out")])


def test_a_run_is_repeated_from_its_options(sample_root, tmp_path, monkeypatch):
    argv = train_options(sample_root, tmp_path / "a", "--seed", 5)
    first = train.main(argv)
    [path] = tmp_path.glob("a/logs/*/options.json")
    monkeypatch.chdir(tmp_path)
    assert train.main(["--config", str(path), "--outdir", "b", "--no-tensorboard"]) == first
    [again] = tmp_path.glob("b/logs/*/options.json")
    kept, found = (json.loads(each.read_text()) for each in (path, again))
    assert {k for k in kept if kept[k] != found[k]} == {"config", "outdir"}


@pytest.mark.parametrize(
    ("asked", "variable", "threads"), [(None, "", 1), (2, "", 2), (None, "2", 2)]
)
def test_a_resumed_run_keeps_its_threads(
    asked, variable, threads, half_outdir, monkeypatch, capsys
):
    saved = read_checkpoint(latest_file(half_outdir))["training"]["threads"]
    assert saved == 1
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setenv(WHY_THREADS, "")
    torch.set_num_threads(2)
    try:
        state._keep_threads(saved, asked)
        assert torch.get_num_threads() == threads
        noted = "the run to resume had 1 thread; last digits differ" in capsys.readouterr().out
        assert noted == (threads == 2)
    finally:
        torch.set_num_threads(1)
