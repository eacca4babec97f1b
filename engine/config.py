"""Command-line options, in groups that the scripts share. Imports nothing heavy."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from datasets.bands import MAX_BANDS
from datasets.splits import FOLDS, PROTOCOLS, SPLIT_SEED, VAL_FRACTION
from utils.cli import (
    fraction,
    natural,
    non_negative_float,
    positive_float,
    positive_int,
    seed,
    weight_list,
)

REPO = Path(__file__).resolve().parents[1]

DATA_ROOT = REPO / "data" / "dataset"

OUTDIR = REPO / "outdir"

PRETRAINED_DIR = REPO / "data" / "pretrained_models"

MODELS = ("fcn", "pspnet")  # the keys of models.heads.HEADS, which imports torch


def band_numbers(text: str) -> tuple[int, ...]:
    """Parse ``4`` as the first four bands, ``4,3,2`` as these, ``4,`` as the fourth alone."""
    numbers = tuple(positive_int(part) for part in text.removesuffix(",").split(","))
    if "," not in text:
        numbers = tuple(range(1, 1 + min(numbers[0], MAX_BANDS + 1)))
    if max(numbers) > MAX_BANDS or len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number of bands nor a list of different ones, 1 to {MAX_BANDS}"
        )
    return numbers


def add_data_args(parser: argparse.ArgumentParser, split: bool = True) -> None:
    """Add where the data is and how it is split."""
    note = "Scores compare only between runs of the same data and split." if split else None
    group = parser.add_argument_group("data", note)
    group.add_argument(
        "--data-root",
        type=Path,
        default=DATA_ROOT,
        metavar="DIR",
        help="folder with train/{im1,im2,label1,label2} or, for change alone, "
        "train/{im1,im2,label}, val/… (default: data/dataset)",
    )
    if split:
        add_split_args(group)


def add_split_args(
    group: argparse._ArgumentGroup, sets: Sequence[str] = (), about_sets: str = ""
) -> None:
    """Add how training and validation pairs are divided.

    Args:
        group: takes the options.
        sets: what ``--split`` names besides protocols; the first is the default.
        about_sets: what they are, for the help text; it ends with the default.
    """
    usual = "--val-list if given, ROOT/val if it has labels, else every 10th training name"
    about = about_sets or f"the protocol that divides the pairs (default: {usual})"
    group.add_argument(
        "--split",
        choices=(*sets, *PROTOCOLS),
        default=sets[0] if sets else None,
        help=about,
    )
    for name, text in (
        ("val", "lists: names of the validation pairs, one a line"),
        ("train", "lists: names of the training pairs (default: all that --val-list leaves)"),
    ):
        group.add_argument(f"--{name}-list", type=Path, metavar="FILE", help=text)
    group.add_argument(
        "--val-fraction",
        type=fraction,
        metavar="P",
        help=f"random: fraction to validate on, 0 to 1 (default: {VAL_FRACTION})",
    )
    group.add_argument(
        "--folds",
        type=positive_int,
        metavar="K",
        help=f"k-fold: parts to make (default: {FOLDS})",
    )
    group.add_argument(
        "--fold",
        type=natural,
        metavar="N",
        help="k-fold: part to validate on, 0 to K - 1; the others are trained on",
    )
    group.add_argument(
        "--split-seed",
        type=seed,
        metavar="N",
        help=f"random and k-fold: decides who goes where (default: {SPLIT_SEED})",
    )


def add_band_args(parser: argparse.ArgumentParser) -> None:
    """Add which bands of the images are used, and their statistics."""
    group = parser.add_argument_group("bands")
    add_bands_arg(group, (1, 2, 3), "3, red, green and blue")
    group.add_argument(
        "--band-statistics",
        type=Path,
        metavar="FILE",
        help="JSON with mean and standard deviation of each band of the files: check_data.py's "
        'report.json, or {"mean": […], "std": […]} (default: ImageNet\'s for 8-bit RGB, else '
        "measured on up to 100 training pairs, or the resumed run's)",
    )


def add_bands_arg(
    group: argparse._ArgumentGroup, default: tuple[int, ...] | None, shown: str
) -> None:
    """Add the option that chooses bands."""
    group.add_argument(
        "--bands",
        type=band_numbers,
        default=default,
        metavar="N|B,B,…",
        help="how many of the files' bands to use, the first N; or the numbers of some, from 1, in "
        f"that order: 4,3,2, or 4, for the fourth alone (default: {shown})",
    )


def add_model_args(parser: argparse.ArgumentParser) -> None:
    """Add what to train."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", choices=MODELS, default="pspnet", help="kind of heads (default: pspnet)"
    )
    group.add_argument(
        "--backbone",
        default="hrnet_w18",
        metavar="NAME",
        help="hrnet_w18, w30, w32, w40, w44, w48, w64, hrnet_w18_small, hrnet_w18_small_v2, or any "
        "timm encoder (default: hrnet_w18)",
    )
    group.add_argument(
        "--lightweight", action="store_true", help="depthwise-separable convolutions in the heads"
    )
    group.add_argument(
        "--pretrained",
        action="store_true",
        help="start from ImageNet weights: --pretrained-dir/<backbone>.{pth,safetensors}, "
        "else timm's own",
    )
    group.add_argument(
        "--pretrained-dir",
        type=Path,
        default=PRETRAINED_DIR,
        metavar="DIR",
        help="folder of ImageNet weights (default: data/pretrained_models)",
    )
    group.add_argument(
        "--pretrain-from",
        type=Path,
        metavar="FILE",
        help="start from the weights of this checkpoint, of the same model and backbone",
    )


