"""Labelling from files to files, and reading training pairs."""

import contextlib
import io
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import torch
from PIL import Image

import label
import utils.text
from bench import reference
from bench.cases import REFERENCE, Options, draw_checkpoint, make_batch
from bench.floor import Work, count_work
from bench.machine import seconds
from datasets.augment import TrainTransform
from datasets.cache import build_cache
from datasets.classes import ClassList
from datasets.dataset import ChangeDetectionDataset
from datasets.images import image_size
from datasets.pairs import Pair, index_pairs
from datasets.task import load_classes
from engine.labelling import count_votes, hard_votes, merge_labels
from engine.predictor import VIEWS
from models.checkpoint import load_model
from tools.scenes.sample import SampleSet, write_sample_data
from utils.errors import OptionError
from utils.tensor_files import save_checkpoint

GENERATED_FORMAT = "index"  # labels that any PNG decoder reads
CPU = torch.device("cpu")


class LabelCase:
    """label.py against one file, one date, one view and one model after the other.

    Every call reads checkpoints and pairs from disk, builds the models, and writes all masks.
    """

    starts_anew = True

    def __init__(self, options: Options) -> None:
        self.options = options
        self.device, precision = options.open_device()
        self.amp = precision.name
        self.configs = options.configs()
        self._folder = TemporaryDirectory(prefix="scd-bench-")
        self.folder = Path(self._folder.name)
        self.root, self.train_pairs = find_pairs(options, self.folder)
        self.classes = load_classes(self.root)
        self.pairs = len(self.train_pairs)
        self.size = image_size(self.train_pairs[0].image1)[0]
        self.paths = list(options.checkpoints) or self._draw_checkpoints()
        self.waiting: dict[str, list[float]] = {}

    def _draw_checkpoints(self) -> list[Path]:
        batch = make_batch(self.options, 1)
        paths = []
        for number, config in enumerate(self.configs):
            drawn = draw_checkpoint(config, number, batch["image1"], batch["image2"])
            state = {"config": config.to_dict(), "model": drawn.tensors}
            state |= {"classes": self.classes.to_dict(), "run": f"bench {number}"}
            paths.append(self.folder / "models" / f"{number}_{config.backbone}.pth")
            save_checkpoint(paths[-1], state)
        return paths

    def make(self, name: str) -> Callable[[], object]:
        """Return a call that labels all pairs and returns the folder of the masks."""
        out = self.folder / name
        if name == REFERENCE:
            return lambda: self._label_as_published(out)
        options = self.options
        device = "cuda:0" if self.device == torch.device("cuda") else str(self.device)
        arguments = ["--data-root", self.root, "--outdir", out, "--checkpoints", *self.paths]
        arguments += ["--device", device, "--amp", options.amp]
        arguments += ["--test-batch-size", options.batch_size]
        arguments += ["--compile", "on" if name == "compiled" else "off"]
        arguments += ["--tta" if options.views > 1 else "--no-tta"]
        return lambda: self._label([str(a) for a in arguments], out, name)

    def _label(self, arguments: list[str], out: Path, name: str) -> Path:
        shutil.rmtree(out, ignore_errors=True)  # label.py goes on where it was interrupted
        waits = Waits()
        quiet = contextlib.redirect_stdout(io.StringIO())
        with mock.patch.object(utils.text, "progress", waits), quiet:
            total = seconds(lambda: label.main(arguments), self.device)
        if not waits.batches:
            raise RuntimeError("label.py does not wrap its loader in utils.text.progress")
        self.waiting.setdefault(name, []).append(waits.total_s / total)
        return out / "masks" / "train"

    def _label_as_published(self, out: Path) -> Path:
        views = VIEWS[: self.options.views]
        models = [reference.ReferenceDetector(load_model(p, self.device)) for p in self.paths]
        for start in range(0, self.pairs, self.options.batch_size):
            pairs = self.train_pairs[start : start + self.options.batch_size]
            images = [
                torch.from_numpy(np.stack(reference.reference_read(paths)))
                .permute(0, 3, 1, 2)
                .to(self.device)
                for paths in ([p.image1 for p in pairs], [p.image2 for p in pairs])
            ]
            votes = [
                hard_votes(probs.semantic_probs1.argmax(1) + 1, probs.semantic_probs2.argmax(1) + 1)
                for probs in reference.reference_predict(models, *images, views)
            ]
            vote = count_votes(torch.stack(votes), self.classes.num_classes).cpu()
            for pair, mask in zip(pairs, vote, strict=True):
                self._write(out, "im1", pair.image1.stem, pair.label1, mask)
                self._write(out, "im2", pair.image2.stem, pair.label2, mask)
        return out

    def _write(self, out: Path, date: str, stem: str, label_path: Path, vote: torch.Tensor) -> None:
        (truth,) = reference.reference_read([label_path])
        image = Image.fromarray(merge_labels(torch.from_numpy(truth), vote).numpy())
        image.putpalette([channel for color in self.classes.colors for channel in color])
        (out / date).mkdir(parents=True, exist_ok=True)
        image.save(out / date / f"{stem}.png")

    def agreement(self, expected: Path, found: Path) -> float:
        """Return the share of pixels with the same class in the masks that both wrote."""
        equal = total = 0
        for date in ("im1", "im2"):
            for pair in self.train_pairs:
                a, b = reference.reference_read(
                    [folder / date / f"{pair.name}.png" for folder in (expected, found)]
                )
                equal, total = equal + int((a == b).sum()), total + a.size
        return equal / total

    def works(self) -> list[Work]:
        """Return what a pair costs in each model."""
        return [count_work(config, self.size, training=False) for config in self.configs]

    def extras(self) -> dict:
        """Return the share of each run that the main thread waits for the next batch."""
        return {"waiting_share": self.waiting}


