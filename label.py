"""Write pseudo masks: an ensemble votes a class for every pixel the ground truth leaves out."""

from argparse import Namespace
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from utils import options
from utils.cli import run
from utils.errors import DataError

if TYPE_CHECKING:  # functions import torch themselves, so that --help starts at once
    import torch

    from datasets import ClassList
    from utils.distributed import World
    from utils.inference import Predictor
    from utils.pseudo_label import Coverage

EPILOG = """example:
  python label.py --checkpoints outdir/models/pspnet_hrnet_w40_39.37.pth \\
      outdir/models/fcn_hrnet_w48_39.02.pth
"""


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Parse the command line."""
    parser = options.make_parser(__doc__, EPILOG)
    options.add_data_args(parser, split=False)
    options.add_checkpoints_arg(parser)
    options.add_labelling_args(parser)
    options.add_compile_arg(parser)
    options.add_runtime_args(parser)
    args = parser.parse_args(argv)
    if args.min_confidence and args.vote == "hard":
        parser.error("--min-confidence needs --vote soft")
    return args


def main(argv: list[str] | None = None) -> "Coverage | None":
    """Label ROOT/train as the command line says and return how much was covered.

    With several GPUs, or ``--nproc``, the work is done in processes of their own: returns None.
    """
    args = parse_args(argv)
    from utils.distributed import run_script

    def work(world: "World") -> Any:
        return label_in_world(args, world)

    return run_script(__file__, argv, args.nproc, args.device, work)


def label_in_world(args: Namespace, world: "World") -> "Coverage":
    """Label as one of the world's processes."""
    from datasets import (
        ChangeDetectionDataset,
        evaluation_loader,
        index_pairs,
        is_one_size,
        load_classes,
    )
    from models.deploy import build_predictor, compile_predictor
    from models.ensemble import describe, find_best_checkpoints, open_ensemble
    from utils.precision import choose_precision, set_backend_options
    from utils.progress import progress

    set_backend_options()
    device = world.device
    if args.workers is None:
        args.workers = options.default_workers(device.type)
    classes = load_classes(args.data_root)
    pairs = index_pairs(args.data_root / "train")
    if pairs[0].label1 is None:
        raise DataError(f"{args.data_root / 'train'}: no label1 and label2; nothing tells changes")
    paths = args.checkpoints or find_best_checkpoints(args.outdir / "models")
    checkpoints = open_ensemble(paths, classes.to_dict())
    world.say(
        f"labelling {len(pairs)} pairs on {world.size} × {device.type} with "
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
    batches = progress(loader, "label", world.leads)
    coverage = write_pseudo_masks(args, batches, predictor, classes).over(world)
    world.say(coverage.table(classes.names))
    world.say(f"pseudo masks: {args.outdir / 'masks' / 'train'}")
    return coverage


def write_pseudo_masks(
    args: Namespace, batches: Iterable[dict], predictor: "Predictor", classes: "ClassList"
) -> "Coverage":
    """Vote on every batch, write both dates' masks, and return the counts per class."""
    from utils.pseudo_label import Coverage, merge_labels
    from utils.writer import MaskWriter, write_both_dates

    coverage = Coverage(classes.num_classes)
    with MaskWriter(classes.colors) as writer:
        write = write_both_dates(writer, args.outdir / "masks" / "train")
        for batch in batches:
            vote = vote_batch(args, batch, predictor, classes.num_classes).cpu()
            coverage.update(batch["label1"], batch["label2"], vote)
            write(
                batch["name"],
                merge_labels(batch["label1"], vote),
                merge_labels(batch["label2"], vote),
            )
    return coverage


def vote_batch(
    args: Namespace, batch: dict, predictor: "Predictor", num_classes: int
) -> "torch.Tensor":
    """Return the ensemble's vote for every pixel of a batch: (N, H, W) uint8, 0 = no class."""
    import torch

    from utils.pseudo_label import count_votes, hard_votes, soft_vote

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
