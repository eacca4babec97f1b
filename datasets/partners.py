"""Files that belong together: each of one folder needs one of the same stem in another."""

from collections.abc import Collection, Mapping
from pathlib import Path

from utils.errors import DataError


def files_by_stem(folder: Path, suffixes: Collection[str]) -> dict[str, Path]:
    """Return the visible files of a folder that have one of some suffixes, by stem, sorted.

    Args:
        folder: is there.
        suffixes: such as ``.png``, in lower case.

    Raises:
        DataError: two files have the same stem.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in suffixes:
            continue
        if path.stem in files:
            raise DataError(f"{path} and {files[path.stem].name}: same name twice; remove one")
        files[path.stem] = path
    return files


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
