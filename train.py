"""Train a semantic change detector, or evaluate one with --load-from."""

import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.bands import RGB, Bands, Imagery
from datasets.splits import SplitOptions
from engine import config
from utils import cli
from utils.cli import run
from utils.errors import OptionError

if TYPE_CHECKING:  # functions import torch themselves, so that --help starts at once
    from torch.utils.data import DataLoader

    from datasets.classes import ClassList
    from datasets.pairs import Pair
    from engine.metrics import AnyMetrics
    from engine.run import RunLog
    from engine.training import Trainer
    from models.change_detector import ModelConfig
    from models.checkpoint import Checkpoint
    from utils.dist import World

EPILOG = """examples:
  CUDA_VISIBLE_DEVICES=0,1,2,3 python train.py --backbone hrnet_w18 --pretrained --model pspnet \\
      --lightweight
  python train.py --backbone hrnet_w18 --pretrained --model pspnet --lightweight --use-pseudo-label
  python train.py --load-from outdir/models/pspnet_hrnet_w18_38.74.pth --tta --save-mask
"""


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Parse the command line."""
    parser = cli.make_parser(__doc__, EPILOG)
    config.add_data_args(parser)
    config.add_band_args(parser)
    config.add_model_args(parser)
    config.add_training_args(parser)
    config.add_validation_args(parser)
    config.add_runtime_args(parser)
    args = parser.parse_args(argv)
    if args.pseudo_label_root and not args.use_pseudo_label:
        parser.error("--pseudo-label-root needs --use-pseudo-label")
    SplitOptions.from_options(vars(args))  # refuses what cannot be before processes are started
    if args.load_from and (args.bands != RGB.numbers or args.band_statistics):
        raise OptionError(
            "--load-from: the checkpoint knows its bands and statistics; leave out --bands and "
            "--band-statistics"
        )
    return args


def main(argv: list[str] | None = None) -> "AnyMetrics | None":
    """Do what the command line says and return the best validation scores.

    With several GPUs, or ``--nproc``, the work is done in processes of their own: returns None.
    """
    args = parse_args(argv)
    from utils.dist import run_script

    def work(world: "World") -> Any:
        return run_in_world(args, world)

    return run_script(__file__, argv, args.nproc, args.device, work)


def run_in_world(args: Namespace, world: "World") -> "AnyMetrics":
    """Train or evaluate as one of the world's processes."""
    from datasets.pairs import split_pairs
    from datasets.statistics import choose_bands, read_statistics
    from datasets.task import labelled_dates, load_classes, missing_labels
    from engine.ensemble import bands_to_read, open_ensemble
    from engine.metrics import summary
    from engine.runtime import set_backend_options

    set_backend_options()
    if args.workers is None:
        args.workers = config.default_workers(world.device.type)
    classes = load_classes(args.data_root)
    chosen = SplitOptions.from_options(vars(args))
    split, train_pairs, val_pairs = split_pairs(args.data_root, chosen)
    world.say(
        f"{len(train_pairs)} training and {len(val_pairs)} validation pairs "
        f"(split {split.protocol}), {classes.semantic_classes} classes, "
        f"{world.size} × {world.device.type}"
    )
    for line in missing_labels(args.data_root, classes, train_pairs, val_pairs):
        world.say(line)
    if args.load_from:
        checkpoint = open_ensemble([args.load_from], classes.to_dict())[0]
        bands = bands_to_read([checkpoint], val_pairs[0].image1)
    else:
        bands = choose_bands(args.bands, train_pairs[0].image1)
    # Before anything takes long: a mistyped name costs no minutes.
    given = read_statistics(args.band_statistics, bands) if args.band_statistics else None
    if world.leads:
        check_quickly(train_pairs, classes, bands)
    val_loader = make_val_loader(args, val_pairs, classes, world, bands)
    if args.load_from:
        return evaluate_checkpoint(args, checkpoint, val_loader, classes, world)
    train_loader = make_train_loader(args, train_pairs, classes, world, bands)
    description = {
        "classes": classes.to_dict(),
        "split": split.to_dict(),
        "labelled_dates": labelled_dates(classes, train_pairs, val_pairs),
    }
    best_path, best = train(
        args, train_loader, val_loader, classes, description, bands, given, world
    )
    world.say(f"best: {best_path}  {summary(best)}")
    if args.save_mask:
        checkpoint = open_ensemble([best_path], classes.to_dict())[0]
        evaluate_checkpoint(args, checkpoint, val_loader, classes, world)
    return best


def check_quickly(pairs: "list[Pair]", classes: "ClassList", bands: Bands) -> None:
    """Warn of what a look at a few pairs shows to be wrong with a data set."""
    from tools.checking.inspection import quick_check

    started = time.perf_counter()
    warnings = quick_check(pairs, classes, bands.numbers)
    for warning in warnings:
        print(f"warning: {warning}; see tools/check_data.py", file=sys.stderr)
    print(f"data: {len(warnings)} warnings ({time.perf_counter() - started:.1f} s)")


