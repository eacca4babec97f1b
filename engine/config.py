"""The options of train.py, label.py and test.py. Imports nothing heavy, so that --help is quick.

An option is one field: default, help text, check, and whether a resumed run must share it.
"""

import argparse
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from datasets import splits
from datasets.bands import MAX_BANDS, RGB
from utils import cli
from utils.cli import option, options
from utils.errors import OptionError
from utils.files import require_outside
from utils.machine import usable_cores

# fmt: off
REPO = Path(__file__).resolve().parents[1]
DATA_ROOT = REPO / "data" / "dataset"
OUTDIR = REPO / "outdir"
MODELS = ("fcn", "pspnet")  # the keys of models.heads.HEADS, which imports torch
DECODINGS = ("independent", "joint")  # models.decoding.NAMES
DECODE = "joint"  # of new runs, and of checkpoints that do not tell
PRESETS = (  # the keys of datasets.classes.PRESETS, which imports numpy
    *("second", "second-changemamba-order", "landsat-scd", "hi-ucd", "hrscd"),
    *("levir-cd", "whu-cd", "s2looking"))
DATA = "data: Scores compare only between runs of the same data and split."
SPEED, ENSEMBLE, RESTART, RUN = "speed", "ensemble", "restart", "run"
BANDS, MODEL, TRAINING, VALIDATION = "bands", "model", "training", "validation"
VOTING, PREDICTION = "voting", "prediction"
# What the published recipe chose, by option, whatever the defaults are by now. A script takes the
# options that it has; checkpoints of before there was one of them stand for its value here.
PUBLISHED = {"change_weight": 2.0, "change_sampling": 1, "decode": "independent"}
RECIPES = {"published": PUBLISHED}


def band_numbers(text: str) -> tuple[int, ...]:
    """Parse ``4`` as the first four bands, ``4,3,2`` as these, ``4,`` as the fourth alone."""
    numbers = tuple(cli.positive_int(part) for part in text.removesuffix(",").split(","))
    if "," not in text:
        numbers = tuple(range(1, 1 + min(numbers[0], MAX_BANDS + 1)))
    if max(numbers) > MAX_BANDS or len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number of bands nor a list of different ones, 1 to {MAX_BANDS}")
    return numbers


def run_name(text: str) -> str:
    """Parse the name of a run, which begins the names of its files."""
    long = len(os.fsencode(text)) > 100
    if long or not re.fullmatch(r"\w[\w.+-]*", text) or text.endswith("_latest"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no name: up to 100 bytes of letters, digits and . _ + -, a letter or "
            "digit first, not _latest at the end")
    return text


def change_weight(text: str) -> float | str:
    """Parse ``auto`` or a positive number."""
    return text if text == "auto" else cli.positive_float(text)


@options(DATA)
class DataConfig:
    """Where the data is."""

    data_root: Path = option(
        DATA_ROOT, "folder with train/{im1,im2,label1,label2}, or train/{im1,im2,label} for change "
        "alone, and maybe val", metavar="DIR", shown="data/dataset")
    preset: str | None = option(
        None, "a public data set: read its classes and folders as they are published",
        choices=PRESETS, shown="the layout above, classes of ROOT/classes.json")


@options(DATA)
class SplitConfig:
    """How training and validation pairs are divided."""

    split: str | None = option(
        None, "the protocol that divides the pairs", choices=tuple(splits.PROTOCOLS),
        shown="--val-list if given, ROOT/val if it has labels, else every 10th training name")
    val_list: Path | None = option(None, "lists: names of the validation pairs, one a line")
    train_list: Path | None = option(
        None, "lists: names of the training pairs", shown="all that --val-list leaves")
    val_fraction: float | None = option(
        None, "random: fraction to validate on, 0 to 1", cli.fraction, shown=splits.VAL_FRACTION)
    folds: int | None = option(
        None, "k-fold: parts to make", cli.positive_int, metavar="K", shown=splits.FOLDS)
    fold: int | None = option(
        None, "k-fold: part to validate on, 0 to K - 1; the others are trained on", cli.natural)
    split_seed: int | None = option(
        None, "random and k-fold: decides who goes where", cli.seed, shown=splits.SPLIT_SEED)

    def __post_init__(self) -> None:
        self.split_options  # noqa: B018  refuses what cannot be before any work is started

    @property
    def split_options(self) -> splits.SplitOptions:
        """The protocol and its parameters."""
        return splits.SplitOptions.from_options(vars(self))


