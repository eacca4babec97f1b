"""What a study file asks: data, seeds, arms of stages, comparisons; read and checked first of all.

A stage is the options of one script. ``{teacher.best}`` and ``{teacher.last}`` in them stand for a
checkpoint of the stage called so, ``{vote.masks}`` for the pseudo masks of a label stage.
"""

import argparse
import contextlib
import io
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from engine.config import LabelConfig, TestConfig, TrainConfig
from engine.metrics import ChangeMetrics, Metrics, titles
from tools import make_sample_data
from utils import cli
from utils.errors import OptionError
from utils.files import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCRIPTS = {"train": TrainConfig, "label": LabelConfig, "test": TestConfig}
USE = re.compile(r"\{([\w+-]+)(?:\.(\w+))?\}")
OUTPUTS = {"train": ("best", "last"), "label": ("masks",)}
# Options that the study gives to each stage itself, or that make no stage.
OWN = ("data-root", "outdir", "seed", "resume", "name", "nproc", "config", "dry-run", "load-from")
SPLITS = ("split", "val-list", "train-list", "val-fraction", "folds", "fold", "split-seed")
# What a study file holds, of which kind, and what it is without; None: it has to be there.
KEYS = {
    "question": (str, None),
    "data": (dict, None),
    "seeds": (str, None),
    "arms": (dict, None),
    "compare": (dict, None),
    "confirm": (list, []),
    "score": (str, "score"),
    "divide": (bool, True),
    # So that the best epoch is chosen on other pairs than those that are scored.
    "validation": (str, "--split random --val-fraction 0.1"),
    **{script: (str, "") for script in SCRIPTS},
}
KINDS = {str: "text", dict: "a table", list: "a list", bool: "true or false"}


@dataclass(frozen=True)
class Step:
    """A stage as the study file has it: script, options with the common ones, name for others."""

    script: str
    options: tuple[str, ...]
    name: str

    @property
    def uses(self) -> list[tuple[str, str]]:
        """Stages that it uses, by name, and which output of theirs; "" is the epoch in question."""
        return [found for word in self.options for found in USE.findall(word)]

    def given(self, names: Sequence[str]) -> list[str]:
        """Return which of some options it gives."""
        words = {word.split("=")[0] for word in self.options}
        return [f"--{name}" for name in names if f"--{name}" in words]


@dataclass(frozen=True)
class Plan:
    """A study. Each arm on each data set with each seed is a cell."""

    name: str
    text: str  # of its file
    question: str
    data: Mapping[str, str]  # by name: a folder, or options of make_sample_data.py
    seeds: tuple[int, ...]
    score: str  # that decides; its name in metrics.csv
    arms: Mapping[str, tuple[Step, ...]]  # a test is the last of each
    compare: tuple[tuple[str, str], ...]  # arm and baseline
    confirm: frozenset[str]  # arms whose comparison is made on pairs that chose nothing
    divide: bool  # the scored pairs, into halves to screen and to confirm on

    @property
    def confirmed(self) -> set[str]:
        """Arms that are scored on the confirming half: those of ``confirm`` and their baselines."""
        return {name for pair in self.compare if pair[0] in self.confirm for name in pair}


def read_plan(path: Path) -> Plan:
    """Read a study file; an `OptionError` says what in it is wrong."""
    try:
        text = read_text(path)
        content = tomllib.loads(text)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(f"{path}: cannot be read as TOML: {reason}") from error
    with _named(str(path)):
        unknown = sorted(set(content) - set(KEYS))
        _require(not unknown, f"unknown key {', '.join(unknown)}; there are {', '.join(KEYS)}")
        values = {key: _value(content, key) for key in KEYS}
        plan = Plan(
            name=path.stem,
            text=text,
            question=values["question"].strip(),
            data=values["data"],
            seeds=cli.number_list(values["seeds"]),
            score=values["score"],
            arms={name: _read_arm(name, each, values) for name, each in values["arms"].items()},
            compare=tuple(
                (arm, baseline)
                for arm, found in values["compare"].items()
                for baseline in (found if isinstance(found, list) else [found])
            ),
            confirm=frozenset(values["confirm"]),
            divide=values["divide"],
        )
        _check(plan)
    return plan


def _value(content: Mapping[str, Any], key: str) -> Any:
    kind, default = KEYS[key]
    value = content.get(key, default)
    asked = f"{key} is missing or empty; a study says it before it runs"
    _require(bool(value) or default is not None, asked)
    _require(type(value) is kind, f"{key} has to be {KINDS[kind]}")
    return value


