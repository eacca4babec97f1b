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
from datasets.pairs import IMAGE_FOLDERS, Pair, pseudo_mask
from datasets.task import Task
from engine.config import LabelConfig, TestConfig
from engine.ensemble import (
    bands_to_read,
    choose_decoding,
    choose_ensemble,
    describe_all,
    epochs_chosen,
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
from utils.pictures import read_note, save_change_mask, save_mask
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

    def read_masks(self, index: int) -> list[torch.Tensor]:
        """Return the masks of a finished pair, (H, W) uint8, in the order of a model's maps."""
        name, classes = self.pairs[index].name, self.task.classes
        paths = [self.folder / date / f"{name}.png" for date in self.task.mask_folders]
        return [torch.from_numpy(read_label(path, classes)) for path in paths]


class Work(NamedTuple):
    """An ensemble at work; ``made_with`` tells in plain values what its masks are made with."""

    loader: DataLoader
    predictor: Predictor
    writer: "MaskWriter"
    made_with: dict[str, Any]


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
    bands = bands_to_read(checkpoints, pairs[0].image1)
    precision = choose_precision(config.amp, device)
    decoding = choose_decoding(config.decode, checkpoints)
    key = {name: getattr(config, name) for name in job.options} | {
        "precision": precision.name,
        "checkpoints": [_digest_of(c.path) for c in checkpoints] if is_main() else [],
        "data": sorted({str(pair.image1.parents[1].resolve()) for pair in pairs}),
    }
    # Hard votes do not depend on it, and masks of before there was a choice are independent.
    if decoding.is_joint and getattr(config, "vote", "soft") == "soft":
        key["decoding"] = asdict(decoding)
    with open_masks(job.folder, task, key, pairs, config.overwrite) as writer:
        loader = evaluation_loader(
            ChangeDetectionDataset(pairs, task, reader=FileReader(task.classes, bands)),
            config.test_batch_size,
            config.reader_workers(device.type),
            skip=writer.finished,
            pin_memory=device.type == "cuda",
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
        yield Work(loader, predictor, writer, made_with)


@contextmanager
def open_masks(
    folder: Path, task: Task, key: Mapping[str, Any], pairs: Sequence[Pair], overwrite: bool
) -> Iterator["MaskWriter"]:
    """Go on with the masks that a folder holds, or begin others; every process must call it.

    No other program may write there meanwhile. The manifest holds the ``key``, plain values that
    decide all masks alike; each mask carries a digest of it, and one of its pair's files. Process 0
    decides for all, as nodes may see another state of a shared folder. Half-written masks of a
    killed program are removed.
    """
    with sole_writer(folder / LOCK, "masks"):
        notes, finished = broadcast(is_main() and _begin(folder, task, key, pairs, overwrite))
        with MaskWriter(folder, task, notes, finished) as writer:
            yield writer


def _begin(
    folder: Path, task: Task, key: Mapping[str, Any], pairs: Sequence[Pair], overwrite: bool
) -> tuple[dict[str, str], list[int]]:
    """Return the notes of the masks by pair, and the indices of pairs that are finished."""
    key = {"format": FORMAT, "classes": task.classes.to_dict(), **key}
    for each in (folder, *(folder / date for date in task.mask_folders)):
        remove_leftovers(each)
    if _read_manifest(folder) != json.loads(json.dumps(key)):
        write_json(folder / MANIFEST, key)
    work = mask_set(folder)
    notes = {p.name: f"{work}-{_digest([file_state(file) for file in p.files])}" for p in pairs}
    stray = {path.stem for date in task.mask_folders for path in (folder / date).glob("*.png")}
    stray -= notes.keys()
    if stray:
        print0(
            f"warning: {folder}: {plural(len(stray), 'mask')} of earlier work, such as "
            f"{min(stray)}.png; remove what is not wanted"
        )
    finished = []
    for index, pair in enumerate(pairs):
        masks = [folder / date / f"{pair.name}.png" for date in task.mask_folders]
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


def unfinished(folder: Path, pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs whose masks of both dates are missing or of other work than the manifest's.

    Without a manifest the masks were made elsewhere and are taken as they are: returns nothing.
    An OptionError for one of before masks carried notes.
    """
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
        if any(
            read_note(pseudo_mask(folder, date, pair)).split("-")[0] != work
            for date in IMAGE_FOLDERS
        )
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

    The folder gets ``{im1,im2}/<name>.png`` in the class colours, or ``change/<name>.png`` of 0 and
    255, with the ``notes`` of their pairs. Leaving the context waits for all of them. ``finished``
    are indices of the pairs whose masks are there already.
    """

    def __init__(
        self, folder: Path, task: Task, notes: Mapping[str, str], finished: Sequence[int] = ()
    ) -> None:
        self._folder, self._task, self._notes = Path(folder), task, notes
        self.finished = finished
        self._pool = ThreadPoolExecutor(2)  # zlib leaves the interpreter lock free
        self._pending: deque[Future] = deque()

    def write(self, names: Sequence[str], *maps: torch.Tensor) -> None:
        """Queue a batch's maps, of both dates or of change: (N, H, W) uint8, on the CPU.

        A `UserError` of an earlier mask that could not be written is raised here.
        """
        for name, *masks in zip(names, *(pred.numpy() for pred in maps), strict=True):
            self._pending.append(self._pool.submit(self._write_pair, name, masks))
        while len(self._pending) > MAX_PENDING or (self._pending and self._pending[0].done()):
            self._pending.popleft().result()

    def _write_pair(self, name: str, masks: Sequence[np.ndarray]) -> None:
        for folder, mask in zip(self._task.mask_folders, masks, strict=True):
            path = self._folder / folder / f"{name}.png"
            if self._task.palette is None:
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
