"""Errors a user can cause. Each carries one line: what is wrong, where, and what to do."""

EXIT_USER_ERROR = 2

EXIT_PREEMPTED = 75  # EX_TEMPFAIL: "try again later", which is what a scheduler should do

EXIT_INTERRUPTED = 130  # what shells report for Ctrl-C


class UserError(Exception):
    """Base of all errors that a user can cause and repair; scripts print it as one line."""


class DataError(UserError):
    """The data set, a file in it, or a list of names is not what the program needs."""


class CheckpointError(UserError):
    """A checkpoint or a file of pretrained weights cannot be used."""


class OptionError(UserError):
    """An option, or a combination of options, makes no sense."""


class NumericalError(UserError):
    """Training produced a value that is not a finite number."""


class InterruptionError(UserError):
    """A signal asked a training run to end, and its state was saved.

    Attributes:
        status: exit status of the process, `EXIT_INTERRUPTED` or `EXIT_PREEMPTED`.
    """

    def __init__(self, message: str, status: int = EXIT_PREEMPTED) -> None:
        super().__init__(message)
        self.status = status


def first_line(error: BaseException) -> str:
    """Return the first line that says something of an error of torch's."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.endswith("raised:")), None) or (
        type(error).__name__
    )


def one_line(error: BaseException) -> str:
    """Return the message of an error without the traceback that worker processes add.

    ``torch.utils.data`` re-raises a worker's exception with the whole traceback as its message;
    the message that was meant for the user is its last line, behind the class name.
    """
    lines = [line for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if lines[0].startswith("Caught "):
        return lines[-1].split(": ", 1)[-1]
    return " ".join(line.strip() for line in lines)