def train(
    args: Namespace,
    train_loader: "DataLoader",
    val_loader: "DataLoader",
    classes: "ClassList",
    description: dict[str, Any],
    bands: Bands,
    given: Imagery | None,
    world: "World",
) -> "tuple[Path, AnyMetrics]":
    """Train over all epochs; return the best checkpoint and its scores.

    ``given`` are the statistics of a new run, where they need not be measured.
    """
    from datasets.loaders import set_epoch
    from datasets.statistics import find_imagery
    from engine.panels import panel_writer
    from engine.predictor import IDENTITY, VIEWS, Predictor
    from engine.run import RunFiles, find_resume, fixed_options, run_name, saved_imagery
    from engine.training import Record, fit
    from models.change_detector import ModelConfig

    files = RunFiles(args.outdir / "models", f"{args.model}_{args.backbone}")
    if world.leads:
        files.remove_leftovers()
    saved = find_resume(args.resume, files, vars(args), description, world)
    if saved and given:
        world.say("--band-statistics is left alone: the run to resume has statistics of its own")
    if saved and world.leads:
        files.copy_best(saved, args.resume, world.say)
        files.settle_interrupted_save(saved, args.resume)
    imagery = (
        saved_imagery(saved, bands)
        if saved
        else find_imagery(bands, given, train_loader.dataset.pairs, world)
    )
    config = ModelConfig(
        *(args.model, args.backbone, args.lightweight),
        *(classes.semantic_classes, len(bands.numbers), imagery),
    )
    steps = args.epochs * (len(train_loader) // args.accumulate)
    name = saved["run"] if saved else world.from_leader(run_name(files.prefix))
    trainer = make_trainer(args, config, description, steps, saved, world)
    del saved  # it holds as much memory as the trainer
    log = start_log(args, name) if world.leads else None
    record = Record(
        identity={**description, "config": config.to_dict(), "run": name},
        options=fixed_options(vars(args)),
        files=files,
        log=log,
        checkpoint_every=args.checkpoint_every,
    )
    predictor = Predictor(
        [trainer.model],
        VIEWS if args.tta else IDENTITY,
        trainer.precision.autocast,
        normalizations=[trainer.normalization],
    )
    best = fit(
        trainer,
        predictor,
        train_loader,
        val_loader,
        lambda epoch, done: set_epoch(train_loader, epoch, done),
        args.epochs,
        classes.names,
        record,
        panel_writer(log, predictor, val_loader.dataset, classes),
    )
    if log:
        log.close()
    return world.from_leader(files.best), best


def start_log(args: Namespace, name: str) -> "RunLog":
    """Write down the options of a run and return its log."""
    from engine.run import RunLog
    from utils.files import write_json

    folder = args.outdir / "logs" / name
    write_json(folder / "options.json", vars(args) | {"data_root": args.data_root.resolve()})
    return RunLog(folder, args.tensorboard)


def make_trainer(
    args: Namespace,
    config: "ModelConfig",
    description: dict[str, Any],
    steps: int,
    saved: dict[str, Any] | None,
    world: "World",
) -> "Trainer":
    """Return a trainer; one that goes on where a saved checkpoint was taken, if there is any."""
    import torch

    from engine.runtime import choose_precision
    from engine.training import Trainer
    from models.change_detector import build_model
    from models.losses import ChangeCriterion, default_class_weights
    from models.normalization import normalization
    from models.recompute import checkpoint_activations
    from models.sync_norm import synchronize_batch_norm
    from models.weights import start_model

    weights = args.class_weights or default_class_weights(
        description["classes"]["names"][1:], args.use_pseudo_label
    )
    if weights and len(weights) != config.num_classes:
        names = ", ".join(description["classes"]["names"][1:])
        raise OptionError(
            f"--class-weights: {len(weights)} weights for {config.num_classes} classes ({names})"
        )
    torch.manual_seed(args.seed)
    start = (args.pretrain_from, args.pretrained, args.pretrained_dir)
    model = build_model(config) if saved else start_model(config, *start, world.say)
    torch.manual_seed(args.seed + world.rank)  # dropout differs between processes
    if world.size > 1:
        model = synchronize_batch_norm(model, world.device.type)
    model.to(device=world.device, memory_format=torch.channels_last)
    if args.checkpoint_activations:
        checkpoint_activations(model)
    if args.compile:
        model.compile(dynamic=False)
    trainer = Trainer(
        model,
        ChangeCriterion(config.num_classes, weights, world.mean).to(world.device),
        lr=args.lr,
        weight_decay=args.weight_decay,
        steps=steps,
        world=world,
        precision=choose_precision(args.amp, world.device),
        accumulate=args.accumulate,
        normalization=normalization(config.imagery, config.imagery.bands),
    )
    if saved:
        model.load_state_dict(saved["model"])
        trainer.load_state_dict(saved["training"])
        place = f"in epoch {trainer.epoch} of {args.epochs}, after step {trainer.step}"
        finished = trainer.validated and trainer.epoch >= args.epochs
        world.say(f"resuming {saved['run']} {'(finished already)' if finished else place}")
    return trainer


def make_train_loader(
    args: Namespace, pairs: "list[Pair]", classes: "ClassList", world: "World", bands: Bands = RGB
) -> "DataLoader":
    """Return the loader of this process's augmented training batches."""
    from datasets.augment import TrainTransform
    from datasets.dataset import ChangeDetectionDataset
    from datasets.loaders import make_reader, training_loader
    from engine.run import batch_size_per_pass

    pseudo_label_root = find_pseudo_masks(args, pairs, classes) if args.use_pseudo_label else None
    batch_size = batch_size_per_pass(args.batch_size, args.accumulate, world.size, len(pairs))
    if args.model == "pspnet" and batch_size * world.size == 1:
        raise OptionError(
            "pspnet normalises one value per image and channel: --batch-size ≥ 2, and no more "
            "--accumulate than leaves two pairs a pass"
        )
    reader = make_reader(args.cache, args.outdir, pairs, classes, world, pseudo_label_root, bands)
    transform = TrainTransform(args.crop_size, is_rgb=bands == RGB)
    dataset = ChangeDetectionDataset(
        pairs, classes, transform, pseudo_label_root, args.seed, reader
    )
    pinned = world.device.type == "cuda"
    return training_loader(
        *(dataset, batch_size, args.workers, args.seed, pinned),
        *(world.rank, world.size, args.accumulate),
    )


def find_pseudo_masks(args: Namespace, pairs: "list[Pair]", classes: "ClassList") -> Path:
    """Return the folder of pseudo masks, all of which must be of one run of label.py."""
    from engine.predict import unlisted

    if classes.is_binary:
        raise OptionError(
            "--use-pseudo-label: pseudo labels are classes, and these labels are change masks "
            "without any; train without it"
        )
    folder = args.pseudo_label_root or args.outdir / "masks" / "train"
    if not folder.is_dir():
        raise OptionError(f"{folder}: no pseudo masks there; run label.py first")
    missing = unlisted(folder, [pair.name for pair in pairs])
    if missing:
        raise OptionError(
            f"{folder}: label.py has not come to its end there, the masks of {len(missing)} of "
            f"{len(pairs)} pairs are missing or older; run it again, or remove manifest.*.jsonl to "
            "take the masks as they are"
        )
    return folder


def make_val_loader(
    args: Namespace, pairs: "list[Pair]", classes: "ClassList", world: "World", bands: Bands = RGB
) -> "DataLoader":
    """Return the loader of this process's validation batches."""
    from datasets.dataset import ChangeDetectionDataset
    from datasets.loaders import evaluation_loader, make_reader

    cache = "off" if args.load_from else args.cache  # a single pass decodes nothing twice
    reader = make_reader(cache, args.outdir, pairs, classes, world, bands=bands)
    dataset = ChangeDetectionDataset(pairs, classes, reader=reader)
    pinned = world.device.type == "cuda"
    return evaluation_loader(
        dataset, args.val_batch_size, args.workers, pinned, world.rank, world.size
    )


def evaluate_checkpoint(
    args: Namespace,
    checkpoint: "Checkpoint",
    loader: "DataLoader",
    classes: "ClassList",
    world: "World",
) -> "AnyMetrics":
    """Score one checkpoint on the validation pairs, write masks if asked to, return the scores."""
    from contextlib import nullcontext

    from engine.ensemble import warn_of_leakage
    from engine.metrics import details
    from engine.predict import MaskWriter
    from engine.predictor import IDENTITY, VIEWS, Predictor
    from engine.runtime import choose_precision
    from engine.training import evaluate
    from models.normalization import normalization
    from utils.text import progress

    warn_of_leakage([checkpoint], [pair.id for pair in loader.dataset.pairs], world.say)
    imagery = checkpoint.config.imagery
    # As in training, batch norm unfolded, so that the scores are those of the training log.
    views = VIEWS if args.tta else IDENTITY
    autocast = choose_precision(args.amp, world.device).autocast
    predictor = Predictor(
        [checkpoint.build(world.device)],
        views,
        autocast,
        normalizations=[normalization(imagery, imagery.bands)],
    )
    folder = args.outdir / "masks" / "val"
    batches = progress(loader, "evaluate", world.leads)
    with MaskWriter(folder, classes.palette) if args.save_mask else nullcontext() as writer:
        on_batch = writer.write if writer else None
        metrics = evaluate(predictor, batches, classes.num_classes, world, on_batch)
    world.say(f"{checkpoint.path}\n{details(metrics, classes.names)}")
    if args.save_mask:
        world.say(f"masks: {folder}")
    return metrics


if __name__ == "__main__":
    run(main)
