"""Composed pairs on disk: plan them, write them, and take back what an earlier run wrote."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from datasets.classes import CLASSES_FILE, ClassList, classes_file
from tools.composing.compose import Recipe, compose_pair
from tools.composing.source import (
    SPLITS,
    MaskReader,
    SceneFiles,
    check_scene,
    read_tile,
    require_scenes,
)
from utils.errors import DataError, OptionError
from utils.files import write_json
from utils.parallel import ParallelMap
from utils.pictures import save_image, save_mask

RECORD_FILE = "composed.json"  # also tells composed folders from real ones

FOLDERS = ("im1", "im2", "label1", "label2", "truth1", "truth2")

WRITTEN_NAME = re.compile(r"\d{5,}\.png|\.\d{5,}\.png\..*\.tmp")

DONORS = 2  # other scenes per pair, where there are so many

Progress = Callable[[Iterable, str], Iterable]


@dataclass(frozen=True)
class Job:
    """One pair to be written: which scenes, and the seed of all its draws."""

    split: str
    index: int
    scene: SceneFiles
    donors: tuple[SceneFiles, ...]
    seed: tuple[int, ...]


@dataclass(frozen=True)
class Written:
    """Pixels of known class, and how many of them changed, over the pairs of a split."""

    pairs: int
    known: int
    changed: int


def check_scenes(
    splits: dict[str, list[SceneFiles]],
    read_mask: MaskReader,
    size: int,
    workers: int = 1,
    progress: Progress = lambda items, _: items,
) -> None:
    """Read every mask once, so that nothing is written before all of them are known to be good.

    Raises:
        DataError: a scene that `check_scene` refuses, or a split with fewer than two classes.
    """
    scenes = [scene for split in splits.values() for scene in split]
    work = partial(check_scene, read_mask=read_mask, size=size)
    counts = iter(progress(ParallelMap(work, scenes, workers), "scene"))
    totals = {split: sum(next(counts) for _ in members) for split, members in splits.items()}
    next(counts, None)  # lets the bar end
    for split, total in totals.items():
        present = np.flatnonzero(total[1:]) + 1
        if len(present) < 2:
            raise DataError(
                f"{split}: {len(present)} class in all its masks; a change needs two classes"
            )


def plan_pairs(splits: dict[str, list[SceneFiles]], pairs: dict[str, int], seed: int) -> list[Job]:
    """Choose the place and the donors of every pair, each place about as often.

    Pair i of a split depends on (seed, split, i) and the scenes alone.

    Raises:
        DataError: too few scenes.
    """
    jobs = []
    for number, split in enumerate(SPLITS):
        if not pairs.get(split):
            continue
        scenes = splits[split]
        require_scenes(split, scenes)
        order = np.random.default_rng((seed, number)).permutation(len(scenes))
        for index in range(pairs[split]):
            chosen = int(order[index % len(scenes)])
            others = [scene for i, scene in enumerate(scenes) if i != chosen]
            elsewhere = [scene for scene in others if scene.place != scenes[chosen].place]
            others = elsewhere or others  # one place only: another part of it
            rng = np.random.default_rng((seed, number, index, 0))
            picked = rng.choice(len(others), min(DONORS, len(others)), replace=False)
            donors = tuple(others[i] for i in picked)
            jobs.append(Job(split, index, scenes[chosen], donors, (seed, number, index, 1)))
    return jobs


def write_pairs(
    out: Path,
    jobs: Sequence[Job],
    read_mask: MaskReader,
    size: int,
    recipe: Recipe,
    options: dict,
    workers: int = 1,
    progress: Progress = lambda items, _: items,
) -> dict[str, Written]:
    """Write ``out/{train,val}/{im1,im2,label1,label2,truth1,truth2}/<00000>.png``.

    Labels and truth are palette PNGs of class indices. ``classes.json`` and ``composed.json``, the
    record of options and scenes, come first. Neither ``workers`` nor a restart changes a byte.

    Returns:
        What was written, by split.

    Raises:
        DataError: an image cannot be read.
        UserError: ``out`` cannot be written.
    """
    out = Path(out)
    sources = {
        f"{job.split}/{job.index:05d}": [job.scene.name, *(donor.name for donor in job.donors)]
        for job in jobs
    }
    places = {
        split: sorted({s.place for j in jobs if j.split == split for s in (j.scene, *j.donors)})
        for split in SPLITS
    }
    record = {"options": options | asdict(recipe) | {"size": size}, "scenes": places}
    write_json(out / RECORD_FILE, record | {"pairs": sources})
    classes = read_mask.classes
    entries = zip(classes.names, classes.colors, strict=True)
    write_json(out / CLASSES_FILE, [{"name": n, "color": list(c)} for n, c in entries])
    work = partial(_write_pair, out=out, read_mask=read_mask, size=size, recipe=recipe)
    counts = {split: np.zeros(3, dtype=np.int64) for split in SPLITS}
    results = progress(ParallelMap(work, jobs, workers), "pair")
    for job, (known, changed) in zip(jobs, results, strict=True):
        counts[job.split] += (1, known, changed)
    return {split: Written(*map(int, count)) for split, count in counts.items() if count[0]}


def _write_pair(
    job: Job, out: Path, read_mask: MaskReader, size: int, recipe: Recipe
) -> tuple[int, int]:
    rng = np.random.default_rng(job.seed)
    scene, *donors = (read_tile(files, read_mask, size, rng) for files in (job.scene, *job.donors))
    pair = compose_pair(scene, donors, (*job.seed, 1), recipe)
    folder, name = out / job.split, f"{job.index:05d}.png"
    for date in ("1", "2"):
        save_image(folder / f"im{date}" / name, getattr(pair, f"image{date}"))
        for kind in ("label", "truth"):
            mask = getattr(pair, f"{kind}{date}")
            save_mask(folder / f"{kind}{date}" / name, mask, read_mask.classes.colors)
    return int(np.count_nonzero(pair.truth1)), int(np.count_nonzero(pair.label1))


def make_room(out: Path, overwrite: bool) -> None:
    """Remove an earlier run's pairs from ``out``; anything else there is refused.

    Raises:
        OptionError: ``out`` is not empty and ``overwrite`` is off, it is a file, or it holds
            something that this module did not write.
    """
    out = Path(out)
    if not out.exists():
        return
    if not out.is_dir():
        raise OptionError(f"{out}: a file; choose a folder that is empty or does not exist")
    files = sorted(path for path in out.rglob("*") if not path.is_dir() or path.is_symlink())
    if not files:
        return
    if not overwrite:
        raise OptionError(
            f"{out}: not empty; pass --overwrite to replace composed pairs, or choose another "
            "folder"
        )
    last = [out / CLASSES_FILE, out / RECORD_FILE]
    folders = {out / split / folder for split in SPLITS for folder in FOLDERS}
    foreign = [
        path
        for path in files
        if path not in last and not (path.parent in folders and WRITTEN_NAME.fullmatch(path.name))
    ]
    if foreign or not last[1].exists():
        named = foreign[0] if foreign else f"{out} has no {RECORD_FILE}: it"
        raise OptionError(
            f"{named} was not written by this tool, nothing was removed; choose another folder"
        )
    # The record goes last, so that an interrupted removal still looks like composed pairs.
    for path in [path for path in files if path not in last] + last:
        path.unlink(missing_ok=True)
    # An empty val would be taken for a validation set without images.
    for folder in [*folders, *(out / split for split in SPLITS)]:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def class_source(path: Path | None, images: Path) -> Path:
    """Return the file of the classes to use: the one named, else a classes.json with the images.

    Raises:
        DataError: none is named, and there is none with the images.
    """
    if path is not None:
        return classes_file(path)
    candidates = [Path(images), Path(images).absolute().parent]
    found = [folder / CLASSES_FILE for folder in candidates if (folder / CLASSES_FILE).is_file()]
    if not found:
        raise DataError(
            f"no {CLASSES_FILE} in {images} or the folder above; name one with --classes"
        )
    return found[0]


def usable(classes: ClassList) -> ClassList:
    """Return the class list if changes are possible with it.

    Raises:
        DataError: fewer than two classes beside *unchanged*.
    """
    if classes.num_classes < 2:
        raise DataError(
            f"the class list has one class beside {classes.names[0]!r}; a change needs two classes"
        )
    return classes