@options(BANDS)
class BandConfig:
    """Which bands of the images are used, and their statistics."""

    bands: tuple[int, ...] = option(
        RGB.numbers, "bands of the files to use: the first N, or those of numbers 4,3,2 in that "
        "order, or 4, for the fourth alone", band_numbers, metavar="N|B,B,…",
        shown="3, red, green and blue", fixed=True)
    band_statistics: Path | None = option(
        None, "JSON of means and standard deviations of the files' bands: check_data.py's "
        'report.json, or {"mean": […], "std": […]}', shown="ImageNet's for 8-bit RGB, else those "
        "of up to 100 training pairs, or the resumed run's")


@options(MODEL)
class ModelOptions:
    """What is trained, and from which weights."""

    model: str = option("pspnet", "kind of heads", choices=MODELS, fixed=True)
    backbone: str = option(
        "hrnet_w18", "hrnet_w18, w30, w32, w40, w44, w48, w64, w18_small, w18_small_v2, or any "
        "timm encoder", metavar="NAME", fixed=True)
    lightweight: bool = option(False, "depthwise-separable convolutions in the heads", fixed=True)
    pretrained: bool = option(
        False, "start from ImageNet weights: <backbone>.pth or .safetensors of --pretrained-dir, "
        "else timm's own")
    pretrained_dir: Path = option(
        REPO / "data" / "pretrained_models", "folder of ImageNet weights", metavar="DIR",
        shown="data/pretrained_models")
    pretrain_from: Path | None = option(
        None, "start from the weights of this checkpoint, of the same model and backbone")


@options(TRAINING)
class TrainingOptions:
    """How to train."""

    epochs: int = option(30, "passes", cli.positive_int, fixed=True)
    batch_size: int = option(
        8, "pairs per optimiser step, over all GPUs together", cli.positive_int, fixed=True)
    lr: float = option(
        1.5e-4, "encoder's learning rate; heads take ten times it", cli.positive_float,
        metavar="RATE", shown="1.5e-4", fixed=True)
    weight_decay: float = option(
        1e-4, "L2 penalty", cli.non_negative_float, shown="1e-4", fixed=True)
    class_weights: tuple[float, ...] | None = option(
        None, "weight of each class in the semantic loss", cli.weight_list, fixed=True,
        shown="2,1,2,2,1,1 for SECOND, ones for other class lists and with pseudo labels")
    change_weight: float | str = option(
        2.0, "weight of a changed pixel in the change loss; auto measures how rare they are, and "
        "leaves 2 where a fifth or more changed", change_weight, metavar="auto|W", fixed=True)
    change_sampling: int = option(
        1, "draw changed pairs N times as often as others, in epochs of the same length",
        cli.positive_int, fixed=True)
    crop_size: int | None = option(
        None, "train on random squares of this side", cli.positive_int, metavar="PIXELS",
        shown="whole images, all of one size", fixed=True)
    crops_per_image: int = option(
        1, "--crop-size: squares of every image in an epoch", cli.positive_int, fixed=True)
    use_pseudo_label: bool = option(
        False, "train semantics on OUTDIR/masks/train, which label.py writes", fixed=True)
    pseudo_label_root: Path | None = option(
        None, "--use-pseudo-label: other folder of masks, with im1 and im2", metavar="DIR",
        shown="OUTDIR/masks/train", fixed=True)
    checkpoint_every: int | None = option(
        None, "also save the state within an epoch, every so many steps", cli.positive_int,
        metavar="STEPS", shown="after each epoch, and when Ctrl-C or a signal asks the run to end")
    resume: str | None = option(
        None, "go on from this checkpoint, or from this model's latest in OUTDIR/models, if any",
        nargs="?", const="auto", metavar="FILE", once=True)
    name: str | None = option(
        None, "begins the names of the run's files; runs in one OUTDIR have different ones",
        run_name, metavar="NAME", shown="<model>_<backbone>", fixed=True)
    dry_run: bool = option(
        False, "check options and data, estimate the memory, and write nothing", once=True)
    accumulate: int = option(
        1, "parts of a batch that go through the model one after the other, where memory is short",
        cli.positive_int, fixed=True)
    checkpoint_activations: bool = option(
        False, "compute the encoder's activations twice instead of storing them")
    compile: bool = option(False, "compile the training step (minutes, once per run)")
    cache: str = option(
        "off", "keep decoded images and labels, in shared memory or in OUTDIR/cache",
        choices=("ram", "disk", "off"))
    seed: int = option(0, "of all random draws", cli.seed, fixed=True)
    tensorboard: bool = option(True, "write TensorBoard scalars")


