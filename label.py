"""Write pseudo masks: an ensemble votes a class for every pixel the ground truth leaves out."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.splits import SplitOptions
from engine import config
from utils import cli
from utils.cli import run

if TYPE_CHECKING:  # functions import torch themselves, so that --help starts at once
    import torch
    from torch.utils.data import DataLoader

    from datasets.classes import ClassList
    from engine.labelling import Coverage
    from engine.predictor import Predictor
    from models.checkpoint import Checkpoint
    from utils.dist import World

EPILOG = """example:
  python label.py --checkpoints outdir/models/pspnet_hrnet_w40_39.37.pth \\
      outdir/models/fcn_hrnet_w48_39.02.pth
"""


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Parse the command line."""
    parser = cli.make_parser(__doc__, EPILOG)
    config.add_data_args(parser)
    config.add_checkpoints_arg(parser)
    config.add_labelling_args(parser)
    config.add_compile_arg(parser)
    config.add_overwrite_arg(parser)
    config.add_runtime_args(parser)
    args = parser.parse_args(argv)
    if args.min_confidence and args.vote == "hard":
        parser.error("--min-confidence needs --vote soft")
    SplitOptions.from_options(vars(args))  # refuses what cannot be before processes are started
    return args


def main(argv: list[str] | None = None) -> "Coverage | None":
    """Label ROOT/train as the command line says and return how much was covered.

    With several GPUs, or ``--nproc``, the work is done in processes of their own: returns None.
    """
    args = parse_args(argv)
    from utils.dist import run_script

    def work(world: "World") -> Any:
        return label_in_world(args, world)

    return run_script(__file__, argv, args.nproc, args.device, work)


def label_in_world(args: Namespace, world: "World") -> "Coverage":
    """Label as one of the world's processes."""
    from datasets.loaders import is_one_size, remaining_loader
    from datasets.pairs import index_voted_pairs
    from datasets.task import load_classes
    from engine.ensemble import bands_to_read, choose_ensemble, describe_all
    from engine.predict import Manifest, file_signature, work_key
    from engine.runtime import choose_precision, prepare_predictor, set_backend_options

    set_backend_options()
    if args.workers is None:
        args.workers = config.default_workers(world.device.type)
    classes = load_classes(args.data_root)
    pairs = index_voted_pairs(args.data_root, classes)
    checkpoints = choose_ensemble(args.checkpoints, args.outdir / "models", classes.to_dict())
    world.say(
        f"labelling {len(pairs)} pairs with {len(checkpoints)} models, "
        f"{world.size} × {world.device.type}:"
    )
    world.say(describe_all(checkpoints))
    warn_of_seen_pairs(args, checkpoints, world)
    bands = bands_to_read(checkpoints, pairs[0].image1)

    precision = choose_precision(args.amp, world.device)
    choices = (args.vote, args.min_confidence, args.tta, precision.name, args.compile)
    folder = args.outdir / "masks" / "train"
    key = work_key({"choices": choices, **classes.to_dict()}, [c.path for c in checkpoints])
    signatures = {pair.name: file_signature(pair.files) for pair in pairs}
    manifest = Manifest(folder, key, signatures, world, args.overwrite)
    loader = remaining_loader(
        pairs, classes, manifest.finished, args.test_batch_size, args.workers, world, bands
    )
    predictor = prepare_predictor(
        checkpoints, precision, args.tta, args.compile, loader, is_one_size(loader), world
    )
    coverage = write_pseudo_masks(
        args,
        loader,
        predictor,
        classes,
        folder,
        manifest.add,
        world,
    )
    manifest.close()
    world.say(f"{coverage.table(classes.names)}\npseudo masks: {folder}")
    return coverage


def warn_of_seen_pairs(args: Namespace, checkpoints: "list[Checkpoint]", world: "World") -> None:
    """Warn of teachers that know the validation pairs of the student to come."""
    from datasets.pairs import split_pairs
    from engine.ensemble import warn_of_leakage

    split, _, _ = split_pairs(args.data_root, SplitOptions.from_options(vars(args)))
    warn_of_leakage(checkpoints, split.val, world.say)


def write_pseudo_masks(
    args: Namespace,
    loader: "DataLoader",
    predictor: "Predictor",
    classes: "ClassList",
    folder: Path,
    when_written: Callable[[str], None],
    world: "World",
) -> "Coverage":
    """Vote on every batch, write both dates' masks, and return the counts per class."""
    import torch

    from datasets.labels import read_label
    from engine.labelling import Coverage, merge_labels
    from engine.predict import MaskWriter
    from utils.text import progress

    coverage = Coverage(classes.num_classes)
    with MaskWriter(folder, classes.colors, when_written) as writer:
        for batch in progress(loader, "label", world.leads):
            label1, label2 = batch["label1"], batch["label2"]
            vote = vote_batch(args, batch, predictor, classes.num_classes).cpu()
            coverage.update(label1, label2, vote)
            writer.write(batch["name"], merge_labels(label1, vote), merge_labels(label2, vote))
    skipped = loader.batch_sampler.skipped
    if skipped:
        world.say(f"{len(skipped)} pairs were finished already (--overwrite makes them again)")
    for index in skipped:
        pair = loader.dataset.pairs[index]
        label1, label2, mask1 = (
            torch.from_numpy(read_label(path, classes))
            for path in (pair.label1, pair.label2, folder / "im1" / f"{pair.name}.png")
        )
        coverage.update(label1, label2, mask1)
    return coverage.over(world)


def vote_batch(
    args: Namespace, batch: dict, predictor: "Predictor", num_classes: int
) -> "torch.Tensor":
    """Return the ensemble's vote for every pixel of a batch: (N, H, W) uint8, 0 = no class."""
    import torch

    from engine.labelling import count_votes, hard_votes, soft_vote

    if args.vote == "soft":
        probs = predictor(batch["image1"], batch["image2"])
        return soft_vote(probs.semantic_probs1, probs.semantic_probs2, args.min_confidence)
    votes = [
        hard_votes(
            (probs.semantic_probs1.argmax(dim=1) + 1).to(torch.uint8),
            (probs.semantic_probs2.argmax(dim=1) + 1).to(torch.uint8),
        )
        for probs in predictor.each_model(batch["image1"], batch["image2"])
    ]
    return count_votes(torch.stack(votes), num_classes)


if __name__ == "__main__":
    run(main)