def add_compile_arg(parser: argparse.ArgumentParser) -> None:
    """Add whether inference is compiled."""
    parser.add_argument_group("speed").add_argument(
        "--compile",
        choices=("auto", "on", "off"),
        default="auto",
        help="compile the models; auto does so where the work is long enough to pay for the minute "
        "it takes per model (default: auto)",
    )


def add_checkpoints_arg(parser: argparse.ArgumentParser) -> None:
    """Add which checkpoints form the ensemble."""
    parser.add_argument_group("ensemble").add_argument(
        "--checkpoints",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="checkpoints, of this project or of the published implementation (default: the best "
        "of every run in OUTDIR/models)",
    )


def add_overwrite_arg(parser: argparse.ArgumentParser) -> None:
    """Add whether finished masks are made again."""
    parser.add_argument_group("restart").add_argument(
        "--overwrite",
        action="store_true",
        help="make all masks again (default: skip those that the same checkpoints and options have "
        "made from the same files)",
    )


def add_runtime_args(parser: argparse.ArgumentParser, default_outdir: Path = OUTDIR) -> None:
    """Add where to write and what to run on."""
    group = parser.add_argument_group("run")
    group.add_argument(
        "--outdir",
        type=Path,
        default=default_outdir,
        metavar="DIR",
        help="where models, logs and masks go (default: outdir)",
    )
    group.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="auto, cpu, cuda, cuda:1, mps (default: auto, CUDA if there is any, else cpu)",
    )
    group.add_argument(
        "--amp",
        choices=("auto", "bf16", "fp16", "off"),
        default="auto",
        help="number format of forward passes; auto takes bf16 where the hardware has it "
        "(default: auto)",
    )
    group.add_argument(
        "--workers",
        type=natural,
        default=None,
        metavar="N",
        help="reader processes per GPU (default: its share of the cores, at most 8; 1 on a CPU)",
    )
    group.add_argument(
        "--nproc",
        type=positive_int,
        metavar="N",
        help="processes on this machine (default: one per visible GPU, 1 without; torchrun decides "
        "by itself)",
    )
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")


def default_workers(device_type: str) -> int:
    """Return how many readers each process needs: without a GPU the cores are busy anyway."""
    return usable_cores() if device_type == "cuda" else 1


def usable_cores() -> int:
    """Return this process's share of the cores, 8 at the most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    own = (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(8, own))


def add_processes_arg(group: argparse._ArgumentGroup, what: str) -> None:
    """Add ``--workers`` to a tool's group; ``what`` says what the processes are for."""
    group.add_argument(
        "--workers",
        type=positive_int,
        default=usable_cores(),
        metavar="N",
        help=f"processes {what} (default: cores, 8 at the most)",
    )


