"""The example of docs/metrics.md: `python -m pytest -s` on this file prints it."""

import re
from pathlib import Path

import numpy as np

from tools import score
from tools.scoring.statistics import PairCounts, count_pair, pooled_scores, tally
from tools.scoring.tables import score_titles
from utils.text import table

REPO = Path(__file__).resolve().parents[3]
DOC = (REPO / "docs" / "metrics.md").read_text(encoding="utf-8")
SHIFT, BLOCK = 2, 8  # pixels
MATRICES = ("dates", "transitions")


def blocks(rng: np.random.Generator, side: int, low: int, high: int) -> np.ndarray:
    """A map of random values in squares."""
    coarse = rng.integers(low, high, (side // BLOCK, side // BLOCK), dtype=np.uint8)
    return np.kron(coarse, np.ones((BLOCK, BLOCK), dtype=np.uint8))


def example() -> list[PairCounts]:
    """Twelve pairs of two sizes; predictions miss edges, classes, and now and then a change."""
    rng = np.random.default_rng(0)
    counts = []
    for i in range(12):
        side = (64, 128)[i % 2]
        # Small images change more, as close-ups do.
        changed = blocks(rng, side, 0, 100) < (50, 20)[i % 2]
        labels = [blocks(rng, side, 1, 7) * changed for _ in range(2)]
        found = np.roll(changed, SHIFT, axis=1) & (blocks(rng, side, 0, 100) < 85)
        found |= blocks(rng, side, 0, 100) < 5
        predictions = []
        for label in labels:
            guess = blocks(rng, side, 1, 7)
            named = np.where((label > 0) & (blocks(rng, side, 0, 100) < 75), label, guess)
            predictions.append(named * found)
        counts.append(count_pair(*predictions, *labels, num_classes=6))
    return counts


def example_table() -> list[tuple[str, ...]]:
    """One row per score: its name and its value in percent under either convention."""
    values = [pooled_scores(tally(example(), matrix)) for matrix in MATRICES]
    rows = []
    for name, title in score_titles(values[0]).items():
        dates, transitions = (100 * float(scores[name]) for scores in values)
        rows.append((title, f"{dates:.1f}", f"{transitions:.1f}", f"{transitions - dates:+.1f}"))
    return rows


def test_the_table_of_the_document():
    rows = example_table()
    print("\n" + table(("in percent", *MATRICES, "difference"), rows))
    printed = re.findall(
        r"^\| ([^|]+) \| ([\d.]+) \| ([\d.]+) \| ([-+−\d.]+) \|$", DOC, re.MULTILINE
    )
    assert [(a, b, c, d.replace("−", "-")) for a, b, c, d in printed] == rows


def test_files_and_options_of_the_document_exist():
    for name in re.findall(r"`((?:utils|tools|tests|datasets)/[\w./]+)`", DOC):
        assert (REPO / name).exists(), name
    for block in re.findall(r"```bash\n(.*?)```", DOC, flags=re.DOTALL):
        for line in block.splitlines():
            if line.startswith("python tools/score.py"):
                score.parse_args(line.split()[2:])
