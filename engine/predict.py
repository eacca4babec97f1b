"""What label.py and test.py share: an ensemble at work on pairs, and a folder of its masks."""

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from datasets.cache import FileReader
from datasets.dataset import ChangeDetectionDataset
from datasets.labels import read_label
from datasets.loaders import evaluation_loader, fit_shared_memory
from datasets.pairs import SOFT_FOLDER, Pair, PseudoLabels
from datasets.task import Task
from engine.config import LabelConfig, TestConfig
from engine.ensemble import (
    bands_to_read,
    choose_decoding,
    choose_ensemble,
    choose_unseen,
    describe_all,
    epochs_chosen,
    say_trained,
    warn_of_leakage,
)
from engine.predictor import Predictor
from engine.runtime import (
    build_predictor,
    choose_precision,
    compile_if_asked,
    conditions,
    describe,
    set_backend_options,
)
from utils import dist
from utils.dist import broadcast, gather, is_main, print0, sole_writer
from utils.errors import OptionError
from utils.files import file_state, read_json, remove_leftovers, write_json
from utils.locks import LOCK
from utils.pictures import read_note, save_change_mask, save_image, save_mask
from utils.text import plural

MANIFEST = "manifest.json"
FORMAT = 2  # masks carry a note of their work; before, their times told
MAX_PENDING = 32  # pairs that wait in memory before the caller has to wait


@dataclass(frozen=True)
class Job:
    """What an ensemble is to do."""

    doing: str  # in a word, for the first line
    task: Task
    pairs: Sequence[Pair]
    unseen: Sequence[str]  # ids of pairs that no model should have been trained on
    folder: Path  # of the masks
    options: Sequence[str]  # names of those that decide the masks, beside the number format
    by_students: bool  # whether runs with pseudo labels do it, or those without
    folders: Sequence[str] = ()  # that masks go to, where they are not the task's

    def read_masks(self, index: int) -> list[torch.Tensor]:
        """Return the masks of a finished pair, (H, W) uint8, in the order of a model's maps."""
        name, classes = self.pairs[index].name, self.task.classes
        paths = [self.folder / date / f"{name}.png" for date in self.task.mask_folders]
        return [torch.from_numpy(read_label(path, classes)) for path in paths]


class Work(NamedTuple):
    """An ensemble at work; ``made_with`` tells in plain values what its masks are made with.

    With ``cross_fit`` in a job's options, batches are of pairs for which the same models may
    predict, and ``allowed`` are these models' indices by a pair's name; else it is empty.
    """

    loader: DataLoader
    predictor: Predictor
    writer: "MaskWriter"
    made_with: dict[str, Any]
    allowed: dict[str, tuple[int, ...]]


@contextmanager
def open_work(config: LabelConfig | TestConfig, device: torch.device, job: Job) -> Iterator["Work"]:
    """Open the ensemble and the folder of its masks; every process must call it.

    The loader has this process's batches of the pairs that are not finished, and as
    ``batch_sampler.skipped`` its share of those that are.
    """
    set_backend_options()
    task, pairs = job.task, job.pairs
    folder = config.outdir / "models"
    checkpoints = choose_ensemble(config.checkpoints, folder, task, job.by_students)
    print0(
        f"{job.doing} {plural(len(pairs), 'pair')} with {plural(len(checkpoints), 'model')}, "
        f"{dist.size()} × {device.type}:\n{describe_all(checkpoints)}"
    )
    warn_of_leakage(checkpoints, job.unseen)
    groups = ()
    if "cross_fit" in job.options:
        groups = choose_unseen(checkpoints, [pair.id for pair in pairs])
    elif not job.by_students:
        say_trained(checkpoints, [pair.id for pair in pairs])
    bands = bands_to_read(checkpoints, pairs[0].image1)
    precision = choose_precision(config.amp, device)
    decoding = choose_decoding(config.decode, checkpoints)
    key = {name: getattr(config, name) for name in job.options} | {
        "precision": precision.name,
        "checkpoints": [_digest_of(c.path) for c in checkpoints] if is_main() else [],
        "data": sorted({str(pair.image1.parents[1].resolve()) for pair in pairs}),
    }
    if decoding.is_joint:  # masks of before there was a choice are independent
        key["decoding"] = asdict(decoding)
    with open_masks(job.folder, task, key, pairs, config.overwrite, job.folders) as writer:
        loader = evaluation_loader(
            ChangeDetectionDataset(pairs, task, reader=FileReader(task.classes, bands)),
            config.test_batch_size,
            config.reader_workers(device.type),
            skip=writer.finished,
            pin_memory=device.type == "cuda",
            groups=groups,
        )
        fit_shared_memory(loader)
        skipped = sum(gather(len(loader.batch_sampler.skipped)))
        if skipped:
            print0(f"{skipped} pairs were finished already (--overwrite makes them again)")
        predictor = build_predictor(checkpoints, device, precision, config.tta)
        predictor.decoding = decoding
        work = describe(predictor.models, precision, loader.num_workers)
        print0(f"{work}; {sum(gather(len(loader)))} batches of {config.test_batch_size} pairs")
        compile_if_asked(predictor, config.compile, loader)
        names = [checkpoint.path.name for checkpoint in checkpoints]
        chosen = epochs_chosen(checkpoints, [pair.id for pair in pairs])
        made_with = {"checkpoints": names, "epoch_choice": chosen, "bands": bands.numbers}
        made_with |= conditions(predictor, precision)
        allowed = dict(zip([pair.name for pair in pairs], groups, strict=True)) if groups else {}
        yield Work(loader, predictor, writer, made_with, allowed)


