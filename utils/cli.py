"""The command line: options that are fields of a dataclass, and one clear line for an error."""

import argparse
import contextlib
import dataclasses
import difflib
import importlib
import json
import math
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

from utils.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError, first_line, one_line
from utils.files import read_json
from utils.machine import first_look

Config = TypeVar("Config")
# Control characters but tab and line feed, line separators, and what changes the direction of text.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
# In the environment: the `time.time` at which the user started the script, and in a few words what
# lowered the number of threads, if anything.
STARTED, WHY_THREADS = "SCD_STARTED", "SCD_WHY_THREADS"


class Parser(argparse.ArgumentParser):
    """A parser that answers a mistake with one line, and with the option that was meant.

    ``source`` is the file that the options are read from, where it is no command line.
    """

    source: Path | None = None

    def parse_args(self, *arguments: Any) -> argparse.Namespace:  # noqa: D102
        args, unknown = self.parse_known_args(*arguments)
        if unknown:
            self.refuse(unknown[0].split("=")[0])
        return args

    def refuse(self, name: str) -> NoReturn:
        """End with a line about an option that is not known, and with the one that was meant."""
        known = [name for action in self._actions for name in action.option_strings]
        close = difflib.get_close_matches(name, known, n=1)
        self.error(f"unknown option {name}" + (f"; did you mean {close[0]}?" if close else ""))

    def error(self, message: str) -> NoReturn:  # noqa: D102
        where = f"{self.source}: " if self.source else ""
        line = f"{self.prog}: error: {where}{message} (--help lists all options)"
        self.exit(EXIT_USER_ERROR, " ".join(line.split()) + "\n")


def make_parser(description: str, epilog: str = "") -> Parser:
    """Return an empty parser that aligns help texts and keeps the examples in the epilog."""
    layout = partial(argparse.RawDescriptionHelpFormatter, max_help_position=30, width=100)
    return Parser(
        description=description, epilog=epilog, formatter_class=layout, allow_abbrev=False
    )


def options(group: str) -> Callable[[type[Config]], type[Config]]:
    """Make a class a frozen dataclass whose `option` fields are one group of the help text."""

    def decorate(cls: type[Config]) -> type[Config]:
        for field in vars(cls).values():
            if isinstance(field, dataclasses.Field):
                field.metadata = {"group": group, **field.metadata}
        return dataclasses.dataclass(frozen=True, kw_only=True)(cls)

    return decorate


def option(default: Any, about: str, kind: Callable | None = None, **settings: Any) -> Any:
    """Return a dataclass field that is an option of the command line.

    ``kind`` parses the value, and names it by `METAVARS`; a path needs none. ``settings`` are those
    of ``add_argument``, and ``shown``, the default in words; ``fixed``, whether a resumed run must
    share the value; ``once``, whether `parse` leaves it out of a ``--config``; ``group``, another
    one than the class's. ``choices`` may be a dict: each stands for values of other options.
    """
    own = {"group": settings.pop("group")} if "group" in settings else {}
    metadata = {"about": about, "kind": kind, "settings": settings, **own}
    return dataclasses.field(default=default, metadata=metadata)


def is_fixed(field: dataclasses.Field) -> bool:
    """Tell whether a resumed run must share the value of this option."""
    return field.metadata["settings"].get("fixed", False)


def add_options(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, source: type, *names: str
) -> None:
    """Add options of a config class, some or all, to a parser, or to a group of one."""
    for field in dataclasses.fields(source):
        if not names or field.name in names:
            _add(parser, field)


def parse(config_class: type[Config], argv: Sequence[str], about: str = "") -> Config:
    """Return the config, of fields made by `option`, that a command line describes.

    ``about`` is a script's docstring: its first paragraph describes it, the rest are examples.
    """
    description, _, epilog = about.strip().partition("\n\n")
    parser = make_parser(description, epilog)
    groups: dict[str, argparse._ArgumentGroup] = {}
    for field in dataclasses.fields(config_class):
        title, _, note = field.metadata["group"].partition(": ")
        if title not in groups:
            groups[title] = parser.add_argument_group(title, note or None)
        _add(groups[title], field)
    args = _parse(parser, argv)
    if getattr(args, "config", None):  # benchmarks have none
        parser.source = args.config
        known = _parse(parser, list(_read_options(parser, config_class)))
        parser.source = None
        args = _parse(parser, argv, known)
    return config_class(**vars(args))


