"""Write submission masks: an ensemble predicts the test set, with scores where labels exist."""

import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.splits import SplitOptions, require_options_of
from engine import config
from utils import cli
from utils.cli import run
from utils.dist import start_time

if TYPE_CHECKING:  # functions import torch themselves, so that --help starts at once
    import torch
    from torch.utils.data import DataLoader

    from datasets.classes import ClassList
    from datasets.pairs import Pair
    from engine.metrics import AnyMetrics, LabelCounts
    from engine.predictor import Predictor
    from utils.dist import World

EPILOG = """example:
  python test.py --tta --time-limit 400 --checkpoints outdir/models/pspnet_hrnet_w40_39.37.pth \\
      outdir/models/pspnet_hrnet_w18_38.74.pth
"""


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Parse the command line."""
    parser = cli.make_parser(__doc__, EPILOG)
    config.add_data_args(parser, split=False)
    config.add_checkpoints_arg(parser)
    config.add_testing_args(parser)
    config.add_compile_arg(parser)
    config.add_overwrite_arg(parser)
    config.add_runtime_args(parser)
    args = parser.parse_args(argv)
    chosen_split(args)  # refuses what cannot be before processes are started
    return args


def chosen_split(args: Namespace) -> SplitOptions | None:
    """Return whose validation pairs are predicted; None for the test set."""
    if args.split == "test":
        require_options_of("test", vars(args))
        return None
    return SplitOptions.from_options(
        vars(args) | {"split": None if args.split == "val" else args.split}
    )


def main(argv: list[str] | None = None) -> "AnyMetrics | None":
    """Predict as the command line says; return the scores, or None without labels.

    With several GPUs, or ``--nproc``, the work is done in processes of their own: returns None.
    """
    started = start_time()
    args = parse_args(argv)
    from utils.dist import run_script

    def work(world: "World") -> Any:
        return predict_in_world(args, world, started)

    return run_script(__file__, argv, args.nproc, args.device, work, started)


def predict_in_world(args: Namespace, world: "World", started: float) -> "AnyMetrics | None":
    """Predict as one of the world's processes; ``started`` is when the user started the script."""
    from datasets.loaders import is_one_size, remaining_loader
    from datasets.task import load_classes
    from engine.ensemble import bands_to_read, choose_ensemble, describe_all, warn_of_leakage
    from engine.predict import Manifest, file_signature, work_key
    from engine.runtime import choose_precision, prepare_predictor, set_backend_options

    set_backend_options()
    if args.workers is None:
        args.workers = config.default_workers(world.device.type)
    classes = load_classes(args.data_root)
    pairs, folder = find_pairs(args, world)
    checkpoints = choose_ensemble(args.checkpoints, args.outdir / "models", classes.to_dict())
    world.say(
        f"predicting {len(pairs)} pairs with {len(checkpoints)} models, "
        f"{world.size} × {world.device.type}:"
    )
    world.say(describe_all(checkpoints))
    if pairs[0].labels:
        warn_of_leakage(checkpoints, [pair.id for pair in pairs], world.say)

    bands = bands_to_read(checkpoints, pairs[0].image1)
    deadline = started + args.time_limit if args.time_limit else None
    precision = choose_precision(args.amp, world.device)
    choices = (args.tta, precision.name, args.compile, args.time_limit)
    key = work_key({"choices": choices, **classes.to_dict()}, [c.path for c in checkpoints])
    signatures = {pair.name: file_signature(pair.files) for pair in pairs}
    manifest = Manifest(folder, key, signatures, world, args.overwrite, classes.mask_folders)
    loader = remaining_loader(
        pairs, classes, manifest.finished, args.test_batch_size, args.workers, world, bands
    )
    predictor = prepare_predictor(
        checkpoints, precision, args.tta, args.compile, loader, is_one_size(loader), world, deadline
    )
    metrics = write_predictions(
        args,
        loader,
        predictor,
        classes,
        folder,
        manifest.add,
        world,
        deadline,
    )
    manifest.close()
    predicted = sum(world.gather(sum(map(len, loader.batch_sampler.batches))))
    report(args, metrics, classes, predicted, folder, time.perf_counter() - started, world)
    if deadline and time.perf_counter() > deadline:
        late_s, views = time.perf_counter() - deadline, len(predictor.views)
        world.say(f"time limit missed by {late_s:.1f} s, views in the last batch: {views}")
    return metrics


def write_predictions(
    args: Namespace,
    loader: "DataLoader",
    predictor: "Predictor",
    classes: "ClassList",
    folder: Path,
    when_written: Callable[[str], None],
    world: "World",
    deadline: float | None,
) -> "AnyMetrics | None":
    """Predict every batch, write its masks, and return the scores if there are labels."""
    from engine.predict import MaskWriter
    from engine.predictor import within_time_limit
    from engine.training import evaluate
    from utils.text import progress

    batches = progress(loader, "predict", world.leads)
    if deadline:
        own_pairs = sum(len(indices) for indices in loader.batch_sampler)
        batches = within_time_limit(batches, predictor, own_pairs, deadline, world.say)
    counts = count_finished(loader, classes, folder, predictor.device)
    if loader.batch_sampler.skipped:
        done = len(loader.batch_sampler.skipped)
        world.say(f"{done} pairs were finished already (--overwrite makes them again)")
    with MaskWriter(folder, classes.palette, when_written) as writer:
        return evaluate(predictor, batches, classes.num_classes, world, writer.write, counts)


def count_finished(
    loader: "DataLoader", classes: "ClassList", folder: Path, device: "torch.device"
) -> "LabelCounts":
    """Return the counts of the pairs whose masks an earlier start has finished."""
    import torch

    from datasets.labels import read_label
    from engine.metrics import LabelCounts

    counts = LabelCounts(classes.num_classes, device)
    for index in loader.batch_sampler.skipped:
        name = loader.dataset.pairs[index].name
        masks = [
            torch.from_numpy(read_label(folder / each / f"{name}.png", classes))
            for each in classes.mask_folders
        ]
        counts.update(masks, loader.dataset.labels(index))
    return counts


def report(
    args: Namespace,
    metrics: "AnyMetrics | None",
    classes: "ClassList",
    predicted: int,
    folder: Path,
    seconds: float,
    world: "World",
) -> None:
    """Print scores, place and the speed of predicting, and leave the scores beside the masks."""
    from engine.metrics import details
    from utils.files import write_json

    if metrics:
        world.say(details(metrics, classes.names))
        if world.leads:
            write_json(folder / "metrics.json", metrics.to_dict())
    world.say(f"masks: {folder}  ({seconds:.1f} s, {predicted / seconds:.1f} pairs/s)")


def find_pairs(args: Namespace, world: "World") -> "tuple[list[Pair], Path]":
    """Return the pairs to predict and the folder of their masks.

    Labels of another kind than those trained on are left out: masks can be had without scores.
    """
    from datasets.pairs import differing_labels, index_pairs, split_pairs

    chosen = chosen_split(args)
    if chosen is None:
        pairs = index_pairs(args.data_root / "val")
        differing = differing_labels(args.data_root)
        if differing:
            world.say(f"{differing}: predicting without scores")
            pairs = [pair.without_labels() for pair in pairs]
        return pairs, args.outdir / "masks" / "test"
    _, _, pairs = split_pairs(args.data_root, chosen)
    return pairs, args.outdir / "masks" / "val"


if __name__ == "__main__":
    run(main)
