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
# Options that the study itself gives to each stage, or that make no stage.
OWN = ("data-root", "outdir", "seed", "resume", "name", "nproc", "config", "dry-run", "load-from")
SPLITS = ("split", "val-list", "train-list", "val-fraction", "folds", "fold", "split-seed")
# So that the best epoch is chosen on other pairs than those that are scored.
VALIDATION = "--split random --val-fraction 0.1"
# What a study file holds, of which kind, and what it is without; None: it has to be there.
KEYS = {
    "question": (str, None),
    "data": (dict, None),
    "seeds": (str, None),
    "arms": (dict, None),
    "compare": (dict, None),
    "score": (str, "score"),
    "confirm": (list, []),
    "divide": (bool, True),
    "validation": (str, VALIDATION),
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
    arms: Mapping[str, tuple[Step, ...]]
    compare: tuple[tuple[str, str], ...]  # arm and baseline
    confirm: frozenset[str]  # arms whose comparison is made on pairs that chose nothing
    divide: bool  # the scored pairs, into halves to screen and to confirm on

    @property
    def confirmed_arms(self) -> set[str]:
        """Arms that are scored on the confirming half: those to confirm and their baselines."""
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
        values = {key: _value(content, key) for key in KEYS}
        unknown = sorted(set(content) - set(KEYS))
        _require(not unknown, f"unknown key {', '.join(unknown)}; there are {', '.join(KEYS)}")
        plan = Plan(
            path.stem,
            text,
            values["question"].strip(),
            values["data"],
            _seeds(values["seeds"]),
            values["score"],
            {name: _read_arm(name, stages, values) for name, stages in values["arms"].items()},
            tuple(_pairs(values["compare"])),
            frozenset(values["confirm"]),
            values["divide"],
        )
        _check(plan)
    return plan


def _value(content: Mapping[str, Any], key: str) -> Any:
    kind, default = KEYS[key]
    value = content.get(key, default)
    _require(value is not None, f"{key} is missing; a study says it before it runs")
    _require(type(value) is kind, f"{key} has to be {KINDS[kind]}")
    _require(bool(value) or default is not None, f"{key} is empty; a study says it before it runs")
    return value


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return cli.number_list(text)
    except argparse.ArgumentTypeError as error:
        raise OptionError(f"seeds: {error}") from error


def _pairs(compare: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for arm, found in compare.items():
        for baseline in found if isinstance(found, list) else [found]:
            _require(arm != baseline, f"compare: {arm} is its own baseline")
            yield arm, baseline


def _check(plan: Plan) -> None:
    known = titles(Metrics) | titles(ChangeMetrics)
    _require(plan.score in known, f"score {plan.score}: choose from {', '.join(known)}")
    for name in [name for pair in plan.compare for name in pair]:
        _require(name in plan.arms, f"compare: {name!r} is no arm; there are {list(plan.arms)}")
    for name in plan.confirm:
        compared = [arm for arm, _ in plan.compare]
        _require(name in compared, f"confirm: {name!r} is no arm that is compared: {compared}")
    _require(plan.divide or not plan.confirm, "confirm needs a half of its own: no divide = false")
    for name, source in plan.data.items():
        _require_name(name)
        form = f"data {name}: has to be a folder, or options of make_sample_data.py, as text"
        _require(isinstance(source, str) and bool(source), form)
        if is_generated(source):
            _accepted("make_sample_data.py", make_sample_data.parse_args, shlex.split(source))


def is_generated(source: str) -> bool:
    """Tell whether a data set is options of make_sample_data.py, and no folder."""
    return source.startswith("--")


def _read_arm(name: str, stages: Any, values: Mapping[str, Any]) -> tuple[Step, ...]:
    """Return the steps of an arm, the last a test, each checked by its script's own parser."""
    with _named(f"arm {name}"):
        _require_name(name)
        _require(isinstance(stages, list) and bool(stages), "has to be a list of stages")
        steps: dict[str, Step] = {}
        for i, stage in enumerate(stages):
            with _named(f"stage {i + 1}"):
                step = _read_step(stage, values, f"{i + 1}")
                last = i + 1 == len(stages)
                _require(last or step.script != "test", "test stands at the end")
                _require(not last or step.script != "label", "the end is train or test")
                _check_uses(step, steps)
                _check_options(step)
                _require(step.name not in steps, f"another stage is called {step.name}")
                steps[step.name] = step
        if step.script == "train":
            words = (*shlex.split(values["test"]), "--checkpoints", f"{{{step.name}}}")
            steps["test"] = Step("test", words, "test")
            _check_options(steps["test"])
    return tuple(steps.values())


def _read_step(stage: Any, values: Mapping[str, Any], number: str) -> Step:
    names = set(stage) if isinstance(stage, dict) else set()
    scripts = sorted(names & set(SCRIPTS))
    form = f"has to be {{ {' | '.join(SCRIPTS)} = options, name = text }}"
    _require(len(scripts) == 1 and names <= {"name", *scripts}, form)
    _require(all(isinstance(text, str) for text in stage.values()), form)
    try:
        words = [shlex.split(text) for text in (values[scripts[0]], stage[scripts[0]])]
        step = Step(scripts[0], tuple(words[0] + words[1]), stage.get("name", number))
        if step.script != "test" and not step.given(SPLITS):
            options = (*shlex.split(values["validation"]), *step.options)
            step = Step(step.script, options, step.name)
    except ValueError as error:  # a quote that does not end
        raise OptionError(f"options: {error}") from error
    own = step.given(OWN if step.script != "test" else (*OWN, *SPLITS))
    _require(not own, f"{', '.join(own)}: leave it to the study")
    return step


def _check_uses(step: Step, before: Mapping[str, Step]) -> None:
    for name, output in step.uses:
        _require(name in before, f"{{{name}}}: no stage before it is called so")
        there = OUTPUTS[before[name].script]
        both = step.script == "test" and before[name].script == "train"
        forms = [*([f"{{{name}}}"] if both else []), *(f"{{{name}.{each}}}" for each in there)]
        right = output in there or (both and not output)
        _require(right, f"{name} gives {' and '.join(forms)}")
    if step.script == "test":
        asked = "names no {stage}: it is tested with the best and with the last epoch of one"
        _require(any(not output for _, output in step.uses), asked)


def _check_options(step: Step) -> None:
    words = [USE.sub("FILE", word) for word in step.options]
    _accepted(f"{step.script}.py", partial(cli.parse, SCRIPTS[step.script]), words)


def _accepted(script: str, parse: Callable, words: Sequence[str]) -> None:
    """Raise an `OptionError` of what a script's parser would end the program with."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parse(words)
    except SystemExit as error:
        reason = said.getvalue().strip().partition("error: ")[2]
        raise OptionError(f"{script}: {reason or 'gives no result'}") from error


def _require_name(name: str) -> None:
    good = re.fullmatch(r"\w[\w+-]{0,40}", name)
    _require(bool(good), f"{name!r} is no name: letters, digits, _ + -, 41 at the most")


def _require(good: bool, message: str) -> None:
    if not good:
        raise OptionError(message)


@contextlib.contextmanager
def _named(place: str) -> Iterator[None]:
    """Say where an error is."""
    try:
        yield
    except OptionError as error:
        raise OptionError(f"{place}: {error}") from error
