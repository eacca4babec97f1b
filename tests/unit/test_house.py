"""The rules of the house: imports point one way, at the top; the tour names what exists."""

import ast
import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
ORDER = ("utils", "datasets", "models", "engine", "tools", "bench")
SCRIPTS = ("train", "label", "test")
MAX_FILES = 14
MAX_LATE_IMPORTS = 10


def product_files():
    files = [path for package in ORDER for path in (REPO / package).rglob("*.py")]
    return files + [REPO / f"{name}.py" for name in SCRIPTS]


def floor(path):
    top = path.relative_to(REPO).parts[0].removesuffix(".py")
    return len(ORDER) if top in SCRIPTS else ORDER.index(top)


def imported(node):
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


@pytest.mark.parametrize("path", product_files(), ids=lambda path: str(path.relative_to(REPO)))
def test_imports_point_one_way(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for module in imported(node):
            package = module.split(".")[0]
            if package in ORDER[:4]:
                assert ORDER.index(package) <= floor(path), f"{path}:{node.lineno} {module}"
            elif package in ("tools", "bench"):
                assert path.relative_to(REPO).parts[0] in ("tools", "bench"), module


def test_imports_stand_at_the_top():
    late = []
    for path in product_files():
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef):
                late += [f"{path}:{n.lineno}" for n in ast.walk(function) if imported(n)]
        assert "TYPE_CHECKING" not in path.read_text(encoding="utf-8"), path
    assert len(set(late)) <= MAX_LATE_IMPORTS, late


def test_folders_are_small_and_packages_export_nothing():
    for package in ORDER:
        for folder in {path.parent for path in (REPO / package).rglob("*.py")}:
            assert len(list(folder.glob("*.py"))) <= MAX_FILES, folder
    for path in REPO.glob("*/**/__init__.py"):
        if path.relative_to(REPO).parts[0] in ORDER:
            body = ast.parse(path.read_text(encoding="utf-8")).body
            assert len(body) == 1 and isinstance(body[0], ast.Expr), path


def test_the_tour_names_what_exists():
    """CONTRIBUTING.md's way of one pair: each hop is `file.py: name` in backticks."""
    hops = re.findall(r"`([\w/]+\.py): ([\w.]+)`", (REPO / "CONTRIBUTING.md").read_text())
    assert len(hops) >= 12
    for file, name in hops:
        nodes = ast.parse((REPO / file).read_text(encoding="utf-8"))
        for part in name.split("."):
            found = [n for n in ast.walk(nodes) if getattr(n, "name", None) == part]
            assert found, f"{file} has no {name}"
            nodes = found[0]
