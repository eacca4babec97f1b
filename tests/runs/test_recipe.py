"""train.py's choices beyond the published recipe, and the way back to it."""

import json
import re

import pytest
import torch

import train
from engine.config import PUBLISHED, LabelConfig, TestConfig, TrainConfig
from engine.data import TrainingData
from tests.helpers.change_sets import leave_unchanged
from tests.helpers.faults import CrashError, before_step, crash
from tests.helpers.runs import (
    EPOCHS,
    assert_same_run,
    latest_file,
    train_options,
)
from tools import make_sample_data
from utils import cli
from utils.errors import OptionError
from utils.tensor_files import read_checkpoint

MORE = ("--change-weight", "auto", "--change-sampling", 2, "--checkpoint-every", 1)


def test_a_crash_leaves_no_trace(broken_root, tmp_path):
    leave_unchanged(broken_root, "00003", "00008")

    def argv(name, *rest):
        return train_options(broken_root, tmp_path / name, "--epochs", EPOCHS, *MORE, *rest)

    train.main(argv("whole"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(CrashError):
        before_step(patch, 5, crash)
        train.main(argv("half"))
    torch.manual_seed(4321)
    train.main(argv("half", "--resume"))
    assert_same_run(tmp_path / "half", tmp_path / "whole")
    with pytest.raises(OptionError, match="had change_sampling 2"):
        train.main(argv("half", "--resume", "--change-sampling", 3))


def test_what_a_run_measured_stays_with_it(sample_root, tmp_path, capsys):
    argv = train_options(sample_root, tmp_path, "--change-weight", "auto")
    train.main(argv)
    assert "of the pixels changed: --change-weight 2.0\n" in capsys.readouterr().out
    state = read_checkpoint(latest_file(tmp_path))
    assert state["training"]["change_weight"] == 2
    torch.save(
        state | {"training": state["training"] | {"change_weight": 7.0}}, latest_file(tmp_path)
    )
    train.main([*argv, "--resume"])
    assert "pixels changed" not in capsys.readouterr().out


def test_pairs_with_change_are_drawn_more_often_in_epochs_as_long(tmp_path, capsys):
    sizes = ("--train-pairs", "40", "--val-pairs", "4", "--size", "32", "--changed", "0.02")
    make_sample_data.main([str(tmp_path / "rare"), *sizes])
    often = ("--change-sampling", 3, "--change-weight", "auto", "--dry-run")
    train.main(train_options(tmp_path / "rare", tmp_path / "out", *often))
    printed = capsys.readouterr().out
    found = int(
        re.search(r"(\d+) of 40 training pairs changed: drawn 3 times as often", printed)[1]
    )
    assert 9 <= found <= 13 and "1 × 10 steps of 4 pairs\n" in printed
    # The weight is that of what is drawn.
    measured = [float(each) for each in re.findall(r"([\d.]+)% of the pixels changed", printed)]
    assert measured[1] == pytest.approx(measured[0] * 3 * 40 / (40 + 2 * found), rel=0.2)


def test_where_all_pairs_changed_none_is_drawn_more_often(sample_root, tmp_path, capsys):
    train.main(train_options(sample_root, tmp_path, "--change-sampling", 2, "--dry-run"))
    said = "12 of 12 training pairs changed: --change-sampling 2 does nothing\n"
    assert said in capsys.readouterr().out
    options = train_options(sample_root, tmp_path, "--change-sampling", 2)
    data = TrainingData.open(cli.parse(TrainConfig, options), torch.device("cpu"))
    assert len(data.train_loader.dataset) == 12


def test_the_published_recipe_is_that_of_its_options(fcn_run, tmp_path):
    # The defaults may be any by then: what the recipe says wins over them.
    train.main(fcn_run.argv(tmp_path / "recipe", "--recipe", "published", "--tensorboard"))
    train.main(fcn_run.argv(tmp_path / "options", "--decode", "independent", "--tensorboard"))
    assert_same_run(tmp_path / "recipe", tmp_path / "options")
    [path] = tmp_path.glob("recipe/logs/*/options.json")
    assert json.loads(path.read_text(encoding="utf-8"))["recipe"] == "published"


def test_an_option_wins_over_the_recipe_and_the_recipe_over_a_file(tmp_path):
    def choices(*argv):
        found = cli.parse(TrainConfig, list(map(str, argv)))
        return found.change_weight, found.change_sampling, found.epochs, found.recipe

    file = tmp_path / "options.json"
    text = '{"change_weight": 3.5, "change_sampling": 4, "epochs": 3}'
    file.write_text(text, encoding="utf-8")
    assert choices("--config", file) == (3.5, 4, 3, None)
    given = ("--config", file, "--recipe", "published", "--change-sampling", 5)
    assert choices(*given) == (2, 5, 3, "published")
    # What a run writes down says what it did, whatever the recipe will be.
    found = cli.parse(TrainConfig, list(map(str, given)))
    file.write_text(json.dumps(found.to_dict() | {"change_weight": 7.0}), encoding="utf-8")
    assert choices("--config", file) == (7, 5, 3, "published")
    for config in (LabelConfig, TestConfig):
        assert cli.parse(config, ["--recipe", "published"]).recipe == "published"


def test_every_choice_of_the_recipe_is_taken():
    found = {}
    for config in (TrainConfig, LabelConfig, TestConfig):
        found |= vars(cli.parse(config, ["--recipe", "published"]))
    assert {name: found.get(name) for name in PUBLISHED} == PUBLISHED
