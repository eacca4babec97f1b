"""What is compared: each case makes its variants, as published and as this project runs them."""

import contextlib
import io
import shutil
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from bench import reference
from bench.machine import record, timed
from bench.options import REFERENCE, Options
from datasets.augment import TrainTransform
from datasets.bands import RGB_IMAGERY
from datasets.cache import make_reader
from datasets.classes import SECOND_CLASSES
from datasets.dataset import ChangeDetectionDataset
from datasets.images import image_size
from datasets.loaders import collate
from datasets.pairs import Pair, index_pairs
from datasets.task import load_task
from engine.config import LabelConfig, TrainConfig
from engine.ensemble import choose_decoding
from engine.labelling import label, vote_batch
from engine.predictor import VIEWS
from engine.runtime import build_predictor, choose_precision
from engine.state import TrainState
from engine.training import training_step
from models.change_detector import ModelConfig, build_model
from models.checkpoint import open_checkpoint
from models.decoding import decode
from models.losses import ChangeCriterion, default_class_weights
from models.recompute import checkpoint_activations
from tools.scenes.scene import make_scene
from utils.dist import choose_device
from utils.errors import OptionError
from utils.tensor_files import save_checkpoint

LR = 1e-4
ENDLESS_STEPS = 10**6
SIDE_STEP = 32  # the baseline does not pad
FOLDERS = {"im1": "image1", "im2": "image2", "label1": "label1", "label2": "label2"}


class Case:
    """A comparison on a data set of its own; ``make(name)`` returns a variant as a call.

    Attributes:
        configs: the models; none where no network is involved.
        size: side of the images.
        pairs: that one round goes through.
        extras: what else the calls measure.
        starts_anew: whether every call builds its models, so that there is nothing to warm up.

    Raises:
        OptionError: the baseline cannot run these models on these pairs.
    """

    starts_anew = False

    def __init__(self, options: Options) -> None:
        self.options = options
        self.device = choose_device(options.device)
        self.precision = choose_precision(options.amp, self.device)
        self.configs = _model_configs(options)
        self._temporary = TemporaryDirectory(prefix="scd-bench-")
        self.folder = Path(self._temporary.name)
        self.train_pairs = _fill_folder(self.folder, options)
        self.pairs = len(self.train_pairs) * options.repeat
        self.task = load_task(self.folder)
        self.size = image_size(self.train_pairs[0].image1)[0]
        self.extras: dict[str, Any] = {}
        if options.what in ("infer", "label"):
            self.paths = options.checkpoints or self._draw_checkpoints()

    def batch(self) -> dict[str, Any]:
        """Return all pairs as one batch on the device."""
        dataset = ChangeDetectionDataset(self.train_pairs, self.task)
        batch = collate([dataset[i] for i in range(len(dataset))])
        return {k: v if k == "name" else v.to(self.device) for k, v in batch.items()}

    def _draw_checkpoints(self) -> list[Path]:
        """Draw random weights, with batch statistics of an image: activations of a usual size."""
        sample = ChangeDetectionDataset(self.train_pairs[:1], self.task)[0]
        images = [torch.stack([sample[key]] * 2) for key in ("image1", "image2")]
        paths = []
        for seed, config in enumerate(self.configs):
            torch.manual_seed(seed)
            model = build_model(config).train()
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = 1.0  # the statistics of the pass below
            with torch.no_grad():
                model(*images)
            state = {"config": config.to_dict(), "model": model.state_dict()}
            state |= {"classes": self.task.classes.to_dict(), "run": f"bench-{seed}"}
            paths.append(self.folder / "models" / f"{seed}_{config.backbone}.pth")
            save_checkpoint(paths[-1], state)
        return paths

    def maps(self, output: Any) -> list[torch.Tensor]:
        """Return the class maps that a call has made; none where it makes none."""
        return output if isinstance(output, list) else []


