"""The pairs that a report scores and shows: which they are, their counts, the worst of them."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.classes import STANDARD, ClassList, Preset, find_preset
from datasets.images import read_picture, valid_pixels
from datasets.pairs import Pair, and_more, differing_labels, index_pairs, split_pairs, test_split
from datasets.splits import SplitOptions
from datasets.task import load_classes
from engine.config import DATA_ROOT
from tools.reporting.gallery import PairMaps, encode_pair
from tools.reporting.runs import Run
from tools.scoring import folders
from tools.scoring.folders import MaskCounter, MaskJob
from tools.scoring.statistics import PairCounts, image_scores, tally
from utils.errors import DataError, OptionError
from utils.text import progress


@dataclass(frozen=True)
class Masks:
    """A folder of predicted masks and what is known of it."""

    title: str  # what was predicted, for the headings
    classes: ClassList
    total: int  # pairs in the folder
    labelled: bool  # whether every pair has labels of all that was predicted
    counts: Sequence[PairCounts]  # of every pair; without labels the predictions stand for them
    pairs: Sequence[dict[str, Any]]  # those to show, in that order: plain values for JSON


def read_masks(options: Namespace, first: Run) -> Masks | None:
    """Count all masks and read those to show; None where no masks are asked for or found.

    Data and outdir of the ``first`` run stand for what the options of report.py leave open.
    """
    folder = options.masks or first.outdir / "masks" / options.split
    if options.masks is None:
        if options.split == "train":
            raise OptionError(
                "--split train: OUTDIR/masks/train holds pseudo masks, which predict no change; "
                "name predictions with --masks"
            )
        if not folder.is_dir():
            print(f"note: no {folder}, so no gallery; test.py writes masks, --masks names others")
            return None
    root = options.data_root or Path(first.options.get("data_root") or DATA_ROOT)
    preset = find_preset(options.preset or first.options.get("preset"), root, coded=True)
    classes = load_classes(root, preset)
    pairs = find_pairs(options, root, first, preset)
    found = folders.find_masks(folder, classes.is_binary)
    missing = [pair.name for pair in pairs if pair.name not in found]
    if missing:
        raise DataError(
            f"{folder}: no masks for pair {missing[0]}{and_more(missing)}; predict all "
            "pairs, choose another --split, or list those to show with --names"
        )
    masks = [found[pair.name] for pair in pairs]
    dates = 0 if classes.is_binary else 2
    labelled = all(pair.labels and len(pair.labelled_dates) >= dates for pair in pairs)
    jobs = [
        MaskJob(
            pair.name,
            tuple(pair.labels.values()) if labelled else mask,
            (mask,),
            (pair.image1, pair.image2),
        )
        for pair, mask in zip(pairs, masks, strict=True)
    ]
    bands = tuple(first.options.get("bands") or folders.bands_read(folder))
    counter = MaskCounter(classes, "keep", bands, preset if labelled else STANDARD)
    counts = folders.count_all(jobs, counter, options.workers)[0]
    figures = rank_pairs(pairs, counts, labelled)
    shown = []
    for i, known in progress(figures[: options.pairs], "embed", unit="pair"):
        maps = read_pair(jobs[i], labelled, counter)  # one pair in full size at a time
        shown.append({"name": pairs[i].name} | known | encode_pair(maps, len(classes.names)))
    said = folders.epoch_choice(folder)
    title = f"{'/'.join(folder.resolve().parts[-2:])} of {'/'.join(root.resolve().parts[-2:])}"
    title += f" ({said})" if said else ""
    return Masks(title, classes, len(pairs), labelled, counts, shown)


def find_pairs(options: Namespace, root: Path, first: Run, preset: Preset) -> list[Pair]:
    """Return the pairs of the split that ``--names`` lets pass."""
    if options.split == "val":
        pairs = validation_pairs(root, first, preset)
    else:
        split = test_split(root, preset) if options.split == "test" else "train"
        pairs = index_pairs(root / split, preset)
    if options.split == "test" and differing_labels(root, split, preset):
        print(f"note: {differing_labels(root, split, preset)}: no scores of its masks")
        pairs = [pair.without_labels() for pair in pairs]
    if not options.names:
        return pairs
    by_name = {pair.name: pair for pair in pairs}
    return [by_name[name] for name in folders.read_names(options.names, by_name)]


def validation_pairs(root: Path, run: Run, preset: Preset) -> list[Pair]:
    """Return the pairs that a run was validated on; a DataError where its files do not tell."""
    if not run.split.val:
        if run.options:
            return split_pairs(root, SplitOptions.from_options(run.options), preset)[2]
        raise DataError(
            f"--split val: {run.folder} has no options.json and no checkpoint, which would tell on "
            "what it was validated; restore one, or name pairs of another --split with --names"
        )
    folders = dict.fromkeys(name.split("/")[0] for name in run.split.val)
    by_id = {pair.id: pair for folder in folders for pair in index_pairs(root / folder, preset)}
    missing = [name for name in run.split.val if name not in by_id]
    if missing:
        raise DataError(
            f"{root}: no pair {missing[0]}{and_more(missing)}, but {run.folder} was validated on "
            "it; name the data of that run with --data-root"
        )
    return [by_id[name] for name in run.split.val]


def rank_pairs(
    pairs: Sequence[Pair], counts: Sequence[PairCounts], labelled: bool
) -> list[tuple[int, dict[str, float | None]]]:
    """Order pairs by their share of wrong pixels, else by that of predicted change.

    Returns the place among ``pairs`` and figures: ``error``, the share of the pixels of both dates
    that are wrong, ``f_score``, F_scd or F1 of this pair alone, both None without labels, and
    ``changed``, the share of pixels that change in the label, or else in the prediction.
    """
    first = [pair.transitions[0] for pair in counts]
    order = changed = [float(1 - table[0, 0] / max(1, table.sum())) for table in first]
    errors = f_scores = [None] * len(pairs)
    if labelled:
        scores = image_scores(tally(counts, "dates"))
        pixels = np.array([table.sum() for table in first])
        order = errors = ((1 - scores["oa"]) * (pixels > 0)).tolist()
        f_scores = scores["f1" if "f1" in scores else "f_scd"].tolist()
    return [
        (i, {"error": errors[i], "f_score": f_scores[i], "changed": changed[i]})
        for i in sorted(range(len(pairs)), key=lambda i: (-order[i], pairs[i].name))
    ]


def read_pair(job: MaskJob, labelled: bool, counter: MaskCounter) -> PairMaps:
    """Read the images, of which the first three of some bands are shown, and masks of one pair."""
    classes, bands, masks = counter.classes, counter.bands, job.predictions[0]
    images = [read_picture(path, bands) for path in job.images]
    predictions, labels = folders.read_maps(masks, classes), []
    if labelled:
        labels = folders.read_maps(job.label, classes, counter.preset)[: len(predictions)]
    height, width = images[0].shape[:2]
    for path, array in zip((job.images[1], *masks), (images[1], *predictions), strict=True):
        if array.shape[:2] != (height, width):
            raise DataError(
                f"{path}: {array.shape[1]} × {array.shape[0]} pixels, but {job.images[0]} has "
                f"{width} × {height}; write masks of the images' size"
            )
    valid = valid_pixels(job.images, bands)
    if valid is not None:  # nothing is right or wrong there
        predictions, labels = ([mask * valid for mask in maps] for maps in (predictions, labels))
    return PairMaps(images, predictions, labels)
