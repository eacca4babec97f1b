"""Every command of the README: accepted by its script, and the recipe run on a small set."""

import re

from engine.config import DECODE, DECODINGS, MODELS
from models.decoding import NAMES
from models.heads import HEADS
from tests.helpers.pages import (
    SCRIPTS,
    assert_accepted,
    assert_files_exist,
    commands,
    load,
    read_page,
)
from tests.helpers.runs import best_files, keys, read_masks

README = read_page("README.md")
RECIPE = [words for words in commands(README) if words[0] in SCRIPTS]
# What a test can afford instead of what the README recommends.
SMALL = {"hrnet_w18": "test_convnext", "hrnet_w40": "mobilenetv3_small_050"}


def test_every_script_command_is_accepted(tmp_path):
    assert len(RECIPE) >= 5
    for script, *arguments in RECIPE:
        assert_accepted(script, arguments, tmp_path)


def test_every_tool_command_is_accepted():
    tools = [words for words in commands(README) if words[0].startswith("tools/")]
    assert len(tools) >= 3
    for tool, *arguments in tools:
        load(tool).parse_args(arguments)


def test_options_name_the_models_there_are():
    assert set(MODELS) == set(HEADS)
    assert DECODINGS == NAMES and DECODE in NAMES


def test_named_files_and_make_targets_exist():
    assert_files_exist(README)
    makefile = read_page("Makefile")
    for target in re.findall(r"^make (\w[\w-]*)", README, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_the_recipe_as_written(sample_root, tmp_path):
    work = ["--data-root", str(sample_root), "--outdir", str(tmp_path), "--workers", "0"]
    for script, *written in RECIPE:
        arguments = [SMALL.get(word, word) for word in written if word != "--pretrained"]
        if script == "train.py":
            arguments += ["--epochs", "1", "--batch-size", "4", "--no-tensorboard"]
        if "--checkpoints" in arguments:
            arguments[arguments.index("--checkpoints") + 1 :] = map(str, best_files(tmp_path)[:2])
        load(script).main([*arguments, *work])
    names = [path.stem for path in (sample_root / "val" / "im1").iterdir()]
    assert set(read_masks(tmp_path / "masks" / "test")) == keys(names)
