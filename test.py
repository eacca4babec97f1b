"""Write submission masks: an ensemble predicts the test set, with scores where labels exist."""

import time
from argparse import Namespace
from typing import TYPE_CHECKING

from utils import options
from utils.cli import run

if TYPE_CHECKING:  # functions import torch themselves, so that --help starts at once
    from pathlib import Path

    from datasets import Pair
    from utils.metrics import Metrics

EPILOG = """example:
  python test.py --tta --time-limit 400 --checkpoints outdir/models/pspnet_hrnet_w40_39.37.pth \\
      outdir/models/pspnet_hrnet_w18_38.74.pth
"""


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Parse the command line."""
    parser = options.make_parser(__doc__, EPILOG)
    options.add_data_args(parser)
    options.add_checkpoints_arg(parser)
    options.add_testing_args(parser)
    options.add_compile_arg(parser)
    options.add_runtime_args(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> "Metrics | None":
    """Predict as the command line says; return the scores, or None without labels."""
    started = time.perf_counter()
    args = parse_args(argv)
    from datasets import (
        ChangeDetectionDataset,
        evaluation_loader,
        is_one_size,
        load_classes,
    )
    from models.deploy import build_predictor, compile_predictor
    from models.ensemble import describe, find_best_checkpoints, open_ensemble
    from utils.device import choose_device
    from utils.engine import evaluate
    from utils.files import write_json
    from utils.precision import choose_precision, set_backend_options
    from utils.progress import details, progress
    from utils.time_limit import within_time_limit
    from utils.writer import MaskWriter, write_both_dates

    set_backend_options()
    device = choose_device(args.device)
    if args.workers is None:
        args.workers = options.default_workers(device.type)
    classes = load_classes(args.data_root)
    pairs, folder = find_pairs(args)
    paths = args.checkpoints or find_best_checkpoints(args.outdir / "models")
    checkpoints = open_ensemble(paths, classes.to_dict())
    print(f"predicting {len(pairs)} pairs with {len(checkpoints)} models on {device}:")
    for checkpoint in checkpoints:
        print(f"  {describe(checkpoint)}")
    predictor = build_predictor(checkpoints, device, choose_precision(args.amp, device), args.tta)
    loader = evaluation_loader(
        ChangeDetectionDataset(pairs, classes),
        args.test_batch_size,
        args.workers,
        pin_memory=device.type == "cuda",
    )
    compile_predictor(
        predictor, args.compile, loader.dataset, args.test_batch_size, is_one_size(loader)
    )
    batches = progress(loader, "predict")
    if args.time_limit:
        batches = within_time_limit(batches, predictor, len(pairs), started + args.time_limit)
    with MaskWriter(classes.colors) as writer:
        metrics = evaluate(
            predictor, batches, classes.num_classes, write_both_dates(writer, folder)
        )
    seconds = time.perf_counter() - started
    if metrics:
        print(details(metrics, classes.names))
        write_json(folder / "metrics.json", metrics.to_dict())
    print(f"masks: {folder}  ({seconds:.1f} s, {len(pairs) / seconds:.1f} pairs/s)")
    if args.time_limit and seconds > args.time_limit:
        print(f"time limit of {args.time_limit:g} s missed, with the fewest views possible")
    return metrics


def find_pairs(args: Namespace) -> "tuple[list[Pair], Path]":
    """Return the pairs to predict and the folder of their masks."""
    from datasets import index_pairs, split_pairs

    if args.split == "test":
        return index_pairs(args.data_root / "val"), args.outdir / "masks" / "test"
    _, _, pairs = split_pairs(args.data_root, args.train_list, args.val_list)
    return pairs, args.outdir / "masks" / "val"


if __name__ == "__main__":
    run(main)
