"""train.py: --name, --config, --dry-run, --val-every, --crops-per-image, memory and threads."""

import csv
import json

import pytest
import torch

import label
import train
from engine.state import TrainState
from tests.helpers.faults import CrashError, before_step, crash
from tests.helpers.runs import assert_same_values, best_files, options, train_options
from utils.errors import OptionError
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
    for step in (4, 5):  # in an epoch without validation, and in the one after it
        outdir = f"half{step}"
        with pytest.MonkeyPatch.context() as patch, pytest.raises(CrashError):
            before_step(patch, step + 3, crash)
            train.main(argv(outdir, "--checkpoint-every", 1))
        train.main(argv(outdir, "--resume"))
        states = [
            read_checkpoint(tmp_path / each / "models/a_latest.pth") for each in (outdir, "whole")
        ]
        assert states[0].pop("run")[:2] == states[1].pop("run")[:2] == "a_"
        assert_same_values(*states)


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
    assert " or --batch-size " in warning and "--accumulate " in warning
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_repeated_from_its_options(sample_root, tmp_path, monkeypatch):
    argv = train_options(sample_root, tmp_path / "a", "--seed", 5)
    first = train.main(argv)
    [path] = tmp_path.glob("a/logs/*/options.json")
    monkeypatch.chdir(tmp_path)
    assert train.main(["--config", str(path), "--outdir", "b", "--no-tensorboard"]) == first
    [again] = tmp_path.glob("b/logs/*/options.json")
    kept, found = (json.loads(each.read_text()) for each in (path, again))
    assert {k for k in kept if kept[k] != found[k]} == {"config", "outdir"}


def test_a_resumed_run_keeps_its_threads(half_outdir, fcn_run, tmp_path, monkeypatch, capsys):
    state = read_checkpoint(fcn_run.outdir / "models" / f"{fcn_run.best.stem[:-6]}_latest.pth")
    assert state["training"]["threads"] == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    torch.set_num_threads(2)
    try:
        (tmp_path / "models").mkdir()
        latest = next((half_outdir / "models").glob("*_latest.pth"))
        (tmp_path / "models" / latest.name).write_bytes(latest.read_bytes())
        train.main(fcn_run.argv(tmp_path, "--resume"))
        assert "1 thread (as the run to resume had)" in capsys.readouterr().out
        (tmp_path / "models" / latest.name).write_bytes(latest.read_bytes())
        train.main(fcn_run.argv(tmp_path, "--resume", "--threads", 2))
        assert "the run to resume had 1 thread; last digits differ" in capsys.readouterr().out
    finally:
        torch.set_num_threads(1)


def test_the_estimate_of_memory_changes_nothing(fcn_run, sample_root, tmp_path, monkeypatch):
    """Weights, statistics and random state of the first step are those without an estimate."""
    seen = {}

    def note(name):
        def begin(self):
            seen[name] = {k: v.clone() for k, v in self.model.state_dict().items()}
            seen[name]["rng"] = torch.get_rng_state()
            raise CrashError

        return begin

    for name in ("with", "without"):
        with monkeypatch.context() as patch, pytest.raises(CrashError):
            patch.setattr(TrainState, "begin_epoch", note(name))
            if name == "without":
                patch.setattr("engine.state.measure_footprint", lambda *_: (0.0, 0.0, 0.0))
            train.main(train_options(sample_root, tmp_path))
    assert_same_values(seen["with"], seen["without"])
