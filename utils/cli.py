"""What every script does around its ``main``: one clear line instead of a traceback."""

import sys
from collections.abc import Callable

from utils.errors import UserError, one_line

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def run(main: Callable[[], object]) -> None:
    """Call ``main()`` and turn what a user can cause into one line on stderr and an exit status.

    Status 2 stands for an error the user can repair, 130 for Ctrl-C. With ``--debug`` on the
    command line the traceback is shown instead.
    """
    try:
        main()
    except UserError as error:
        if "--debug" in sys.argv:
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        if "--debug" in sys.argv:
            raise
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
