"""Write submission masks: an ensemble predicts the test set, with scores where labels exist."""

import time
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from utils import options
from utils.cli import run

if TYPE_CHECKING:  # functions import torch themselves, so that --help starts at once
    from pathlib import Path

    from datasets import Pair
    from utils.distributed import World
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
    """Predict as the command line says; return the scores, or None without labels.

    With several GPUs, or ``--nproc``, the work is done in processes of their own: returns None.
    """
    started = time.perf_counter()
    args = parse_args(argv)
    from utils.distributed import run_script

    def work(world: "World") -> Any:
        return predict_in_world(args, world, started)

    return run_script(__file__, argv, args.nproc, args.device, work)


def predict_in_world(args: Namespace, world: "World", started: float) -> "Metrics | None":
    """Predict as one of the world's processes; ``started`` is when the time limit began."""
    from datasets import (
        ChangeDetectionDataset,
        evaluation_loader,
        is_one_size,
        load_classes,
    )
    from models.deploy import build_predictor, compile_predictor
    from models.ensemble import describe, find_best_checkpoints, open_ensemble
    from utils.engine import evaluate
    from utils.files import write_json
    from utils.precision import choose_precision, set_backend_options
    from utils.progress import details, progress
    from utils.time_limit import within_time_limit
    from utils.writer import MaskWriter, write_both_dates

    set_backend_options()
    device = world.device
    if args.workers is None:
        args.workers = options.default_workers(device.type)
    classes = load_classes(args.data_root)
    pairs, folder = find_pairs(args)
    paths = args.checkpoints or find_best_checkpoints(args.outdir / "models")
    checkpoints = open_ensemble(paths, classes.to_dict())
    world.say(
        f"predicting {len(pairs)} pairs on {world.size} × {device.type} with "
        f"{len(checkpoints)} models:"
    )
    world.say("\n".join(f"  {describe(checkpoint)}" for checkpoint in checkpoints))
    predictor = build_predictor(checkpoints, device, choose_precision(args.amp, device), args.tta)
    loader = evaluation_loader(
        ChangeDetectionDataset(pairs, classes),
        args.test_batch_size,
        args.workers,
        device.type == "cuda",
        world.rank,
        world.size,
    )
    compile_predictor(
        predictor,
        args.compile,
        loader.dataset,
        args.test_batch_size,
        is_one_size(loader),
        world.say,
    )
    batches = progress(loader, "predict", world.leads)
    if args.time_limit:
        own_pairs = sum(len(indices) for indices in loader.batch_sampler)
        batches = within_time_limit(batches, predictor, own_pairs, started + args.time_limit)
    with MaskWriter(classes.colors) as writer:
        metrics = evaluate(
            predictor, batches, classes.num_classes, world, write_both_dates(writer, folder)
        )
    seconds = time.perf_counter() - started
    if metrics:
        world.say(details(metrics, classes.names))
        if world.leads:
            write_json(folder / "metrics.json", metrics.to_dict())
    world.say(f"masks: {folder}  ({seconds:.1f} s, {len(pairs) / seconds:.1f} pairs/s)")
    if args.time_limit and seconds > args.time_limit:
        world.say(f"time limit of {args.time_limit:g} s missed, with the fewest views possible")
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