def _parse(
    parser: Parser, argv: Sequence[str], known: argparse.Namespace | None = None
) -> argparse.Namespace:
    """Parse arguments; a choice among them that stands for others wins over what is ``known``."""
    recipes = [action for action in parser._actions if isinstance(action.choices, dict)]
    if recipes:  # only these are read twice: a parser may require what an empty line lacks
        given, known = parser.parse_args(argv), known or parser.parse_args([])
    for action in recipes:
        values = action.choices.get(getattr(given, action.dest), {})
        vars(known).update({name: values[name] for name in values if name in vars(known)})
    return parser.parse_args(argv, known)


def _read_options(parser: Parser, config_class: type) -> Iterator[str]:
    """Yield the options in the parser's file, JSON of their values by name, as arguments.

    What is null, or counts for one start alone, is left out.
    """
    try:
        content = read_json(parser.source)
    except (OSError, ValueError) as error:
        parser.error(f"cannot be read as JSON ({getattr(error, 'strerror', None) or error})")
    if not isinstance(content, dict):
        parser.error('not options; expected {"name": value, …}')
    by_name = {field.name: field for field in dataclasses.fields(config_class)}
    for name, value in content.items():
        option_name = f"--{name.replace('_', '-')}"
        if name not in by_name:
            parser.refuse(option_name)
        settings = by_name[name].metadata["settings"]
        if value is None or settings.get("once"):
            continue
        parts = value if isinstance(value, list) else [value]
        if not _may_be(value, parts, by_name[name]):
            parser.error(f"{json.dumps(value)} is no value of {option_name}")
        if isinstance(value, bool):
            yield option_name if value else f"--no-{option_name[2:]}"
        elif settings.get("nargs") == "+":
            yield from (option_name, *map(str, parts))
        else:  # a list of one ends with a comma: "4" are the first four bands
            end = "," if isinstance(value, list) and len(parts) == 1 else ""
            yield f"{option_name}={','.join(map(str, parts))}{end}"


def _may_be(value: Any, parts: list, field: dataclasses.Field) -> bool:
    """Tell whether a value of JSON is of the kind that an option takes."""
    of_parts = "tuple" in str(field.type)
    if isinstance(field.default, bool) or isinstance(value, bool):
        return isinstance(field.default, bool) and isinstance(value, bool)
    plain = all(isinstance(part, str | int | float) for part in parts)
    return plain and bool(parts) and of_parts == isinstance(value, list)


def _add(
    group: argparse.ArgumentParser | argparse._ArgumentGroup, field: dataclasses.Field
) -> None:
    settings, kind = dict(field.metadata["settings"]), field.metadata["kind"]
    for name in ("fixed", "once"):
        settings.pop(name, None)
    about, shown = field.metadata["about"], settings.pop("shown", None)
    if isinstance(field.default, bool):
        settings["action"] = argparse.BooleanOptionalAction if field.default else "store_true"
        shown = shown or ("on" if field.default else None)
    elif shown is None:
        shown = field.default
    if "Path" in str(field.type):
        settings = {"type": Path, "metavar": "FILE", **settings}
    elif kind:
        settings = {"type": kind, "metavar": METAVARS.get(kind), **settings}
    if shown is not None:
        about = f"{about} (default: {shown})"
    name = field.name.replace("_", "-")
    group.add_argument(f"--{name}", default=field.default, help=about, **settings)
    if settings.get("action") == "store_true":  # takes back what --config says
        group.add_argument(
            f"--no-{name}", action="store_false", dest=field.name, default=field.default,
            help=argparse.SUPPRESS,
        )  # fmt: skip


def start(
    script: str, about: str, config_class: type, workflow: str, argv: Sequence[str] | None
) -> Any:
    """Parse a script's options and do its work in as many processes as there should be.

    ``workflow`` is a ``"module:function"`` of config and device, imported when the options are
    known, so that ``--help`` and mistakes are answered at once. Returns what it returns; None when
    processes of their own did the work.
    """
    os.environ.setdefault(STARTED, repr(time.time()))  # before imports that take seconds
    first_look()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        config = parse(config_class, arguments, about)
        module, function = workflow.split(":")
        dist = importlib.import_module("utils.dist")

        def work(device: Any) -> Any:  # not in a process that only starts others
            return getattr(importlib.import_module(module), function)(config, device)

        processes = (config.nproc, config.threads, config.device)
        return dist.run_script(script, arguments, *processes, work)
    finally:
        for name in (STARTED, WHY_THREADS):
            os.environ.pop(name, None)