def _check(plan: Plan) -> None:
    known = titles(Metrics) | titles(ChangeMetrics)
    _require(plan.score in known, f"score {plan.score}: choose from {', '.join(known)}")
    for arm, baseline in plan.compare:
        there = arm in plan.arms and baseline in plan.arms and arm != baseline
        of = f"compare: {arm} = {baseline!r}: name two different arms of {', '.join(plan.arms)}"
        _require(there, of)
    for name in plan.confirm:
        _require(name in dict(plan.compare), f"confirm: {name!r} is compared with nothing")
    _require(plan.divide or not plan.confirm, "confirm needs a half of its own: no divide = false")
    for name, source in plan.data.items():
        with _named(f"data {name}"):
            form = "has to be a folder, or options of make_sample_data.py, as text"
            _require(isinstance(source, str) and bool(source) and _is_name(name), form)
            if is_generated(source):
                _accept("make_sample_data.py", make_sample_data.parse_args, shlex.split(source))


def is_generated(source: str) -> bool:
    """Tell whether a data set is options of make_sample_data.py, and no folder."""
    return source.startswith("--")


def _read_arm(name: str, stages: Any, values: Mapping[str, Any]) -> tuple[Step, ...]:
    """Return the steps of an arm, each checked by its script's own parser."""
    steps: dict[str, Step] = {}
    with _named(f"arm {name}"):
        _require(_is_name(name), "is no name: up to 40 letters, digits, _ + -")
        _require(isinstance(stages, list) and bool(stages), "has to be a list of stages")
        for i, stage in enumerate(stages, 1):
            with _named(f"stage {i}"):
                step = _read_step(stage, values, f"{i}")
                known = (*steps, *(["test"] if step.script != "test" else []))  # what follows
                _require(step.name not in known, f"another stage is called {step.name}")
                _require(step.script != "test" or i == len(stages), "a test stands at the end")
                _check_uses(step, steps)
                steps[step.name] = step
        _require(step.script != "label", "it has to end with a train or test stage")
        if step.script == "train":
            words = (*shlex.split(values["test"]), "--checkpoints", f"{{{step.name}}}")
            steps["test"] = Step("test", words, "test")
        for step in steps.values():
            words = [USE.sub("FILE", word) for word in step.options]
            _accept(f"{step.script}.py", partial(cli.parse, SCRIPTS[step.script]), words)
    return tuple(steps.values())


def _read_step(stage: Any, values: Mapping[str, Any], number: str) -> Step:
    form = 'has to be { train = "options", name = "text" }, or one with label or test'
    _require(isinstance(stage, dict) and all(isinstance(v, str) for v in stage.values()), form)
    script = next((script for script in SCRIPTS if script in stage), "")
    _require(bool(script) and stage.keys() <= {"name", script}, form)
    words = [shlex.split(text) for text in (values[script], stage[script], values["validation"])]
    step = Step(script, (*words[0], *words[1]), stage.get("name", number))
    own = step.given(OWN if script != "test" else (*OWN, *SPLITS))
    _require(not own, f"{', '.join(own)}: leave it to the study")
    if script == "test" or step.given(SPLITS):
        return step
    return Step(script, (*words[2], *step.options), step.name)


def _check_uses(step: Step, before: Mapping[str, Step]) -> None:
    for name, output in step.uses:
        _require(name in before, f"{{{name}}}: no stage before it is called so")
        forms = [f"{{{name}.{each}}}" for each in OUTPUTS[before[name].script]]
        if step.script == "test" and len(forms) > 1:  # the best and the last epoch in turn
            forms.append(f"{{{name}}}")
        use = f"{{{name}.{output}}}" if output else f"{{{name}}}"
        _require(use in forms, f"{use}: it may be {' or '.join(forms)}")
    epochs = step.script != "test" or any(not output for _, output in step.uses)
    _require(epochs, "names no {stage}, which is its best and its last epoch in turn")


def _accept(script: str, parse: Callable, words: Sequence[str]) -> None:
    """Raise an `OptionError` of what a script's parser would end the program with."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parse(words)
    except SystemExit as error:
        reason = said.getvalue().strip().partition("error: ")[2]
        raise OptionError(f"{script}: {reason or 'these options make nothing'}") from error


def _is_name(text: str) -> bool:
    return bool(re.fullmatch(r"\w[\w+-]{0,39}", text))


def _require(good: bool, message: str) -> None:
    if not good:
        raise OptionError(message)


@contextlib.contextmanager
def _named(place: str) -> Iterator[None]:
    """Say where an error is."""
    try:
        yield
    except (OptionError, ValueError, argparse.ArgumentTypeError) as error:
        raise OptionError(f"{place}: {error}") from error
