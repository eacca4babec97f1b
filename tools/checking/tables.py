"""What an inspection found, as tables of text and as plain values."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from datasets.statistics import REPORT_KEY
from tools.checking.inspection import Report
from utils.text import table


def tables(report: Report) -> Iterator[str]:
    """Yield what there is to say of splits, folders, bands and classes, a table each."""
    rows = []
    for split, facts in _split_facts(report).items():
        files = [file for pair in report.pairs if pair.split == split for file in pair.images]
        sizes = Counter(f"{file.size[1]} × {file.size[0]}" for file in files if not file.error)
        read = facts["label_pixels_read"]
        changed = f"{100 * facts['changed_pixels'] / read:.1f} %" if read else "–"
        rows.append([split, facts["pairs"], facts["labelled"], _usual(sizes), changed])
    yield table(["split", "pairs", "labelled", "size", "changed"], rows)
    yield table(
        ["folder", "files", "file type", "mode, bits", "label format"],
        [
            [folder, sum(facts["types"].values()), *map(_usual, facts.values())]
            for folder, facts in _folder_facts(report).items()
        ],
    )
    statistics = report.band_statistics()
    if statistics:
        heads, columns = [f"{statistics['bits']}-bit band, train"], []
        for date, each in enumerate((statistics, *statistics["dates"])):
            if each:
                heads += [f"mean of date {date}" if date else "mean", "deviation"]
                columns += [each["mean"], each["std"]]
        rows = enumerate(zip(*columns, strict=True), start=1)
        yield table(heads, [[band, *(f"{value:.2f}" for value in row)] for band, row in rows])
    names = report.classes.names[1:]
    if report.classes.is_binary:
        yield "binary change labels: change masks without classes"
    elif report.transitions()[1:, 1:].any():
        columns = {
            f"{split} {date}": report.class_shares(split)[date - 1]
            for split in report.splits
            for date in report.dates(split) or (1, 2)
        }
        shares = zip(*columns.values(), strict=True)
        yield table(["% of changed area", *columns], _rows(names, shares))
    counts = report.transitions(both_dates=True)[1:, 1:]
    if counts.any():
        yield table(["from \\ to, %", *names], _rows(names, 100 * counts / counts.sum()))


def to_dict(report: Report) -> dict[str, Any]:
    """Return everything as plain values for JSON; pixel counts, not percentages."""
    return {
        "root": str(report.root.resolve()),
        "classes": list(report.classes.names),
        "splits": _split_facts(report),
        "folders": _folder_facts(report),
        REPORT_KEY: report.band_statistics(),
        "findings": [finding.to_dict() for finding in report.findings],
        "pairs": [
            {"id": r.pair.id, "split": r.split, "size": r.images[0].size, "changed": r.changed}
            for r in report.pairs
        ],
    }


def _split_facts(report: Report) -> dict[str, dict[str, Any]]:
    splits = {}
    for split in report.splits:
        pairs = [pair for pair in report.pairs if pair.split == split]
        counts = report.transitions(split)
        facts = {
            "pairs": len(pairs),
            "labelled": sum(bool(pair.labels) for pair in pairs),
            "label_pixels_read": int(counts.sum()),
            "changed_pixels": int(counts[1:, 1:].sum()),
        }
        dates = report.dates(split)
        for date in dates:
            facts[f"class_pixels_date{date}"] = counts.sum(axis=2 - date).tolist()
        if len(dates) != 1 and not report.classes.is_binary:
            facts["transitions"] = counts.tolist()
        splits[split] = facts
    return splits


def _folder_facts(report: Report) -> dict[str, dict[str, Counter]]:
    """Count file types, modes and label formats per folder."""
    folders: dict[str, dict[str, Counter]] = {}
    for file in (file for pair in report.pairs for file in pair.images + pair.labels):
        empty = {"types": Counter(), "modes": Counter(), "label_formats": Counter()}
        facts = folders.setdefault(file.folder, empty)
        facts["types"][file.format or "unreadable"] += 1
        facts["modes"][f"{file.mode} {file.bits}" if file.mode else "–"] += 1
        if file.label_format:
            facts["label_formats"][file.label_format] += 1
    return dict(sorted(folders.items()))


def _rows(names: Iterable[str], values: Iterable[Iterable[float]]) -> list[list[str]]:
    return [[n, *(f"{value:.1f}" for value in row)] for n, row in zip(names, values, strict=True)]


def _usual(counter: Counter) -> str:
    """'PNG' where all agree, 'PNG (11), JPEG (1)' where not."""
    if len(counter) < 2:
        return "".join(counter)
    shown = ", ".join(f"{value} ({n})" for value, n in counter.most_common(3))
    return shown + (f", {len(counter) - 3} more" if len(counter) > 3 else "")
