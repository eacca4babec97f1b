"""Files that belong together: each of one folder needs one of the same stem in another."""

from collections.abc import Collection, Mapping
from pathlib import Path

from utils.errors import DataError


def require_partners(
    files1: Mapping[str, Path], files2: Mapping[str, Path], folder1: Path, folder2: Path
) -> None:
    """Refuse files that are in one of two folders only.

    Args:
        files1: files of ``folder1`` by stem.
        files2: files of ``folder2`` by stem.
        folder1: for messages.
        folder2: for messages.

    Raises:
        DataError: names the first file alone, and the folder in which its partner is missing.
    """
    alone = sorted(set(files1) ^ set(files2))
    if not alone:
        return
    stem = alone[0]
    there, missing_in = (files1, folder2) if stem in files1 else (files2, folder1)
    raise DataError(
        f"{there[stem]}: no partner in {missing_in}{and_more(alone)}; add the file or remove this "
        f"one (a partner is called {stem}.*)"
    )


def and_more(names: Collection[str]) -> str:
    """Return ``(and 2 more)`` behind the first of three names, nothing behind a single one."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
