"""Tables of runs as Markdown and LaTeX."""

import re
from collections.abc import Sequence
from typing import Any

from utils.cli import escape_unsafe

LATEX = {char: f"\\{char}" for char in "&%$#_{}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$", "–": "--"}


def as_markdown(table: dict[str, Any]) -> str:
    """Return what `stage_table` made as Markdown; names of files and classes are text in it."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    align = ["---", *["---:"] * (len(table["titles"]) - 1)]
    rows = [line([_markdown(title) for title in table["titles"]]), line(align)]
    rows += [line(cells) for cells in _cells(table, _markdown, "**{}**")]
    return "\n".join([_markdown(_caption(table)), "", *rows, ""])


def as_latex(table: dict[str, Any]) -> str:
    """Return what `stage_table` made as a LaTeX tabular, which needs no package."""
    rows = [" & ".join(cells) + r" \\" for cells in _cells(table, _latex, r"\textbf{{{}}}")]
    head = " & ".join(map(_latex, table["titles"])) + r" \\"
    columns = "l" + "r" * (len(table["titles"]) - 1)
    begin, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
    lines = [f"% {escape_unsafe(_caption(table))}", begin, r"\hline", head, r"\hline", *rows]
    return "\n".join([*lines, r"\hline", end, ""])


def _caption(table: dict[str, Any]) -> str:
    return f"{table['letter']}. {table['split']}" if table["letter"] else table["split"]


def _cells(table: dict[str, Any], escape: Any, bold: str) -> list[list[str]]:
    return [
        [escape(f"{row['name']} ({row['note']})")]
        + [
            bold.format(escape(text)) if name in row["top"] else escape(text)
            for name, text in row["cells"].items()
        ]
        for row in table["rows"]
    ]


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|#~$&])", r"\\\1", escape_unsafe(" ".join(text.split("\n"))))


def _latex(text: str) -> str:
    plain = escape_unsafe(" ".join(text.split("\n")))
    return "".join(LATEX.get(char, char) for char in plain)