class InferCase(Case):
    """One batch through an ensemble under all views, files not included."""

    def make(self, name: str) -> Callable[[], list[torch.Tensor]]:
        """Return a call that predicts the batch and returns the maps of both dates."""
        batch, views = self.batch(), VIEWS[: self.options.views]
        images = [batch[key].contiguous() for key in ("image1", "image2")]
        if name == REFERENCE:
            predictor = reference.Predictor(self.paths, self.device, views)
        else:
            checkpoints = [open_checkpoint(path) for path in self.paths]
            predictor = build_predictor(checkpoints, self.device, self.precision, len(views) > 1)
            predictor.decoding = choose_decoding(None, checkpoints)
        if name == "compiled":
            predictor.compile()
        return lambda: [c.cpu() for c in decode(predictor(*images), predictor.decoding)]


class TrainCase(Case):
    """Training steps on one batch that is on the device already."""

    def make(self, name: str) -> Callable[[], object]:
        """Return a call that does one step."""
        batch = self.batch()
        torch.manual_seed(0)
        (config,) = self.configs
        model = build_model(config).train().to(self.device)
        weights = default_class_weights(self.task.classes.names[1:], False)
        criterion = ChangeCriterion(config.num_classes, weights).to(self.device)
        if name == REFERENCE:
            batch |= {key: batch[key].contiguous() for key in ("image1", "image2")}
            optimizer = torch.optim.Adam(model.parameter_groups(LR))
            parts = (reference.Detector(model), criterion, optimizer)
            return partial(reference.train_step, *parts, batch)
        model.to(memory_format=torch.channels_last)
        if self.options.checkpoint_activations:
            checkpoint_activations(model)
        if name == "compiled":
            model.compile(dynamic=False)
        train = TrainConfig(lr=LR, weight_decay=0.0, amp=self.options.amp)
        return partial(training_step, TrainState(train, model, criterion, ENDLESS_STEPS), batch)


class LabelCase(Case):
    """label.py against one file, one date, one view and one model after the other.

    Every call reads checkpoints and pairs from disk, builds the models, and writes all masks.
    """

    starts_anew = True

    def make(self, name: str) -> Callable[[], Path]:
        """Return a call that labels all pairs and returns the folder of the masks."""
        config = LabelConfig(
            data_root=self.folder,
            outdir=self.folder / name,
            checkpoints=tuple(self.paths),
            amp=self.options.amp,
            test_batch_size=self.options.batch_size,
            compile="on" if name == "compiled" else "off",
            tta=self.options.views > 1,
        )
        if name == REFERENCE:
            return partial(self._label_as_published, config)
        shares = self.extras.setdefault("waiting_share", {}).setdefault(name, [])
        return partial(self._label, config, shares)

    def _label(self, config: LabelConfig, shares: list[float]) -> Path:
        shutil.rmtree(config.outdir, ignore_errors=True)  # label goes on where it was interrupted
        waits, iterate = [], DataLoader.__iter__

        def watched(loader: DataLoader) -> Iterator[dict]:
            return iter(partial(record, waits, next, record(waits, iterate, loader), None), None)

        quiet = contextlib.redirect_stdout(io.StringIO())
        with mock.patch.object(DataLoader, "__iter__", watched), quiet:
            total, _ = timed(lambda: label(config, self.device), self.device)
        shares.append(sum(waits) / total)  # of the time, the main thread waits for a batch
        return config.outdir / "masks" / "train"

    def _label_as_published(self, config: LabelConfig) -> Path:
        folder, classes = config.outdir, self.task.classes
        views = VIEWS[: self.options.views]
        predictor = reference.Predictor(self.paths, self.device, views)
        for start in range(0, len(self.train_pairs), config.test_batch_size):
            pairs = self.train_pairs[start : start + config.test_batch_size]
            batch = {}
            for date in ("image1", "image2"):
                arrays = reference.read(getattr(pair, date) for pair in pairs)
                images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
                batch[date] = images.to(self.device)
            votes = vote_batch(config, predictor, batch, classes.num_classes).cpu().numpy()
            for pair, vote in zip(pairs, votes, strict=True):
                for date, path in (("im1", pair.label1), ("im2", pair.label2)):
                    (truth,) = reference.read([path])
                    image = Image.fromarray(np.where(truth > 0, truth, vote))
                    image.putpalette([channel for color in classes.colors for channel in color])
                    (folder / date).mkdir(parents=True, exist_ok=True)
                    image.save(folder / date / f"{pair.name}.png")
        return folder

    def maps(self, output: Path) -> list[torch.Tensor]:
        """Return the masks in a folder."""
        names = [f"{date}/{pair.name}.png" for date in ("im1", "im2") for pair in self.train_pairs]
        return [torch.from_numpy(mask) for mask in reference.read(output / n for n in names)]


