"""Train a semantic change detector, or evaluate one with --load-from."""

import secrets
import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import options
from utils.cli import run
from utils.errors import CheckpointError, OptionError

if TYPE_CHECKING:  # functions import torch themselves, so that --help starts at once
    import torch
    from torch.utils.data import DataLoader

    from datasets import ClassList, Pair
    from datasets.cache import CachedReader
    from models import ChangeDetector, ModelConfig
    from utils.metrics import Metrics
    from utils.trainer import Trainer

EPILOG = """examples:
  CUDA_VISIBLE_DEVICES=0,1,2,3 python train.py --backbone hrnet_w18 --pretrained --model pspnet \\
      --lightweight
  python train.py --backbone hrnet_w18 --pretrained --model pspnet --lightweight --use-pseudo-label
  python train.py --load-from outdir/models/pspnet_hrnet_w18_38.74.pth --tta --save-mask
"""
# What must be the same when a run is resumed; the other options may change between its parts.
FIXED_OPTIONS = (
    *("model", "backbone", "lightweight", "epochs", "batch_size", "lr", "weight_decay"),
    *("class_weights", "crop_size", "use_pseudo_label", "seed", "amp", "accumulate"),
)


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Parse the command line."""
    parser = options.make_parser(__doc__, EPILOG)
    options.add_data_args(parser)
    options.add_model_args(parser)
    options.add_training_args(parser)
    options.add_validation_args(parser)
    options.add_runtime_args(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> "Metrics":
    """Do what the command line says and return the best validation scores."""
    args = parse_args(argv)
    from datasets import load_classes, split_pairs
    from utils.device import choose_device
    from utils.precision import set_backend_options
    from utils.progress import summary

    set_backend_options()
    device = choose_device(args.device)
    if args.workers is None:
        args.workers = options.default_workers(device.type)
    classes = load_classes(args.data_root)
    split, train_pairs, val_pairs = split_pairs(args.data_root, args.train_list, args.val_list)
    print(
        f"{len(train_pairs)} training and {len(val_pairs)} validation pairs "
        f"(split {split.protocol}), {classes.num_classes} classes, {device}"
    )
    val_loader = make_val_loader(args, val_pairs, classes, device)
    if args.load_from:
        return evaluate_checkpoint(args, args.load_from, val_loader, classes, device)
    train_loader = make_train_loader(args, train_pairs, classes, device)
    description = {"classes": classes.to_dict(), "split": split.to_dict()}
    best_path, best = train(args, train_loader, val_loader, classes, description, device)
    print(f"best: {best_path}  {summary(best)}")
    if args.save_mask:
        evaluate_checkpoint(args, best_path, val_loader, classes, device)
    return best


def train(
    args: Namespace,
    train_loader: "DataLoader",
    val_loader: "DataLoader",
    classes: "ClassList",
    description: dict[str, Any],
    device: "torch.device",
) -> "tuple[Path, Metrics]":
    """Train over all epochs; return the best checkpoint and its scores."""
    from datasets import set_epoch
    from models import ModelConfig
    from utils.engine import evaluate
    from utils.files import write_json
    from utils.inference import IDENTITY, VIEWS, Predictor
    from utils.logging import RunLog
    from utils.progress import progress, summary
    from utils.run import RunFiles

    config = ModelConfig(args.model, args.backbone, args.lightweight, classes.num_classes)
    files = RunFiles(args.outdir / "models", f"{args.model}_{args.backbone}")
    name = run_name(files.prefix)
    trainer, saved = make_trainer(
        args, config, classes, description, len(train_loader), files.latest, device
    )
    if saved:
        name = saved["run"]
        files.best = files.folder / saved["best_file"]
        print(f"resuming {name} after epoch {trainer.epoch} of {args.epochs}")
    log = RunLog(args.outdir / "logs" / name, trainer.rows, args.tensorboard)
    write_json(log.folder / "options.json", vars(args))
    views = VIEWS if args.tta else IDENTITY
    predictor = Predictor([trainer.model], views, trainer.precision.autocast)
    while trainer.epoch < args.epochs:
        started = time.perf_counter()
        epoch = trainer.epoch + 1
        set_epoch(train_loader, epoch)
        losses = trainer.train_epoch(progress(train_loader, f"train {epoch}/{args.epochs}"))
        train_s = time.perf_counter() - started
        trainer.model.eval()
        metrics = evaluate(
            predictor, progress(val_loader, f"val {epoch}/{args.epochs}"), classes.num_classes
        )
        total_s = time.perf_counter() - started
        log.add(csv_row(epoch, losses, metrics, classes, trainer.lr, train_s, total_s - train_s))
        state = {
            **description,
            "config": config.to_dict(),
            "model": trainer.model.state_dict(),
            "run": name,
            "epoch": epoch,
            "metrics": metrics.to_dict(),
        }
        if trainer.is_best(metrics):
            files.save_best(state, metrics.score)
        trainer.rows = log.rows
        files.save_latest(
            {
                **state,
                "best_file": files.best.name,
                "training": trainer.state_dict(),
                "options": fixed_options(args),
            }
        )
        print(
            f"epoch {epoch}/{args.epochs}  loss {losses['total']:.4f}  {summary(metrics)}  "
            f"({total_s:.1f} s)"
        )
    log.close()
    return files.best, trainer.best


def run_name(prefix: str) -> str:
    """Return a name that no other run has, not even one started in the same second."""
    return f"{prefix}_{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def make_trainer(
    args: Namespace,
    config: "ModelConfig",
    classes: "ClassList",
    description: dict[str, Any],
    steps_per_epoch: int,
    latest: Path,
    device: "torch.device",
) -> "tuple[Trainer, dict[str, Any] | None]":
    """Return a trainer and, when a run is resumed, the checkpoint it goes on from."""
    import torch

    from models.recompute import checkpoint_activations
    from utils.checkpoint import read_checkpoint
    from utils.losses import ChangeCriterion
    from utils.precision import choose_precision
    from utils.trainer import Trainer

    torch.manual_seed(args.seed)
    resume = latest if args.resume == "auto" else args.resume and Path(args.resume)
    saved = None
    if resume and (resume.exists() or args.resume != "auto"):
        saved = read_checkpoint(resume)
        check_resumable(args, saved, description, resume)
    elif latest.exists():
        print(f"starting anew; {latest} of an earlier run is replaced (--resume goes on with it)")
    model = make_model(args, config, untrained=saved is not None)
    model.to(device=device, memory_format=torch.channels_last)
    if args.checkpoint_activations:
        checkpoint_activations(model)
    if args.compile:
        model.compile(dynamic=False)
    trainer = Trainer(
        model,
        ChangeCriterion(classes.num_classes, class_weights(args, classes)).to(device),
        lr=args.lr,
        weight_decay=args.weight_decay,
        steps=args.epochs * (steps_per_epoch // args.accumulate),
        device=device,
        precision=choose_precision(args.amp, device),
        accumulate=args.accumulate,
    )
    if saved:
        model.load_state_dict(saved["model"])
        trainer.load_state_dict(saved["training"])
    return trainer, saved


def make_model(args: Namespace, config: "ModelConfig", untrained: bool) -> "ChangeDetector":
    """Return a model with the start the options ask for; ``untrained`` when a resume follows."""
    from models import build_model, open_checkpoint
    from models.pretrained import find_pretrained
    from models.transfer import transfer_weights

    if untrained:
        return build_model(config)
    if args.pretrain_from:
        model = build_model(config)
        skipped = transfer_weights(model, open_checkpoint(args.pretrain_from))
        kept = f"; {', '.join(skipped)} starts anew (other classes)" if skipped else ""
        print(f"starting from {args.pretrain_from}{kept}")
        return model
    weights = find_pretrained(config.backbone, args.pretrained_dir) if args.pretrained else None
    return build_model(config, weights)


def check_resumable(
    args: Namespace, saved: dict[str, Any], description: dict[str, Any], path: Path
) -> None:
    """Raise unless the command line describes the run that ``saved`` is of."""
    if "training" not in saved:
        raise CheckpointError(f"{path}: holds no training state; resume from a …_latest.pth")
    if saved["classes"]["names"] != description["classes"]["names"]:
        raise OptionError(f"{path}: is of a data set with other classes; check --data-root")
    if saved["split"] != description["split"]:
        raise OptionError(
            f"{path}: was trained on another split ({saved['split']['protocol']}) or on other "
            "files; check --data-root, --train-list and --val-list"
        )
    asked = fixed_options(args)
    differing = [name for name, value in saved["options"].items() if asked.get(name) != value]
    if differing:
        found = ", ".join(f"{name} {saved['options'][name]}" for name in differing)
        raise OptionError(
            f"{path}: the run to resume had {found}; use the same options, another --outdir, or "
            "no --resume"
        )


def fixed_options(args: Namespace) -> dict[str, Any]:
    """Return the options that a resumed run must share, as plain values."""
    fixed = {name: getattr(args, name) for name in FIXED_OPTIONS}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in fixed.items()}


def class_weights(args: Namespace, classes: "ClassList") -> tuple[float, ...] | None:
    """Return the semantic loss's class weights; None for ones."""
    from datasets.classes import SECOND_CLASSES
    from utils.losses import SECOND_CLASS_WEIGHTS

    if args.class_weights is not None:
        if len(args.class_weights) != classes.num_classes:
            raise OptionError(
                f"--class-weights: {len(args.class_weights)} weights for {classes.num_classes} "
                f"classes ({', '.join(classes.names[1:])})"
            )
        return args.class_weights
    published = classes.names == SECOND_CLASSES.names and not args.use_pseudo_label
    return SECOND_CLASS_WEIGHTS if published else None