class LoadCase:
    """Training pairs read and augmented by one process, from the second epoch on."""

    starts_anew = False
    amp = "off"
    configs = ()

    def __init__(self, options: Options) -> None:
        self.options = options
        self.device = CPU
        self._folder = TemporaryDirectory(prefix="scd-bench-")
        folder = Path(self._folder.name)
        root, self.train_pairs = find_pairs(options, folder)
        self.classes: ClassList = load_classes(root)
        self.pairs = len(self.train_pairs)
        self.size = image_size(self.train_pairs[0].image1)[0]
        reader = build_cache(self.train_pairs, self.classes, folder / "cache")
        self.plain = ChangeDetectionDataset(self.train_pairs, self.classes, reader=reader)
        self.dataset = ChangeDetectionDataset(
            self.train_pairs, self.classes, TrainTransform(), reader=reader
        )

    def make(self, name: str) -> Callable[[], object]:
        """Return a call that goes through all pairs once."""
        if name == REFERENCE:
            generator = np.random.default_rng(0)
            files = [(p.image1, p.image2, p.label1, p.label2) for p in self.train_pairs]
            return lambda: consume(reference.reference_sample(f, generator) for f in files)
        return lambda: consume(self.dataset[i] for i in range(self.pairs))

    def works(self) -> list[Work]:
        """Return nothing: no network is involved."""
        return []

    def extras(self) -> dict:
        """Return what augmentation alone costs, in milliseconds per pair."""
        transform = TrainTransform()
        keys = ("image1", "image2", "label1", "label2", "change_mask")
        samples = []
        for i in range(self.pairs):
            sample = {key: self.plain[i][key].numpy() for key in keys}
            for key in ("image1", "image2"):
                sample[key] = sample[key].transpose(1, 2, 0)
            samples.append(sample)
        transform(samples[0], (0, 0, 0))
        spent = seconds(
            lambda: consume(transform(s, (0, 1, i)) for i, s in enumerate(samples)), CPU
        )
        return {"augmentation_ms_per_pair": 1000 * spent / self.pairs}


class Waits:
    """Stands in for `utils.text.progress` and adds up the time spent in waiting for items."""

    def __init__(self) -> None:
        self.total_s = 0.0
        self.batches = 0

    def __call__(self, items: Iterable, *appearance: object) -> Iterator:
        """Iterate as without it, and show nothing."""
        started = time.perf_counter()
        for item in items:
            self.total_s += time.perf_counter() - started
            self.batches += 1
            yield item
            started = time.perf_counter()
        self.total_s += time.perf_counter() - started


def consume(items: Iterable) -> None:
    """Go through an iterable and keep nothing."""
    for _ in items:
        pass


def find_pairs(options: Options, folder: Path) -> tuple[Path, list[Pair]]:
    """Return a data set and its first training pairs; generates one where none is given.

    A given one is linked into ``folder`` with as many pairs as are asked for.

    Raises:
        OptionError: labels that the reference does not decode, or too few pairs.
    """
    root = folder / "data"
    if options.data_root is None:
        size = options.size
        write_sample_data(root, SampleSet(options.pairs, 0, size, size, 0, GENERATED_FORMAT))
        return root, index_pairs(root / "train")
    pairs = index_pairs(options.data_root / "train")[: options.pairs]
    if len(pairs) < options.pairs:
        raise OptionError(f"{options.data_root}: {len(pairs)} pairs, {options.pairs} asked for")
    if any(path is None for path in (pairs[0].label1, pairs[0].label2)):
        raise OptionError(f"{options.data_root}: the baseline needs label1 and label2")
    with Image.open(pairs[0].label1) as image:
        if image.mode not in ("L", "P"):
            raise OptionError(f"{pairs[0].label1}: RGB; the baseline reads labels of indices only")
    for pair in pairs:
        for date, path in (("im1", pair.image1), ("im2", pair.image2),
                           ("label1", pair.label1), ("label2", pair.label2)):  # fmt: skip
            link = root / "train" / date / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
    if (options.data_root / "classes.json").exists():
        (root / "classes.json").symlink_to((options.data_root / "classes.json").resolve())
    return root, index_pairs(root / "train")