class LoadCase(Case):
    """Training pairs read and augmented by one process, from the second epoch on."""

    def make(self, name: str) -> Callable[[], None]:
        """Return a call that reads all pairs once."""
        augmenting: list[float] = []
        if name == REFERENCE:
            read = partial(reference.read_sample, generator=np.random.default_rng(0))
            kinds = FOLDERS.values()
            items = [[getattr(pair, kind) for kind in kinds] for pair in self.train_pairs]
        else:
            transform = partial(record, augmenting, TrainTransform())
            reader = make_reader("disk", self.folder, self.train_pairs, self.task)
            parts = (self.train_pairs, self.task, transform)
            read = ChangeDetectionDataset(*parts, reader=reader).__getitem__
            items = range(len(self.train_pairs))

        def read_all() -> None:
            for item in items:
                read(item)
            if augmenting:
                self.extras["augmentation_ms_per_pair"] = 1000 * statistics.median(augmenting)

        return read_all


def _model_configs(options: Options) -> list[ModelConfig]:
    """Return the models that are measured; refuse what the baseline cannot run."""
    classes = load_task(options.data_root).classes if options.data_root else SECOND_CLASSES
    if classes.is_binary:
        raise OptionError(f"{options.data_root}: change masks; the baseline knows classes only")
    if options.what == "load":
        return []
    if not options.data_root and options.size % SIDE_STEP:
        raise OptionError(f"--size {options.size}: the baseline takes multiples of {SIDE_STEP}")
    if not options.checkpoints:
        kind = (options.lightweight, classes.num_classes)
        return [ModelConfig(options.model, name, *kind) for name in options.networks]
    configs = [open_checkpoint(path).config for path in options.checkpoints]
    for path, config in zip(options.checkpoints, configs, strict=True):
        if config.imagery != RGB_IMAGERY or config.num_classes != classes.num_classes:
            raise OptionError(
                f"{path}: the baseline reads 8-bit RGB, normalised as ImageNet is, and "
                f"{classes.num_classes} classes"
            )
    return configs


def _fill_folder(folder: Path, options: Options) -> list[Pair]:
    """Make a data set of the first pairs of ``--data-root``, as links, or of generated scenes."""
    of_files = options.what in ("label", "load")
    count = options.pairs if of_files else options.batch_size
    for name in FOLDERS:
        (folder / "train" / name).mkdir(parents=True)
    root = options.data_root
    if root is None:
        for seed in range(count):
            scene = make_scene(seed, options.size, options.size)
            for name, kind in FOLDERS.items():
                path = folder / "train" / name / f"{seed:05d}.png"
                Image.fromarray(getattr(scene, kind)).save(path)
        return index_pairs(folder / "train")
    pairs = index_pairs(root / "train")[:count]
    if len(pairs) < count:
        raise OptionError(f"{root}: {len(pairs)} pairs, {count} are asked for")
    for pair in pairs:
        if not (pair.label1 and pair.label2):
            raise OptionError(f"{root}: the baseline needs label1 and label2")
        if of_files and Image.open(pair.label1).mode not in ("L", "P"):
            raise OptionError(f"{pair.label1}: RGB; the baseline reads labels of indices only")
        for name, kind in FOLDERS.items():
            path = getattr(pair, kind).resolve()
            (folder / "train" / name / path.name).symlink_to(path)
    if (root / "classes.json").exists():
        (folder / "classes.json").symlink_to((root / "classes.json").resolve())
    return index_pairs(folder / "train")
