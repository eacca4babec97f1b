"""Bytes of files changed at random, and what reading such a file may do."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from utils.errors import DataError

changes = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "remove", "insert", "repeat"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=6,
)


def mutate(data: bytes, steps: list[tuple[str, float, bytes]]) -> bytes:
    for action, where, value in steps:
        at = int(where * len(data))
        if action == "set":
            data = data[:at] + value + data[at + len(value) :]
        elif action == "cut":
            data = data[:at]
        elif action == "remove":
            data = data[:at] + data[at + len(value) :]
        elif action == "insert":
            data = data[:at] + value + data[at:]
        else:
            data = data[:at] + data[max(0, at - 40) :]
    return data


def arrays_or_named_errors(path: Path, readers: Iterable[Callable]) -> Iterator[np.ndarray]:
    """Yield the arrays that readers return; where one fails, its error must name the file."""
    for reader in readers:
        try:
            found = reader(path)
        except DataError as error:
            assert str(path) in str(error)
            continue
        if isinstance(found, np.ndarray):
            yield found