def make_train_loader(
    args: Namespace, pairs: "list[Pair]", classes: "ClassList", device: "torch.device"
) -> "DataLoader":
    """Return the loader of augmented training batches."""
    from datasets import ChangeDetectionDataset, TrainTransform, training_loader

    pseudo_label_root = None
    if args.use_pseudo_label:
        pseudo_label_root = args.pseudo_label_root or args.outdir / "masks" / "train"
        if not pseudo_label_root.is_dir():
            raise OptionError(f"{pseudo_label_root}: no pseudo masks there; run label.py first")
    if args.batch_size % args.accumulate:
        raise OptionError(
            f"--batch-size {args.batch_size} cannot be split into --accumulate {args.accumulate} "
            "equal parts"
        )
    batch_size = min(args.batch_size // args.accumulate, len(pairs))
    if args.model == "pspnet" and batch_size == 1:
        raise OptionError(
            "pspnet normalises one value per image and channel, so a part of a batch needs two "
            "pairs: raise --batch-size or lower --accumulate"
        )
    if batch_size * args.accumulate > len(pairs):
        raise OptionError(
            f"--accumulate {args.accumulate}: more parts than {len(pairs)} pairs make"
        )
    dataset = ChangeDetectionDataset(
        pairs,
        classes,
        TrainTransform(args.crop_size),
        pseudo_label_root,
        args.seed,
        make_reader(args, pairs, classes, pseudo_label_root),
    )
    return training_loader(
        dataset, batch_size, args.workers, args.seed, pin_memory=device.type == "cuda"
    )


def make_reader(
    args: Namespace,
    pairs: "list[Pair]",
    classes: "ClassList",
    pseudo_label_root: Path | None = None,
) -> "CachedReader | None":
    """Return the decoded cache that --cache asks for, or None."""
    from datasets.cache import build_cache, cache_folder
    from utils.progress import progress

    if args.cache == "off":
        return None
    folder = cache_folder(args.cache, args.outdir)
    return build_cache(pairs, classes, folder, pseudo_label_root, args.workers or 1, progress)


def make_val_loader(
    args: Namespace, pairs: "list[Pair]", classes: "ClassList", device: "torch.device"
) -> "DataLoader":
    """Return the loader of validation batches."""
    from datasets import ChangeDetectionDataset, evaluation_loader

    dataset = ChangeDetectionDataset(
        pairs, classes, reader=None if args.load_from else make_reader(args, pairs, classes)
    )
    return evaluation_loader(
        dataset, args.val_batch_size, args.workers, pin_memory=device.type == "cuda"
    )


def evaluate_checkpoint(
    args: Namespace,
    path: Path,
    loader: "DataLoader",
    classes: "ClassList",
    device: "torch.device",
) -> "Metrics":
    """Score one checkpoint on the validation pairs, write masks if asked to, return the scores."""
    from models.ensemble import open_ensemble
    from utils.engine import evaluate
    from utils.inference import IDENTITY, VIEWS, Predictor
    from utils.precision import choose_precision
    from utils.progress import details, progress
    from utils.writer import MaskWriter, write_both_dates

    checkpoint = open_ensemble([path], classes.to_dict())[0]
    # As in training, batch norm unfolded, so that the scores are those of the training log.
    views = VIEWS if args.tta else IDENTITY
    autocast = choose_precision(args.amp, device).autocast
    predictor = Predictor([checkpoint.build(device)], views, autocast)
    folder = args.outdir / "masks" / "val"
    batches = progress(loader, "evaluate")
    if args.save_mask:
        with MaskWriter(classes.colors) as writer:
            on_batch = write_both_dates(writer, folder)
            metrics = evaluate(predictor, batches, classes.num_classes, on_batch)
        print(f"masks: {folder}")
    else:
        metrics = evaluate(predictor, batches, classes.num_classes)
    print(f"{path}\n{details(metrics, classes.names)}")
    return metrics


def csv_row(
    epoch: int,
    losses: dict[str, float],
    metrics: "Metrics",
    classes: "ClassList",
    lr: float,
    train_s: float,
    val_s: float,
) -> dict[str, Any]:
    """Return one row of ``metrics.csv``: losses, scores as fractions, rates and seconds."""
    scores = metrics.to_dict()
    ious = scores.pop("class_iou")
    return {
        "epoch": epoch,
        **{f"loss_{name}": value for name, value in losses.items()},
        **scores,
        **{f"iou_{name}": iou for name, iou in zip(classes.names[1:], ious[1:], strict=True)},
        "lr": lr,
        "train_s": round(train_s, 3),
        "val_s": round(val_s, 3),
    }


if __name__ == "__main__":
    run(main)
