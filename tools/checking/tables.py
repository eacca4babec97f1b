"""What an inspection found, as tables of text and as plain values."""

from collections import Counter
from typing import Any

import numpy as np

from datasets.statistics import REPORT_KEY
from tools.checking.findings import relative
from tools.checking.inspection import Report
from utils.text import table


def split_table(report: Report) -> str:
    """Pairs, sizes and share changed per split."""
    rows = []
    for split in report.splits:
        pairs = [pair for pair in report.pairs if pair.split == split]
        sizes = Counter(file.size for pair in pairs for file in pair.images if not file.error)
        labelled = sum(bool(pair.pair.labels) for pair in pairs)
        rows.append([split, len(pairs), labelled, usual(sizes, show_size), changed(report, split)])
    return table(["split", "pairs", "labelled", "size", "changed"], rows)


def folder_table(report: Report) -> str:
    """File formats, modes and label formats per folder."""
    return table(
        ["folder", "files", "file type", "mode, bits", "label format"],
        [
            [folder, sum(facts["types"].values()), *(usual(facts[name]) for name in facts)]
            for folder, facts in folder_facts(report).items()
        ],
    )


def folder_facts(report: Report) -> dict[str, dict[str, Counter]]:
    """Count file types, modes and label formats per folder."""
    facts: dict[str, dict[str, Counter]] = {}
    for pair in report.pairs:
        formats = [None, None, *pair.formats]
        for file, label_format in zip(pair.images + pair.labels, formats, strict=True):
            folder = relative(file.path.parent, report.root)
            names = ("types", "modes", "label_formats")
            of_folder = facts.setdefault(folder, {name: Counter() for name in names})
            of_folder["types"][file.format or "unreadable"] += 1
            of_folder["modes"][f"{file.mode} {file.bits}" if file.mode else "–"] += 1
            if label_format:
                of_folder["label_formats"][label_format] += 1
    return dict(sorted(facts.items()))


def band_table(report: Report) -> str:
    """Mean and standard deviation of each band over the training images."""
    statistics = report.band_statistics()
    rows = [
        [number, f"{mean:.2f}", f"{std:.2f}"]
        for number, (mean, std) in enumerate(
            zip(statistics["mean"], statistics["std"], strict=True), start=1
        )
    ]
    return table([f"{statistics['bits']}-bit band, train", "mean", "deviation"], rows)


def class_table(report: Report) -> str:
    """Share of each class in the changed area, per split and date."""
    columns = {
        f"{split} {date}": class_shares(report, split)[date - 1]
        for split in report.splits
        for date in report.dates(split) or (1, 2)
    }
    return table(
        ["% of changed area", *columns],
        [
            [name, *(f"{shares[i]:.1f}" for shares in columns.values())]
            for i, name in enumerate(report.classes.names[1:])
        ],
    )


def transition_table(report: Report) -> str:
    """From class (rows) to class (columns), percent of the changed area labelled at both dates."""
    counts = report.transitions(both_dates=True)[1:, 1:]
    names = report.classes.names[1:]
    shares = 100 * counts / counts.sum()
    rows = [
        [name, *(f"{share:.1f}" for share in row)] for name, row in zip(names, shares, strict=True)
    ]
    return table(["from \\ to, %", *names], rows)


def class_shares(report: Report, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Percent of the changed area that each class covers at date 1 and at date 2."""
    counts = report.transitions(split)
    dates = (counts.sum(axis=1)[1:], counts.sum(axis=0)[1:])
    return tuple(100 * date / max(1, date.sum()) for date in dates)


def changed(report: Report, split: str) -> str:
    """Share of the pixels that changed, or a dash without readable labels."""
    counts = report.transitions(split)
    return f"{100 * counts[1:, 1:].sum() / counts.sum():.1f} %" if counts.any() else "–"


def usual(counter: Counter, show: Any = str) -> str:
    """'PNG' where all agree, 'PNG (11), JPEG (1)' where not."""
    if len(counter) < 2:
        return "".join(show(value) for value in counter)
    shown = ", ".join(f"{show(value)} ({n})" for value, n in counter.most_common(3))
    return shown + (f", {len(counter) - 3} more" if len(counter) > 3 else "")


def show_size(size: tuple[int, int]) -> str:
    """(height, width) -> 'width × height'."""
    return f"{size[1]} × {size[0]}"


def to_dict(report: Report) -> dict[str, Any]:
    """Everything as plain values for JSON; pixel counts, not percentages."""
    splits = {}
    for split in report.splits:
        pairs = [pair for pair in report.pairs if pair.split == split]
        counts = report.transitions(split)
        splits[split] = {
            "pairs": len(pairs),
            "labelled": sum(bool(pair.pair.labels) for pair in pairs),
            "label_pixels_read": int(counts.sum()),
            "changed_pixels": int(counts[1:, 1:].sum()),
        }
        dates = report.dates(split)
        of_dates = {1: counts.sum(axis=1), 2: counts.sum(axis=0)}
        splits[split] |= {f"class_pixels_date{date}": of_dates[date].tolist() for date in dates}
        if len(dates) != 1 and not report.classes.is_binary:
            splits[split]["transitions"] = counts.tolist()
    return {
        "root": str(report.root.resolve()),
        "classes": list(report.classes.names),
        "splits": splits,
        "folders": folder_facts(report),
        REPORT_KEY: report.band_statistics(),
        "findings": [finding.to_dict() for finding in report.findings],
        "pairs": [
            {
                "id": pair.pair.id,
                "split": pair.split,
                "size": list(pair.images[0].size),
                "changed": pair.changed,
            }
            for pair in report.pairs
        ],
    }
