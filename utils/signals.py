"""Signals that ask a program to end, and how a run takes them."""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

# What schedulers (TERM, USR1), terminals (HUP), shells and users send; Windows has not all of them.
STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1")


def heeded_signals() -> list[signal.Signals]:
    """Return the `STOP_SIGNALS` that this process was not started to ignore.

    ``nohup`` has SIGHUP ignored, and a script's ``&`` SIGINT and SIGQUIT: such a run goes on.
    """
    known = [getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)]
    return [number for number in known if signal.getsignal(number) != signal.SIG_IGN]


class StopRequest:
    """A context that remembers a signal that asks the run to end, until the run looks.

    ``signal`` is the number of the last of the `heeded_signals`, or None; a second Ctrl-C
    interrupts at once. Behind the block signals do what they did before.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in heeded_signals():
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: Any) -> None:
        if number == signal.SIGINT and self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number


def when_gone(parent: int, end: Callable[[], None]) -> None:
    """Call ``end`` in a thread once the process that started this one, ``parent``, is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        end()

    threading.Thread(target=watch, daemon=True).start()
