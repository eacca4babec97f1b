"""Tables of runs as Markdown and LaTeX."""

import re
from typing import Any

from utils.cli import escape_unsafe

LATEX = {char: rf"\{char}" for char in "&%$#_{}"} | {"±": r"$\pm$", "–": "--", "\n": " "}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}"}


def export_table(table: dict[str, Any], markdown: bool) -> str:
    """Return what `stage_table` made as Markdown, or else as a LaTeX tabular without packages."""
    escape, bold = (_markdown, "**{}**") if markdown else (_latex, r"\textbf{{{}}}")
    rows = [[escape(title) for title in table["titles"]]]
    for row in table["rows"]:
        cells = [f"{row['name']} ({row['note']})", *row["cells"].values()]
        top = [False, *(column in row["top"] for column in row["cells"])]
        texts = zip(map(escape, cells), top, strict=True)
        rows.append([bold.format(text) if best else text for text, best in texts])
    caption = f"{table['letter']} {table['split']}".strip().replace("\n", " ")
    if markdown:
        rows.insert(1, ["---", *["---:"] * (len(rows[0]) - 1)])
        return "\n".join([escape(caption), "", *(f"| {' | '.join(row)} |" for row in rows), ""])
    begin = rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}"
    lines = [f"{' & '.join(row)} \\\\" for row in rows]
    lines = [lines[0], r"\hline", *lines[1:]]
    return "\n".join([f"% {escape_unsafe(caption)}", begin, *lines, r"\end{tabular}", ""])


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|#~$&])", r"\\\1", escape_unsafe(text).replace("\n", " "))


def _latex(text: str) -> str:
    return "".join(LATEX.get(char, char) for char in escape_unsafe(text))
