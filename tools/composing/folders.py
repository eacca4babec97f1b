"""Composed pairs on disk: plan them, check their scenes, write them."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from datasets.classes import CLASSES_FILE
from tools.checking.class_map import load_class_map
from tools.composing import source
from tools.composing.compose import Recipe, compose_pair
from tools.composing.source import MaskReader, SceneFiles, check_scene
from tools.scenes.folders import (
    SPLITS,
    digest_files,
    goes_on,
    make_room,
    read_truth,
    unfinished,
)
from utils.errors import DataError
from utils.files import write_json
from utils.parallel import ParallelMap
from utils.pictures import save_image, save_mask
from utils.text import progress

RECORD_FILE = "composed.json"  # also tells composed folders from others
DONORS = 2  # other scenes per pair, where there are so many


@dataclass(frozen=True)
class Job:
    """One pair to be written: its place, the scenes to paste from, and the seed of all draws."""

    split: str
    index: int
    scenes: tuple[SceneFiles, ...]
    seed: tuple[int, ...]


def compose_set(args: Namespace) -> None:
    """Do what the options of compose_pairs.py say, or write nothing; print one line per split."""
    classes = source.find_classes(args.classes, args.images)
    foreign = args.class_map and load_class_map(args.class_map, classes, classes)
    read_mask = MaskReader(classes, foreign or source.ignoring(classes, args.ignore))
    scenes = source.find_scenes(args.images, args.masks, args.scene_pattern)
    pairs = {"train": args.train_pairs, "val": args.val_pairs}
    # Scenes named for validation are kept out of training even where no pair is made of them.
    val = args.val_scenes if args.val_pairs or isinstance(args.val_scenes, list) else 0.0
    splits = source.split_scenes(scenes, val, args.seed)
    used = {split: members for split, members in splits.items() if pairs[split]}
    jobs = [job for s in used for job in plan_pairs(s, used[s], pairs[s], args.seed)]
    check_scenes(used, read_mask, args.size, args.workers)
    recipe = Recipe(changed=args.changed, nuisance=args.nuisance, size=args.size)
    options = {"images": str(args.images), "masks": str(args.masks), "seed": args.seed}
    options |= asdict(recipe)
    files = [file for scene in scenes for file in (scene.image, scene.mask)]
    begun = {"tool": "compose_pairs.py", **options, "pairs": pairs, "val_scenes": val}
    begun |= {"labels": str(read_mask), "source": digest_files(files)}
    if not goes_on(args.out, begun, args.overwrite):
        make_room(args.out, args.overwrite, (CLASSES_FILE, RECORD_FILE))
    counts = dict.fromkeys(used, 0)
    with unfinished(args.out, begun):
        write_records(args.out, jobs, options, read_mask)
        work = partial(write_pair, out=args.out, read_mask=read_mask, recipe=recipe)
        results = progress(ParallelMap(work, jobs, args.workers), "composing", unit="pair")
        for job, result in zip(jobs, results, strict=True):
            counts[job.split] += result
    for split, (known, changed) in counts.items():
        print(
            f"{split}: {pairs[split]} pairs of {args.size} × {args.size} pixels from "
            f"{len(splits[split])} scenes, {changed / max(known, 1):.1%} changed"
        )
    print(f"written to {args.out}; now: python tools/check_data.py {args.out}")


def plan_pairs(split: str, scenes: Sequence[SceneFiles], pairs: int, seed: int) -> list[Job]:
    """Choose the place and the donors of every pair of a split, each place about as often.

    Pair i depends on (seed, split, i) and the scenes alone; too few of these are a DataError.
    """
    if len(scenes) < 2:
        raise DataError(
            f"{split}: {len(scenes)} scenes, but a pair needs 2, a place and another to paste "
            f"from; change --val-scenes, add scenes, or pass --{split}-pairs 0"
        )
    number = SPLITS.index(split)
    order = np.random.default_rng((seed, number)).permutation(len(scenes))
    jobs = []
    for index in range(pairs):
        place = scenes[order[index % len(scenes)]]
        others = [scene for scene in scenes if scene.place != place.place]
        others = others or [s for s in scenes if s is not place]  # another part of the one place
        rng = np.random.default_rng((seed, number, index, 0))
        picked = rng.choice(len(others), min(DONORS, len(others)), replace=False)
        members = (place, *(others[i] for i in picked))
        jobs.append(Job(split, index, members, (seed, number, index, 1)))
    return jobs


def check_scenes(
    splits: dict[str, list[SceneFiles]], read_mask: MaskReader, size: int, workers: int
) -> None:
    """Read every mask once, so that nothing is written before all of them are known to be good."""
    scenes = [scene for members in splits.values() for scene in members]
    work = partial(check_scene, read_mask=read_mask, size=size)
    counts = list(progress(ParallelMap(work, scenes, workers), "checking", unit="scene"))
    for split, members in splits.items():
        total = sum(counts.pop(0) for _ in members)
        present = np.count_nonzero(total[1:])
        if present < 2:
            raise DataError(
                f"{split}: {present} class in all its masks; a change needs two classes"
            )


def write_records(out: Path, jobs: Sequence[Job], options: dict, read_mask: MaskReader) -> None:
    """Write ``composed.json``, the record of options and scenes, and ``classes.json``."""
    pairs = {f"{job.split}/{job.index:05d}": [s.name for s in job.scenes] for job in jobs}
    places = {
        split: sorted({s.place for job in jobs if job.split == split for s in job.scenes})
        for split in SPLITS
    }
    write_json(out / RECORD_FILE, {"options": options, "scenes": places, "pairs": pairs})
    entries = zip(read_mask.classes.names, read_mask.classes.colors, strict=True)
    write_json(out / CLASSES_FILE, [{"name": n, "color": list(c)} for n, c in entries])


def write_pair(job: Job, out: Path, read_mask: MaskReader, recipe: Recipe) -> np.ndarray:
    """Write ``out/SPLIT/{im1,im2,label1,label2,truth1,truth2}/<00000>.png``.

    Labels and truth are palette PNGs of class indices. Returns the pixels of known class, and how
    many of them changed, (2,) integers.
    """
    folder, name = out / job.split, f"{job.index:05d}.png"
    truths = read_truth(folder, name, ("im1", "im2", "label1", "label2"))
    if truths:
        return np.array([np.count_nonzero(truths[0]), np.count_nonzero(truths[0] != truths[1])])
    rng = np.random.default_rng(job.seed)
    scene, *donors = (source.read_tile(f, read_mask, recipe.size, rng) for f in job.scenes)
    pair = compose_pair(scene, donors, (*job.seed, 1), recipe)
    for date in ("1", "2"):
        for kind in ("truth", "label"):  # the truth first: it tells generated pairs from others
            mask = getattr(pair, f"{kind}{date}")
            save_mask(folder / f"{kind}{date}" / name, mask, read_mask.classes.colors)
        save_image(folder / f"im{date}" / name, getattr(pair, f"image{date}"))
    return np.array([np.count_nonzero(pair.truth1), np.count_nonzero(pair.label1)])