@options(VALIDATION)
class ValidationOptions:
    """How train.py validates."""

    val_every: int = option(1, "validate every N epochs, and after the last", cli.positive_int)
    val_batch_size: int = option(16, "pairs read at a time", cli.positive_int)
    tta: bool = option(False, "average six flipped and turned views", fixed=True)
    decode: str | None = option(
        None, "independent: change by its own probability, each date's likeliest class; joint: "
        "dates and change as one model, where a changed pixel has two classes", choices=DECODINGS,
        shown=f"{DECODE}, or as the run to resume or --load-from has it")
    load_from: Path | None = option(None, "evaluate this checkpoint and return", once=True)
    save_mask: bool = option(
        False, "write the best model's validation masks to OUTDIR/masks/val/{im1,im2}")


@options(ENSEMBLE)
class EnsembleOptions:
    """Which models predict, and how fast."""

    checkpoints: tuple[Path, ...] | None = option(
        None, "checkpoints, of this project or of the published implementation", nargs="+",
        shown="the best of every run in OUTDIR/models; of runs with and without pseudo labels "
        "test.py takes the former alone, label.py the latter")
    test_batch_size: int = option(16, "pairs read at a time", cli.positive_int)
    decode: str | None = option(
        None, "how probabilities become classes, as in train.py; in label.py of the soft vote, "
        "joint: by the product of both dates", choices=DECODINGS,
        shown=f"as the checkpoints were validated, {DECODE} where they differ or do not tell")
    compile: str = option(
        "auto", "compile the models, a minute each; auto: on a GPU, for many pairs of one size",
        choices=("auto", "on", "off"), group=SPEED)
    overwrite: bool = option(
        False, "make all masks again", group=RESTART,
        shown="skip those that the same checkpoints and options have made from the same files")