def add_training_args(parser: argparse.ArgumentParser) -> None:
    """Add how to train."""
    group = parser.add_argument_group("training")
    group.add_argument(
        "--epochs", type=positive_int, default=30, metavar="N", help="passes (default: 30)"
    )
    group.add_argument(
        "--batch-size",
        type=positive_int,
        default=8,
        metavar="N",
        help="pairs per optimiser step, over all GPUs together (default: 8)",
    )
    group.add_argument(
        "--lr",
        type=positive_float,
        default=1.5e-4,
        metavar="RATE",
        help="encoder's learning rate; heads take ten times it (default: 1.5e-4)",
    )
    group.add_argument(
        "--weight-decay",
        type=non_negative_float,
        default=1e-4,
        metavar="RATE",
        help="L2 penalty (default: 1e-4)",
    )
    group.add_argument(
        "--class-weights",
        type=weight_list,
        metavar="W,W,…",
        help="weight of each class in the semantic loss (default: 2,1,2,2,1,1 for SECOND, "
        "ones for other class lists and with pseudo labels)",
    )
    group.add_argument(
        "--crop-size",
        type=positive_int,
        metavar="PIXELS",
        help="train on random squares of this side (default: whole images, all of one size)",
    )
    group.add_argument(
        "--use-pseudo-label",
        action="store_true",
        help="train semantics on OUTDIR/masks/train, which label.py writes",
    )
    group.add_argument(
        "--pseudo-label-root",
        type=Path,
        metavar="DIR",
        help="--use-pseudo-label: other folder of masks, with im1 and im2 (default: "
        "OUTDIR/masks/train)",
    )
    group.add_argument(
        "--checkpoint-every",
        type=positive_int,
        metavar="STEPS",
        help="also save the state within an epoch, every so many steps (default: after each epoch, "
        "and when Ctrl-C or a signal asks the run to end)",
    )
    group.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="FILE",
        help="go on from this checkpoint, or from this model's latest in OUTDIR/models, if any",
    )
    group.add_argument(
        "--accumulate",
        type=positive_int,
        default=1,
        metavar="N",
        help="split each batch into N parts that go through the model one after the other, where "
        "memory is short (default: 1)",
    )
    # Compiled code chooses by itself which activations it keeps.
    step = group.add_mutually_exclusive_group()
    step.add_argument(
        "--checkpoint-activations",
        action="store_true",
        help="compute the encoder's activations twice instead of storing them",
    )
    step.add_argument(
        "--compile", action="store_true", help="compile the training step (minutes, once per run)"
    )
    group.add_argument(
        "--cache",
        choices=("ram", "disk", "off"),
        default="off",
        help="keep decoded images and labels, in shared memory or in OUTDIR/cache, so that nothing "
        "is decoded twice (default: off)",
    )
    group.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="of all random draws (default: 0)"
    )
    group.add_argument(
        "--tensorboard",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write TensorBoard scalars, if it is installed (default: on)",
    )


def add_validation_args(parser: argparse.ArgumentParser) -> None:
    """Add how train.py validates."""
    group = parser.add_argument_group("validation")
    group.add_argument(
        "--val-batch-size",
        type=positive_int,
        default=16,
        metavar="N",
        help="pairs read at a time (default: 16)",
    )
    group.add_argument("--tta", action="store_true", help="average six flipped and turned views")
    group.add_argument(
        "--load-from", type=Path, metavar="FILE", help="evaluate this checkpoint and return"
    )
    group.add_argument(
        "--save-mask",
        action="store_true",
        help="write the best model's validation masks to OUTDIR/masks/val/{im1,im2}",
    )


def add_labelling_args(parser: argparse.ArgumentParser) -> None:
    """Add how label.py votes."""
    group = parser.add_argument_group("voting")
    group.add_argument(
        "--vote",
        choices=("hard", "soft"),
        default="hard",
        help="hard: each model votes for the class that both dates agree on; soft: the models' "
        "mean probabilities decide (default: hard)",
    )
    group.add_argument(
        "--min-confidence",
        type=fraction,
        default=0.0,
        metavar="P",
        help="probability, 0 to 1, below which a soft vote leaves a pixel unlabelled (default: 0)",
    )
    group.add_argument(
        "--tta",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="average six flipped and turned views per model (default: on)",
    )
    _add_read_batch_size(group)


def add_testing_args(parser: argparse.ArgumentParser) -> None:
    """Add how test.py predicts."""
    group = parser.add_argument_group("prediction")
    about = (
        "test: ROOT/val, the challenge's test set; val: the validation pairs of a training without "
        "--split; a protocol: its validation pairs (default: test)"
    )
    add_split_args(group, ("test", "val"), about)
    group.add_argument("--tta", action="store_true", help="average six flipped and turned views")
    group.add_argument(
        "--time-limit",
        type=positive_float,
        metavar="SECONDS",
        help="drop views when the whole script would take longer (the challenge allowed 400 s)",
    )
    _add_read_batch_size(group)


def _add_read_batch_size(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--test-batch-size",
        type=positive_int,
        default=16,
        metavar="N",
        help="pairs read at a time (default: 16)",
    )