@contextmanager
def open_masks(
    folder: Path,
    task: Task,
    key: Mapping[str, Any],
    pairs: Sequence[Pair],
    overwrite: bool,
    folders: Sequence[str] = (),
) -> Iterator["MaskWriter"]:
    """Go on with the masks that a folder holds, or begin others; every process must call it.

    ``folders`` are those inside that masks go to, by default the task's. No other program may write
    there meanwhile. The manifest holds the ``key``, plain values that decide all masks alike; each
    mask carries a digest of it, and one of its pair's files. Process 0 decides for all, as nodes
    may see another state of a shared folder. Half-written masks of a killed program are removed.
    """
    places = [folder / name for name in folders or task.mask_folders]
    key = {"format": FORMAT, "classes": task.classes.to_dict(), **key}
    with sole_writer(folder / LOCK, "masks"):
        notes, finished = broadcast(is_main() and _begin(places, key, pairs, overwrite))
        with MaskWriter(places, task, notes, finished) as writer:
            yield writer


def _begin(
    places: Sequence[Path], key: Mapping[str, Any], pairs: Sequence[Pair], overwrite: bool
) -> tuple[dict[str, str], list[int]]:
    """Return the notes of the masks by pair, and the indices of pairs that are finished."""
    folder = places[0].parent
    for each in (folder, *places):
        remove_leftovers(each)
    if _read_manifest(folder) != json.loads(json.dumps(key)):
        write_json(folder / MANIFEST, key)
    work = mask_set(folder)
    notes = {p.name: f"{work}-{_digest([file_state(file) for file in p.files])}" for p in pairs}
    stray = {path.stem for place in places for path in place.glob("*.png")}
    stray -= notes.keys()
    if stray:
        print0(
            f"warning: {folder}: {plural(len(stray), 'mask')} of earlier work, such as "
            f"{min(stray)}.png; remove what is not wanted"
        )
    finished = []
    for index, pair in enumerate(pairs):
        masks = [place / f"{pair.name}.png" for place in places]
        if overwrite:
            for mask in masks:
                mask.unlink(missing_ok=True)
        elif all(read_note(mask) == notes[pair.name] for mask in masks):
            finished.append(index)
    return notes, finished


def mask_set(folder: Path) -> str:
    """Return what tells the masks of a folder from those of other work; "" without a manifest."""
    manifest = _read_manifest(folder)
    return "" if manifest is None else _digest(manifest)


def has_soft_targets(folder: Path) -> bool:
    """Tell whether a folder's masks, as its manifest says or else as they lie there, have some."""
    manifest = _read_manifest(folder)
    if manifest is None:
        return (folder / SOFT_FOLDER).is_dir()
    return isinstance(manifest, dict) and manifest.get("targets") == "soft"


def unfinished(labels: PseudoLabels, pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs whose pseudo labels are missing or of other work than the manifest's.

    Without a manifest the masks were made elsewhere and are taken as they are: returns nothing.
    An OptionError for one of before masks carried notes.
    """
    folder = labels.root
    work, manifest = mask_set(folder), _read_manifest(folder)
    if not work:
        return []
    if isinstance(manifest, dict) and "format" not in manifest:
        raise OptionError(
            f"{folder}: masks of an older label.py, which do not tell whether all are of one run; "
            f"run label.py again, or remove {MANIFEST} to take them as they are"
        )
    return [
        pair
        for pair in pairs
        if any(read_note(path).split("-")[0] != work for path in labels.files(pair).values())
    ]


def _read_manifest(folder: Path) -> Any:
    """Return what the manifest holds: None where there is none, "" where it is damaged."""
    with suppress(FileNotFoundError):
        try:
            return read_json(folder / MANIFEST)
        except ValueError:  # somebody's hand
            return ""
    return None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


class MaskWriter:
    """A context that writes PNGs in threads, while the next batch is predicted.

    Of the ``places``, im1 and im2 get ``<name>.png`` in the class colours, change those of 0 and
    255, and soft the planes of soft targets below each other, with the ``notes`` of their pairs.
    Leaving the context waits for all of them. ``finished`` are indices of the pairs whose masks are
    there already.
    """

    def __init__(
        self,
        places: Sequence[Path],
        task: Task,
        notes: Mapping[str, str],
        finished: Sequence[int] = (),
    ) -> None:
        self._places, self._task, self._notes = places, task, notes
        self.finished = finished
        self._pool = ThreadPoolExecutor(2)  # zlib leaves the interpreter lock free
        self._pending: deque[Future] = deque()

    def write(self, names: Sequence[str], *maps: torch.Tensor) -> None:
        """Queue a batch's maps, in the order of the places, uint8, on the CPU.

        Those of dates and of change are (N, H, W), soft targets (N, planes, H, W).
        A `UserError` of an earlier mask that could not be written is raised here.
        """
        for name, *masks in zip(names, *(pred.numpy() for pred in maps), strict=True):
            self._pending.append(self._pool.submit(self._write_pair, name, masks))
        while len(self._pending) > MAX_PENDING or (self._pending and self._pending[0].done()):
            self._pending.popleft().result()

    def _write_pair(self, name: str, masks: Sequence[np.ndarray]) -> None:
        for place, mask in zip(self._places, masks, strict=True):
            path = place / f"{name}.png"
            if place.name == SOFT_FOLDER:
                save_image(path, mask.reshape(-1, mask.shape[-1]), self._notes[name])
            elif self._task.palette is None:
                save_change_mask(path, mask, self._notes[name])
            else:
                save_mask(path, mask, self._task.palette, self._notes[name])

    def __enter__(self) -> "MaskWriter":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            for future in self._pending:
                future.result()
