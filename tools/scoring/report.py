"""What `tools/score.py` tells: conventions and tables as text, values for JSON, rows for CSV."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from datasets.classes import ClassList, find_preset
from tools.scoring import folders, statistics, tables
from tools.scoring.statistics import PairCounts, Scores
from utils.errors import OptionError
from utils.files import write_csv, write_json

MATRICES = {
    "dates": "the class maps of both dates in one matrix (SenseEarth 2020, Bi-SRNet, SCanNet)",
    "transitions": "one map of from→to entries (ChangeMamba since June 2024, torchange)",
}

ONE_SIDED = {
    "error": "both dates of each prediction change in the same pixels (checked)",
    "unchanged": "a pixel predicted to change at one date alone counts as unchanged at both",
    "keep": "each date counts as it is, also where only one of them is predicted to change",
}


def score_folders(options: Namespace) -> dict:
    """Score as the options of tools/score.py say; print, write files, return what JSON holds."""
    if options.matrix == "transitions" and options.one_sided == "keep":
        raise OptionError(
            "--one-sided keep: a change at one date alone is no transition; use --one-sided "
            "unchanged, or --matrix dates"
        )
    if options.versus and not options.bootstrap:
        raise OptionError("--versus compares by resampling; give --bootstrap at least 1")
    if options.classes and options.preset:
        raise OptionError("--classes: --preset knows the classes; leave one of them out")
    preset = find_preset(options.preset, options.label.absolute().parent, coded=True)
    classes, source = folders.find_classes(options.classes, options.label, preset)
    if classes.is_binary and options.matrix == "transitions":
        raise OptionError("--matrix transitions: change masks without classes have none")
    predictions = [folder for folder in (options.prediction, options.versus) if folder]
    jobs = folders.find_jobs(options.label, predictions, options.names, classes, preset)
    bands = options.bands or folders.bands_read(options.prediction)
    counter = folders.MaskCounter(classes, options.one_sided, bands, preset)
    counts = folders.count_all(jobs, counter, options.workers)
    report = Report(options, classes, source, [job.name for job in jobs], counts)
    print(report.text())
    if options.json:
        write_json(options.json, report.to_dict())
    if options.csv:
        write_csv(options.csv, report.image_rows())
    return report.to_dict()


@dataclass(frozen=True)
class Report:
    """Scores of one folder of predictions, A, or of two, A and B, ready to be told."""

    options: Namespace  # of the command
    classes: ClassList
    classes_source: str  # where they come from
    pair_names: Sequence[str]
    counts: Sequence[Sequence[PairCounts]]  # per folder, of each pair

    @cached_property
    def tallies(self) -> list[np.ndarray]:
        """Per folder the tallies of each pair under the chosen matrix."""
        return [statistics.tally(pairs, self.options.matrix) for pairs in self.counts]

    @cached_property
    def values(self) -> list[Scores]:
        """Per folder the scores of all images pooled."""
        return [statistics.pooled_scores(tallies) for tallies in self.tallies]

    @cached_property
    def samples(self) -> list[Scores]:
        """Per folder the scores of all resamples; empty without resamples."""
        if not self.options.bootstrap:
            return [{} for _ in self.tallies]
        return statistics.bootstrap(self.tallies, self.options.bootstrap, self.options.seed)

    @cached_property
    def differences(self) -> dict[str, dict[str, float]]:
        """By how much A is better than B; empty without B."""
        return statistics.compare(self.values, self.samples) if self.options.versus else {}

    def _topics(self) -> dict[str, object]:
        """Say what was scored and how."""
        options, classes, binary = self.options, self.classes.num_classes, self.classes.is_binary
        entries = classes + 1 if options.matrix == "dates" else classes**2 + 1
        named, matrix = "none", "change masks without classes: every pixel once, 2 × 2"
        if not binary:
            named = f"unchanged and {classes} more"
            matrix = f"{options.matrix}: {MATRICES[options.matrix]}, {entries} × {entries}"
        intervals = (
            f"{statistics.CONFIDENCE:.0%} percentile bootstrap over images, {options.bootstrap} "
            f"resamples, seed {options.seed}"
        )
        told = [(f, folders.epoch_choice(f)) for f in (options.prediction, options.versus) if f]
        predicted = [f"{folder}{f' ({said})' if said else ''}" for folder, said in told]
        return {
            **dict(zip(("A", "B") if options.versus else ("prediction",), predicted, strict=True)),
            "label": options.label,
            "pairs": f"{len(self.pair_names):,}",
            "classes": f"{named}, {self.classes_source}",
            "matrix": matrix,
            "OA": "once over all pixels, once as the mean over images of each image's accuracy",
            **({} if binary else {"change": ONE_SIDED[options.one_sided]}),
            "intervals": intervals if options.bootstrap else "none",
        }

    def text(self) -> str:
        """Return everything but the single images, as text."""
        topics = self._topics()
        width = max(map(len, topics))
        values, samples, classes = self.values[0], self.samples[0], self.classes.names
        titles = tables.score_titles(values)
        rows = ([values[name] for name in titles], [samples.get(name) for name in titles])
        blocks = ["\n".join(f"{topic:<{width}}  {text}" for topic, text in topics.items())]
        blocks.append(tables.value_table("in percent", list(titles.values()), *rows))
        if not self.classes.is_binary:
            if self.options.matrix == "dates":
                drawn = samples["class_iou"].T if samples else [None] * len(classes)
                ious = values["class_iou"]
                blocks.append(tables.value_table("IoU per class", classes, ious, drawn))
            blocks.append(tables.transition_table(classes, self.counts[0]))
        if self.differences:
            blocks.append(tables.comparison(*self.values, self.differences))
        return "\n\n".join(blocks)

    def to_dict(self) -> dict:
        """Return everything but the single images, as plain values; scores are fractions."""
        options, binary = self.options, self.classes.is_binary
        result = {
            "prediction": str(options.prediction),
            "label": str(options.label),
            "pairs": len(self.pair_names),
            "classes": list(self.classes.names),
            "matrix": "change" if binary else options.matrix,
            **({} if binary else {"one_sided": options.one_sided}),
            "bootstrap": options.bootstrap,
            "seed": options.seed,
            **self._folder(0),
        }
        if self.differences:
            result["versus"] = {"prediction": str(options.versus), **self._folder(1)}
            result["differences"] = self.differences
        return result

    def _folder(self, i: int) -> dict:
        counts = self.counts[i]
        scores = {name: {"value": value.tolist()} for name, value in self.values[i].items()}
        for name, samples in self.samples[i].items():
            scores[name]["interval"] = statistics.interval(samples).T.tolist()
        result = {"scores": scores, "confusion": sum(pair.confusion for pair in counts).tolist()}
        if not self.classes.is_binary:
            result["transitions"] = tables.transitions(self.classes.names, counts)
            result["one_class"] = tables.one_class_shares(counts)
        return result

    def image_rows(self) -> list[dict[str, Any]]:
        """Return a row per image: name, pixels, changed pixels, and scores as fractions."""
        rows: list[dict] = [{"name": name} for name in self.pair_names]
        for i, prefix in enumerate(("", "versus_")[: len(self.counts)]):
            scores = statistics.image_scores(self.tallies[i])
            for j, (row, pair) in enumerate(zip(rows, self.counts[i], strict=True)):
                row["pixels"] = int(pair.transitions[0].sum())
                row["changed_label"], row[f"{prefix}changed_prediction"], _ = pair.changed
                for name in tables.score_titles(scores):
                    if name in scores:
                        row[f"{prefix}{name}"] = float(scores[name][j])
        return rows
