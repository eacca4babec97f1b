"""Run the whole recipe on generated scenes: teachers, pseudo labels, retraining, submission."""

import json
import shlex
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine import config
from utils import cli
from utils.cli import run
from utils.errors import UserError

BACKBONE = "hrnet_w18_small"
# Random initialisation and eight epochs instead of ImageNet weights and thirty want a higher rate.
TRAINING = ["--backbone", BACKBONE, "--lr", "1e-3", "--batch-size", "8"]
SHOWN_PAIRS = 5


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Parse the command line."""
    parser = cli.make_parser(__doc__)
    group = parser.add_argument_group("size of the demo")
    group.add_argument("--train-pairs", type=cli.positive_int, default=160, metavar="N")
    group.add_argument("--val-pairs", type=cli.positive_int, default=32, metavar="N")
    group.add_argument("--size", type=cli.positive_int, default=96, metavar="PIXELS")
    group.add_argument("--epochs", type=cli.positive_int, default=8, metavar="N")
    parser.add_argument(
        "--outdir",
        type=Path,
        default=config.OUTDIR / "demo",
        metavar="DIR",
        help="everything goes here, and what an earlier demo left here goes (default: outdir/demo)",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run the recipe, print a table, draw ``overview.png``, and return the table's rows."""
    args = parse_args(argv)
    started = time.perf_counter()
    clear_earlier_demo(args.outdir)
    data, work = args.outdir / "data", ["--data-root", str(args.outdir / "data")]
    # One process: a batch of 8 pairs cannot be divided among any number of GPUs.
    work += ["--outdir", str(args.outdir), "--nproc", "1"]
    sizes = ["--train-pairs", str(args.train_pairs), "--val-pairs", str(args.val_pairs)]
    script("tools/make_sample_data.py", "--out", str(data), *sizes, "--size", str(args.size))
    rows = [untrained_row(args.outdir, work)]

    epochs = ["--epochs", str(args.epochs)]
    for model in ("pspnet", "fcn"):
        seconds = script("train.py", "--model", model, *TRAINING, *epochs, *work)
        rows.append(training_row(f"teacher {model}", args.outdir, model, seconds))
    label_s = script("label.py", *work)
    rows.append({"stage": "label.py", "seconds": label_s})
    accuracy = pseudo_label_accuracy(data, args.outdir)

    student = ["--model", "pspnet", "--lightweight", "--use-pseudo-label"]
    seconds = script("train.py", *student, *TRAINING, *epochs, *work)
    rows.append(training_row("student, pseudo labels", args.outdir, "pspnet", seconds))
    seconds = script("test.py", "--tta", *work)
    rows.append(testing_row("test.py, 3 models, TTA", args.outdir, seconds))

    draw_overview(data, args.outdir)
    print(f"\n{format_table(rows)}\n{describe_pairs(args.outdir)}\n")
    print(
        f"pseudo labels: {100 * accuracy['coverage']:.1f} % of the unlabelled pixels got a class, "
        f"{100 * accuracy['accuracy']:.1f} % of these the right one"
    )
    print(f"pictures: {args.outdir / 'overview.png'}  ({time.perf_counter() - started:.0f} s)")
    return rows


def clear_earlier_demo(outdir: Path) -> None:
    """Remove what an earlier demo wrote, and nothing else.

    Raises:
        UserError: it is a file, or a folder that holds something that no demo wrote.
    """
    if outdir.exists() and not outdir.is_dir():
        raise UserError(f"{outdir}: a file; name another folder with --outdir")
    marker = outdir / "demo.json"
    if outdir.exists() and any(outdir.iterdir()) and not marker.exists():
        raise UserError(f"{outdir}: not empty and not of an earlier demo; choose another --outdir")
    for name in ("data", "models", "masks", "logs"):
        shutil.rmtree(outdir / name, ignore_errors=True)
    outdir.mkdir(parents=True, exist_ok=True)
    marker.write_text("{}\n", encoding="utf-8")


def script(name: str, *arguments: str) -> float:
    """Run a script of this repository as a user would, and return its seconds.

    Raises:
        UserError: it failed; its own message is on the screen.
    """
    print(f"\n$ python {name} {shlex.join(arguments)}", flush=True)
    started = time.perf_counter()
    result = subprocess.run([sys.executable, str(config.REPO / name), *arguments], check=False)
    if result.returncode:
        raise UserError(f"{name} ended with status {result.returncode}; its message is above")
    return time.perf_counter() - started