def run(main: Callable[[], object]) -> None:
    """Call ``main()`` and turn what a user can cause into one line on stderr and an exit status.

    Status 2 stands for an error the user can repair, 130 for Ctrl-C, 75 for a run that saved its
    state because a scheduler asked it to end, and 137 for a run of several processes one of which
    was killed. With ``--debug`` on the command line the traceback is shown instead.
    """
    _open_missing_streams()
    sys.stdout, sys.stderr = _SafeStream(sys.stdout), _SafeStream(sys.stderr)
    try:
        main()
    except KeyboardInterrupt:
        if "--debug" in sys.argv:
            raise
        _report("interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        line = one_line(error) if isinstance(error, UserError) else _known_failure(error)
        if "--debug" in sys.argv or line is None:
            raise
        _report(f"error: {line}")
        sys.exit(getattr(error, "status", EXIT_USER_ERROR))
    finally:
        _end_readers()


def _open_missing_streams() -> None:
    """Open the standard streams that the caller has closed.

    Else a file that is opened later takes the place of one, and what libraries print goes into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115


def escape_unsafe(text: str) -> str:
    """Return a text in which what would steer a terminal is shown as an escape."""
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


class _SafeStream:
    """A stream whose reader may go away, as ``| head`` does, without ending the work.

    Names of files and classes come from anywhere: what would steer a terminal, or turn around the
    text that follows, is shown as an escape, and so is what the stream cannot encode.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        with contextlib.suppress(OSError, AttributeError):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(escape_unsafe(text))
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _known_failure(error: Exception) -> str | None:
    """Return what to say of an error of torch's that is no fault of this program; else None."""
    # By name: importing torch's compiler takes a second. Its other errors are faults of a model.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; check the path, its permissions and limits"
    if "ShortenTraceback" in kinds:
        return (
            f"compiling failed ({first_line(error)}); remove torch's inductor cache, where a "
            "killed program may have left a broken file, or do without: no --compile in training, "
            "--compile off elsewhere"
        )
    if "OutOfMemoryError" in kinds or "DefaultCPUAllocator" in str(error):
        return (
            f"out of memory ({first_line(error)}); use a smaller batch (--batch-size, "
            "--val-batch-size, --test-batch-size), and in training --accumulate, "
            "--checkpoint-activations or a smaller --crop-size"
        )
    if "</torch_" in str(error) or "DataLoader worker (pid" in str(error):
        return (
            "a reader process was ended, as happens where memory, or shared memory (/dev/shm), "
            "runs out; use fewer --workers, or --workers 0, or give a container more with docker "
            "run --shm-size 8g or --ipc=host"
        )
    if str(error).startswith("DataLoader timed out"):
        return (
            f"reader processes gave no batch ({error}); start again, with --resume in training; "
            "where it happens often, use --workers 0 or Python 3.12"
        )
    return None


def _end_readers() -> None:
    """End what data loaders have left: they ignore SIGTERM, and Python would wait for them."""
    readers = [child for child in multiprocessing.active_children() if child.daemon]
    if readers and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch takes the end of one for an error
    for reader in readers:
        reader.kill()


def _report(line: str) -> None:
    """Print a line, or hand it to the launcher, so that four processes print it once."""
    dist = sys.modules.get("utils.dist")
    if dist is None or not dist.report_failure(line.removeprefix("error: ")):
        print(line, file=sys.stderr)


def _number(kind: type, valid: Callable[[Any], bool], expected: str) -> Callable[[str], Any]:
    """Return a parser of numbers, which refuses others and NaN in words."""

    def parse_number(text: str) -> Any:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if valid(value):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")

    return parse_number


positive_int = _number(int, lambda value: value >= 1, "a whole number of at least 1")
natural = _number(int, lambda value: value >= 0, "a whole number of at least 0")
seed = _number(int, lambda value: 0 <= value < 2**63, "a whole number from 0 to 2^63 - 1")
positive_float = _number(float, lambda value: 0 < value < math.inf, "a number above 0")
non_negative_float = _number(float, lambda value: 0 <= value < math.inf, "a number of at least 0")
fraction = _number(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def weight_list(text: str) -> tuple[float, ...]:
    """Parse comma-separated positive weights, such as ``2,1,2,2,1,1``."""
    return tuple(positive_float(part) for part in text.removesuffix(",").split(","))


def number_list(text: str) -> tuple[int, ...]:
    """Parse ``0-4``, ``3``, or several of them with commas between, as sorted numbers."""
    if not re.fullmatch(r"(\d{1,9}(-\d{1,9})?,)*\d{1,9}(-\d{1,9})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers; write 0-4 or 0,1,5")
    bounds = [part.split("-") for part in text.split(",")]
    ranges = [range(int(each[0]), int(each[-1]) + 1) for each in bounds]
    if not all(0 < len(numbers) <= 1000 for numbers in ranges):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty range, or one of more than 1000")
    return tuple(sorted({number for numbers in ranges for number in numbers}))


METAVARS = {positive_int: "N", natural: "N", seed: "N"}
METAVARS |= {fraction: "P", non_negative_float: "RATE", weight_list: "W,W,…"}
