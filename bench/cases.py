"""Inference and the training step, as published and as this project runs them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bench import reference
from bench.floor import Work, count_work
from datasets.bands import RGB_IMAGERY
from datasets.classes import SECOND_CLASSES
from datasets.dataset import ChangeDetectionDataset
from datasets.loaders import collate
from datasets.pairs import index_pairs
from datasets.task import load_classes
from engine.predictor import VIEWS, decode
from engine.runtime import Precision, build_predictor, choose_precision
from engine.training import Trainer
from models.change_detector import ModelConfig, build_model
from models.checkpoint import Checkpoint, open_checkpoint
from models.losses import SECOND_CLASS_WEIGHTS, ChangeCriterion
from models.normalization import normalize
from models.recompute import checkpoint_activations
from tools.scenes.scene import make_scene
from utils.dist import World, choose_device
from utils.errors import OptionError

REFERENCE = "reference"
LR = 1e-4
ENDLESS_STEPS = 10**6
CALIBRATION_SIDE = 128
CALIBRATION_PASSES = 3
SIDE_STEP = 32  # the baseline does not pad


@dataclass(frozen=True)
class Options:
    """What is measured. Names follow the command line of compare.py."""

    what: str
    backbones: tuple[str, ...]
    model: str
    lightweight: bool
    size: int
    batch_size: int
    pairs: int
    views: int
    device: str
    amp: str
    compile: bool
    repeat: int
    checkpoint_activations: bool
    checkpoints: tuple[Path, ...]
    data_root: Path | None

    def configs(self) -> list[ModelConfig]:
        """Return the models that are measured.

        Raises:
            OptionError: the baseline cannot run them on these pairs.
        """
        classes = load_classes(self.data_root) if self.data_root else SECOND_CLASSES
        if classes.is_binary:
            raise OptionError(f"{self.data_root}: change masks; the baseline knows classes only")
        if self.data_root is None and self.size % SIDE_STEP:
            raise OptionError(f"--size {self.size}: the baseline takes multiples of {SIDE_STEP}")
        if not self.checkpoints:
            return [
                ModelConfig(self.model, name, self.lightweight, classes.num_classes)
                for name in self.backbones
            ]
        configs = [open_checkpoint(path).config for path in self.checkpoints]
        for path, config in zip(self.checkpoints, configs, strict=True):
            if config.imagery != RGB_IMAGERY or config.num_classes != classes.num_classes:
                raise OptionError(
                    f"{path}: the baseline reads 8-bit RGB, normalised as ImageNet is, and "
                    f"{classes.num_classes} classes"
                )
        return configs

    def open_device(self) -> tuple[torch.device, Precision]:
        """Return where our variants run, and in what format."""
        device = choose_device(self.device)
        return device, choose_precision(self.amp, device)

    def variants(self) -> tuple[str, ...]:
        """Return the names of what is compared, the baseline first."""
        return (REFERENCE, "ours", "compiled") if self.compile else (REFERENCE, "ours")


class InferCase:
    """One batch through an ensemble under all views, files not included."""

    starts_anew = False  # variants keep their models between two calls

    def __init__(self, options: Options) -> None:
        self.options = options
        self.device, self.precision = options.open_device()
        self.amp = self.precision.name
        self.configs = options.configs()
        batch = make_batch(options, options.batch_size)
        self.images = [batch[key].contiguous().to(self.device) for key in ("image1", "image2")]
        self.size = self.images[0].shape[-1]
        self.pairs = len(self.images[0]) * options.repeat
        self.checkpoints = open_or_draw(options, self.configs, *self.images)

    def make(self, name: str) -> Callable[[], object]:
        """Return a call that predicts all pairs and returns the maps of both dates."""
        if name == REFERENCE:
            models = [reference.ReferenceDetector(c.build(self.device)) for c in self.checkpoints]
            views = VIEWS[: self.options.views]
            return lambda: self._predict(
                lambda *images: mean_of(reference.reference_predict(models, *images, views))
            )
        predictor = build_predictor(
            self.checkpoints, self.device, self.precision, tta=self.options.views > 1
        )
        if name == "compiled":
            predictor.compile()
        return lambda: self._predict(predictor)

    def _predict(self, predict: Callable) -> list[torch.Tensor]:
        for _ in range(self.options.repeat):
            maps = decode(predict(*self.images))
        return [m.cpu() for m in maps]

    def agreement(self, expected: list[torch.Tensor], found: list[torch.Tensor]) -> float:
        """Return the share of pixels, both dates, with the same class in both predictions."""
        return agreement(expected, found)

    def works(self) -> list[Work]:
        """Return what a pair costs in each model."""
        return [count_work(config, self.size, training=False) for config in self.configs]


class TrainCase:
    """Training steps on one batch that is on the device already."""

    starts_anew = False

    def __init__(self, options: Options) -> None:
        self.options = options
        self.device, self.precision = options.open_device()
        self.amp = self.precision.name
        self.configs = options.configs()
        self.batch = {
            key: value.to(self.device) if isinstance(value, torch.Tensor) else value
            for key, value in make_batch(options, options.batch_size).items()
        }
        self.size = self.batch["image1"].shape[-1]
        self.pairs = len(self.batch["name"]) * options.repeat

    def make(self, name: str) -> Callable[[], object]:
        """Return a call that does the steps of one round."""
        torch.manual_seed(0)
        (config,) = self.configs
        model = build_model(config).train()
        weights = SECOND_CLASS_WEIGHTS if config.num_classes == 6 else None
        criterion = ChangeCriterion(config.num_classes, weights).to(self.device)
        if name == REFERENCE:
            return self._make_reference(model.to(self.device), criterion)
        model = model.to(self.device, memory_format=torch.channels_last)
        if self.options.checkpoint_activations:
            checkpoint_activations(model)
        if name == "compiled":
            model.compile(dynamic=False)
        world = World(0, 1, self.device)
        precision = self.options.open_device()[1]
        trainer = Trainer(model, criterion, LR, 0.0, ENDLESS_STEPS, world, precision)

        def steps() -> None:
            trainer.train_epoch([self.batch] * self.options.repeat, after_step=lambda: None)

        return steps

    def _make_reference(self, model: nn.Module, criterion: nn.Module) -> Callable[[], object]:
        optimizer = torch.optim.Adam(model.parameter_groups(LR))
        detector = reference.ReferenceDetector(model)
        images = {key: self.batch[key].contiguous() for key in ("image1", "image2")}
        batch = {**self.batch, **images}

        def steps() -> None:
            for _ in range(self.options.repeat):
                reference.reference_train_step(detector, criterion, optimizer, batch)

        return steps

    def works(self) -> list[Work]:
        """Return what a pair costs in a forward pass."""
        return [count_work(config, self.size, training=True) for config in self.configs]


def mean_of(probabilities: Sequence[tuple]) -> tuple:
    """Return the mean over models, as the published script takes it."""
    return type(probabilities[0])(
        *(torch.stack(p).mean(0) for p in zip(*probabilities, strict=True))
    )


def agreement(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> float:
    """Return the share of equal entries over several maps."""
    equal = sum((a == b).sum().item() for a, b in zip(expected, found, strict=True))
    return equal / sum(a.numel() for a in expected)


def make_batch(options: Options, pairs: int) -> dict:
    """Return a collated batch: the first pairs of the data set, or generated scenes."""
    if options.data_root is not None:
        found = index_pairs(options.data_root / "train")[:pairs]
        if len(found) < pairs:
            raise OptionError(f"{options.data_root}: {len(found)} pairs, {pairs} are asked for")
        dataset = ChangeDetectionDataset(found, load_classes(options.data_root))
        return collate([dataset[i] for i in range(pairs)])
    samples = []
    for seed in range(pairs):
        scene = make_scene(seed, options.size, options.size)
        arrays = {"label1": scene.label1, "label2": scene.label2}
        arrays["change_mask"] = (scene.label1 > 0).astype(np.uint8)
        sample = {key: torch.from_numpy(array) for key, array in arrays.items()}
        for key in ("image1", "image2"):
            sample[key] = torch.from_numpy(getattr(scene, key)).permute(2, 0, 1)
        samples.append({"name": f"{seed:05d}", **sample})
    return collate(samples)


def open_or_draw(
    options: Options, configs: list[ModelConfig], image1: torch.Tensor, image2: torch.Tensor
) -> list[Checkpoint]:
    """Open the given checkpoints, or draw models at random, each from another seed."""
    if options.checkpoints:
        return [open_checkpoint(path) for path in options.checkpoints]
    return [draw_checkpoint(config, seed, image1, image2) for seed, config in enumerate(configs)]


@torch.no_grad()
def draw_checkpoint(
    config: ModelConfig, seed: int, image1: torch.Tensor, image2: torch.Tensor
) -> Checkpoint:
    """Draw random weights, with batch statistics of the images: activations of a usual size.

    Args:
        config: what to build.
        seed: of the weights.
        image1: (N, 3, H, W) uint8.
        image2: the same shape.
    """
    torch.manual_seed(seed)
    model = build_model(config).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain mean over the passes below
    crops = [
        normalize(images[:2, :, :CALIBRATION_SIDE, :CALIBRATION_SIDE].cpu())
        for images in (image1, image2)
    ]
    pair = [crop.expand(2, -1, -1, -1) for crop in crops]
    for _ in range(CALIBRATION_PASSES):
        model(*pair)
    return Checkpoint(Path("random"), config, model.state_dict(), {})