def untrained_row(outdir: Path, work: list[str]) -> dict[str, Any]:
    """Score a model that was never trained: what the others must beat."""
    import torch

    from models.change_detector import ModelConfig, build_model
    from utils.tensor_files import save_checkpoint

    torch.manual_seed(0)
    config = ModelConfig("pspnet", BACKBONE)
    path = outdir / "untrained.pth"
    save_checkpoint(path, {"config": config.to_dict(), "model": build_model(config).state_dict()})
    seconds = script("test.py", "--checkpoints", str(path), *work)
    return testing_row("untrained", outdir, seconds)


def training_row(stage: str, outdir: Path, model: str, seconds: float) -> dict[str, Any]:
    """Return the best validation scores of the run that just ended."""
    from utils.tensor_files import read_checkpoint

    latest = read_checkpoint(outdir / "models" / f"{model}_{BACKBONE}_latest.pth")
    return {"stage": stage, "seconds": seconds, **latest["training"]["best"]}


def testing_row(stage: str, outdir: Path, seconds: float) -> dict[str, Any]:
    """Return the scores that test.py left beside its masks."""
    scores = json.loads((outdir / "masks" / "test" / "metrics.json").read_text(encoding="utf-8"))
    return {"stage": stage, "seconds": seconds, **scores}


def pseudo_label_accuracy(data: Path, outdir: Path) -> dict[str, float]:
    """Measure the pseudo masks against the truth that the generator knows."""
    from tools.pseudo_accuracy import measure_pseudo_labels

    return measure_pseudo_labels(data, outdir / "masks" / "train")


def format_table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as text, scores in percent."""
    from utils.text import table

    scores = ("score", "miou", "sek", "f_scd", "oa")
    cells = [
        (
            row["stage"],
            *(f"{100 * row[name]:.2f}" if name in row else "" for name in scores),
            f"{row['seconds']:.0f}",
        )
        for row in rows
    ]
    return table(("stage", "Score", "mIoU", "SeK", "F_scd", "OA", "seconds"), cells)


def describe_pairs(outdir: Path) -> str:
    """Say which pairs the scores of the table are of, and whether they are the same in each row.

    Training validates on the pairs that test.py predicts; a split of its own would not compare.
    """
    from utils.tensor_files import read_checkpoint

    tested = {f"val/{path.stem}" for path in (outdir / "data" / "val" / "im1").iterdir()}
    splits = [read_checkpoint(path)["split"] for path in (outdir / "models").glob("*.pth")]
    protocols = ", ".join(sorted({split["protocol"] for split in splits}))
    if all(set(split["val"]) == tested for split in splits):
        return f"all scores: the {len(tested)} pairs of data/val (split {protocols})"
    return (
        f"scores of test.py: the {len(tested)} pairs of data/val; of training: its own validation "
        f"pairs (split {protocols}), which do not compare"
    )


def draw_overview(data: Path, outdir: Path) -> None:
    """Draw images, labels, pseudo masks and predictions of a few pairs."""
    from datasets.images import read_bands
    from datasets.labels import read_label
    from datasets.pairs import index_pairs
    from datasets.task import load_classes
    from utils.pictures import contact_sheet, save_image

    classes = load_classes(data)

    def mask(path: Path) -> Any:
        return classes.to_rgb(read_label(path, classes))

    rows = {}
    for split, masks in (("train", "train"), ("val", "test")):
        rows[split] = [
            [
                read_bands(pair.image1),
                read_bands(pair.image2),
                mask(pair.label1),
                mask(pair.label2),
                mask(outdir / "masks" / masks / "im1" / f"{pair.name}.png"),
                mask(outdir / "masks" / masks / "im2" / f"{pair.name}.png"),
            ]
            for pair in index_pairs(data / split)[:SHOWN_PAIRS]
        ]
    dates = ["image 1", "image 2", "label 1", "label 2"]
    titles = [*dates, "pseudo mask 1", "pseudo mask 2", *dates, "prediction 1", "prediction 2"]
    both = [train + val for train, val in zip(rows["train"], rows["val"], strict=False)]
    legend = list(zip(classes.names, classes.colors, strict=True))
    save_image(outdir / "overview.png", contact_sheet(titles, both, cell=112, legend=legend))


if __name__ == "__main__":
    run(main)
