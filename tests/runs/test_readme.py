"""Every command of the README: accepted by its script, and the recipe run on a small set."""

import importlib
import re
import shlex
from pathlib import Path

import label
import test as test_script
import train
from engine.config import MODELS
from models.heads import HEADS

REPO = Path(__file__).resolve().parents[2]
README = (REPO / "README.md").read_text(encoding="utf-8")
SCRIPTS = {"train.py": train, "label.py": label, "test.py": test_script}
# What a test can afford instead of what the README recommends.
SMALL = {"hrnet_w18": "mobilenetv2_050", "hrnet_w40": "mobilenetv3_small_050"}


def readme_commands() -> list[list[str]]:
    """The words of every `python …` line in the README's code blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    words = [shlex.split(line) for line in lines if "python " in line]
    return [w[w.index("python") + 1 :] for w in words if w[w.index("python") + 1] != "-m"]


def test_every_script_command_is_accepted():
    commands = [words for words in readme_commands() if words[0] in SCRIPTS]
    assert len(commands) >= 5
    for script, *arguments in commands:
        SCRIPTS[script].parse_args(arguments)


def test_every_tool_command_is_accepted():
    commands = [words for words in readme_commands() if words[0].startswith("tools/")]
    assert len(commands) >= 3
    for tool, *arguments in commands:
        module = importlib.import_module(tool.removesuffix(".py").replace("/", "."))
        module.parse_args(arguments)


def test_options_name_the_models_there_are():
    assert set(MODELS) == set(HEADS)


def test_every_named_file_exists():
    for name in re.findall(r"(?:tools|docs|tests|utils)/[\w./]+\.\w+", README):
        assert (REPO / name).exists(), name


def test_make_targets_exist():
    makefile = (REPO / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w[\w-]*)", README, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_the_recipe_as_written(sample_root, tmp_path):
    work = ["--data-root", str(sample_root), "--outdir", str(tmp_path), "--workers", "0"]
    recipe = [words for words in readme_commands() if words[0] in SCRIPTS]
    for script, *written in recipe:
        arguments = [SMALL.get(word, word) for word in written if word != "--pretrained"]
        if script == "train.py":
            arguments += ["--epochs", "1", "--batch-size", "4", "--no-tensorboard"]
        if "--checkpoints" in arguments:
            first = arguments.index("--checkpoints") + 1
            best = sorted(p for p in (tmp_path / "models").glob("*.pth") if "latest" not in p.stem)
            arguments[first:] = [str(path) for path in best[:2]]
        SCRIPTS[script].main([*arguments, *work])
    names = {path.name for path in (sample_root / "val" / "im1").iterdir()}
    for date in ("im1", "im2"):
        assert {path.name for path in (tmp_path / "masks" / "test" / date).iterdir()} == names
