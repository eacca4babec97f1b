"""Errors a user can cause. Each carries one line: what is wrong, where, and what to do."""

EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: "try again later", which is what a scheduler should do
EXIT_INTERRUPTED = 130  # what shells report for Ctrl-C


class UserError(Exception):
    """Base of all errors that a user can cause and repair; scripts print it as one line.

    ``status`` is the exit status of the process.
    """

    status = EXIT_USER_ERROR

    def __init__(self, message: str = "", status: int | None = None) -> None:
        super().__init__(message)
        self.status = status or self.status


class DataError(UserError):
    """The data set, a file in it, or a list of names is not what the program needs."""


class CheckpointError(UserError):
    """A checkpoint or a file of pretrained weights cannot be used."""


class OptionError(UserError):
    """An option, or a combination of options, makes no sense."""


class NumericalError(UserError):
    """Training produced a value that is not a finite number."""


class InterruptionError(UserError):
    """A signal asked a training run to end, and its state was saved."""

    status = EXIT_PREEMPTED


def first_line(error: BaseException) -> str:
    """Return the first line that says something of an error of torch's."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.endswith("raised:")]
    return said[0] if said else type(error).__name__


def one_line(error: BaseException) -> str:
    """Return the message of an error without the traceback that data loaders' workers add.

    Their message is a whole traceback, whose last line is what was meant, behind the class name.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith("Caught "):
        return lines[-1].split(": ", 1)[-1]
    return " ".join(lines) or type(error).__name__