@options(RUN)
class RunOptions:
    """Where to write and what to run on."""

    config: Path | None = option(
        None, "JSON of options by name, as training writes its options.json; options given here "
        "win, and it resumes, evaluates and debugs nothing", once=True)
    recipe: str | None = option(
        None, "published: every choice as it was published, where no option here says otherwise",
        choices=RECIPES, shown="the defaults")
    outdir: Path = option(OUTDIR, "where models, logs and masks go", metavar="DIR", shown="outdir")
    device: str = option(
        "auto", "auto, cpu, cuda, cuda:1, mps", metavar="NAME",
        shown="auto, CUDA if there is any, else cpu")
    amp: str = option(
        "auto", "number format of forward passes; auto takes bf16 where the hardware has it",
        choices=("auto", "bf16", "fp16", "off"), fixed=True)
    workers: int | None = option(
        None, "reader processes per GPU", cli.natural,
        shown="its share of the cores, at most 8; 1 on a CPU")
    nproc: int | None = option(
        None, "processes on this machine", cli.positive_int,
        shown="one per visible GPU, 1 without; torchrun decides by itself")
    threads: int | None = option(
        None, "of each process; on a CPU their number decides last digits", cli.positive_int,
        shown="OMP_NUM_THREADS, else the cores, or the container's share, that others leave")
    debug: bool = option(False, "show the traceback of an error", once=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        masks = [f"masks/{split}{date}" for split in ("train", "val", "test")
                 for date in ("", "/im1", "/im2", "/change")]
        places = [self.outdir / place for place in ("cache", "logs", "models", *masks)]
        require_outside(self.data_root, self.outdir, places)

    def reader_workers(self, device_type: str) -> int:
        """Return how many readers each process needs: without a GPU the cores are busy anyway."""
        if self.workers is not None:
            return self.workers
        return usable_cores() if device_type == "cuda" else 1


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunOptions, ValidationOptions, TrainingOptions, ModelOptions, BandConfig,
                  SplitConfig, DataConfig):
    """The options of train.py; an `OptionError` where some exclude each other."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pseudo_label_root and not self.use_pseudo_label:
            raise OptionError("--pseudo-label-root needs --use-pseudo-label")
        if self.crops_per_image > 1 and not self.crop_size:
            raise OptionError("--crops-per-image needs --crop-size")
        if self.compile and self.checkpoint_activations:
            raise OptionError("--compile and --checkpoint-activations: compiled code chooses "
                              "which activations it keeps; leave one out")
        given = self.bands != RGB.numbers or self.band_statistics
        if self.load_from and given and not self.config:  # a run's options name its bands
            raise OptionError("--load-from: the checkpoint knows its bands and statistics; leave "
                              "out --bands and --band-statistics")

    def to_dict(self) -> dict[str, Any]:
        """Return all options as plain values, as ``--config`` reads them anywhere."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    def fixed_options(self) -> dict[str, Any]:
        """Return those that a resumed run must share."""
        values = self.to_dict()
        return {name: values[name] for name in FIXED_OPTIONS}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.resolve())
    return list(value) if isinstance(value, tuple) else value


FIXED_OPTIONS = {field.name: PUBLISHED.get(field.name, _plain(field.default))
                 for field in fields(TrainConfig) if cli.is_fixed(field)}


@options(VOTING)
class LabelConfig(RunOptions, EnsembleOptions, SplitConfig, DataConfig):
    """The options of label.py; an `OptionError` where some exclude each other."""

    vote: str = option(
        "hard", "hard: each model votes for the class that both dates agree on; soft: their mean "
        "probabilities decide", choices=("hard", "soft"))
    min_confidence: float = option(
        0.0, "probability, 0 to 1, below which a soft vote leaves a pixel unlabelled", cli.fraction,
        shown="0")
    tta: bool = option(True, "average six flipped and turned views per model")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_confidence and self.vote == "hard":
            raise OptionError("--min-confidence needs --vote soft")
        if self.decode == "joint" and self.vote == "hard":
            raise OptionError("--decode joint needs --vote soft; hard votes are of each date alone")


@options(PREDICTION)
class TestConfig(RunOptions, EnsembleOptions, SplitConfig, DataConfig):
    """The options of test.py."""

    __test__ = False  # pytest takes the name for one of its own

    split: str = option(
        "test", "test: ROOT/test, or without one ROOT/val, the challenge's test set; val: the "
        "validation pairs of a training without --split; a protocol: its validation pairs",
        choices=("test", "val", *splits.PROTOCOLS), group=DATA)
    tta: bool = option(False, "average six flipped and turned views")
    time_limit: float | None = option(
        None, "drop views when the whole script would take longer (the challenge allowed 400 s)",
        cli.positive_float, metavar="SECONDS")

    @property
    def split_options(self) -> splits.SplitOptions | None:
        """Whose validation pairs are predicted; None for the test set."""
        if self.split == "test":
            splits.require_options_of("test", vars(self))
            return None
        asked = None if self.split == "val" else self.split
        return splits.SplitOptions.from_options(vars(self) | {"split": asked})


def add_processes_arg(group: argparse._ArgumentGroup, what: str) -> None:
    """Add ``--workers`` to a tool's group; ``what`` says what the processes are for."""
    group.add_argument(
        "--workers", type=cli.positive_int, default=usable_cores(), metavar="N",
        help=f"processes {what} (default: cores, 8 at the most)")
