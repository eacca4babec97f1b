"""Several processes do what one does: losses, batch norm, shares of the data, scripts, failures."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import (
    REPO,
    Child,
    ended,
    error_lines,
    eventually,
    free_port,
    processes_with,
    run_ranks,
    start_script,
)
from runs import BACKBONE, PREFIX, best_files, csv_rows, latest_file, options, train_options
from torch import nn

import label
import test as predict
import train
from datasets import (
    ChangeDetectionDataset,
    TrainTransform,
    evaluation_loader,
    index_pairs,
    load_classes,
    set_epoch,
    split_pairs,
    training_loader,
)
from datasets.batches import SameSizeBatches
from datasets.classes import SECOND_CLASSES
from models import ModelConfig
from models.sync_norm import synchronize_batch_norm
from utils.checkpoint import read_checkpoint
from utils.distributed import World, join_world
from utils.engine import evaluate
from utils.errors import OptionError
from utils.inference import Predictor
from utils.masks import save_change_mask

STEPS = 5


# --- losses ---------------------------------------------------------------------------------


def write_losses(rank: int, data: Path, outdir: Path, argv: tuple) -> None:
    """Train two epochs without dropout; the leading process writes the total of each batch."""
    args = train.parse_args(train_options(data, outdir, *argv))
    with join_world("cpu") as world:
        classes = load_classes(data)
        split, pairs, _ = split_pairs(data)
        loader = train.make_train_loader(args, pairs, classes, world)
        description = {"classes": classes.to_dict(), "split": split.to_dict()}
        config = ModelConfig(args.model, args.backbone, args.lightweight, classes.semantic_classes)
        trainer = train.make_trainer(args, config, description, 6, None, world)
        for module in trainer.model.modules():
            if isinstance(module, (nn.Dropout, nn.Dropout2d)):
                module.p = 0.0
        losses = []
        trainer.criterion.register_forward_hook(
            lambda _module, _inputs, terms: losses.append(
                {name: world.mean(value.detach()).item() for name, value in terms.items()}
            )
        )
        for _ in range(2):
            set_epoch(loader, trainer.epoch + 1, trainer.begin_epoch())
            trainer.train_epoch(loader, lambda: None)
            trainer.validated = True
        if world.leads:
            outdir.mkdir(parents=True, exist_ok=True)
            (outdir / "losses.json").write_text(json.dumps(losses))


def losses_of(size: int, data: Path, outdir: Path, *argv: object) -> list[dict[str, float]]:
    run_ranks(size, outdir, write_losses, data, outdir, argv)
    return json.loads((outdir / "losses.json").read_text())


@pytest.mark.parametrize("model", [(), ("--model", "pspnet", "--lightweight")])
def test_losses_of_two_processes_are_those_of_one(model, sample_root, tmp_path):
    found, expected = (
        losses_of(size, sample_root, tmp_path / str(size), *model)[:STEPS] for size in (2, 1)
    )
    assert len(found) == len(expected) == STEPS
    for step, (a, b) in enumerate(zip(found, expected, strict=True)):
        # Adam divides gradients by their own size, so that rounding grows from step to step.
        assert a == pytest.approx(b, rel=1e-5 * 10 ** min(step, 2)), step


@pytest.mark.parametrize("kind", ["binary", "one date"])
def test_two_processes_without_all_semantics(kind, broken_root, tmp_path):
    for split in ("train", "val"):
        shutil.rmtree(broken_root / split / "label2")
        if kind == "binary":
            (broken_root / split / "label1").rename(broken_root / split / "label")
            for path in (broken_root / split / "label").iterdir():
                changed = SECOND_CLASSES.to_index(np.asarray(Image.open(path))) > 0
                save_change_mask(path, changed.astype(np.uint8))
    found, expected = (losses_of(size, broken_root, tmp_path / str(size))[:2] for size in (2, 1))
    terms = {"change", "total"} if kind == "binary" else {"change", "semantic1", "total"}
    for step, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert set(a) == terms and a == pytest.approx(b, rel=1e-5 * 10**step), step


def test_accumulated_losses_of_two_processes_are_those_of_one(sample_root, tmp_path):
    # Batch norm sees one pass at a time; the passes of two processes hold the same pairs together.
    found = losses_of(2, sample_root, tmp_path / "2", "--batch-size", 4, "--accumulate", 2)
    expected = losses_of(1, sample_root, tmp_path / "1", "--batch-size", 4, "--accumulate", 2)
    assert len(found) == len(expected) == 12  # passes
    for a, b in zip(found[:4], expected[:4], strict=True):
        assert a == pytest.approx(b, rel=1e-3)


# --- batch norm -----------------------------------------------------------------------------

CHANNELS = 5
SHARES = (3, 1)  # pairs of each rank; a rank may hold one


def norm_and_input() -> tuple[nn.BatchNorm2d, torch.Tensor, torch.Tensor]:
    """A batch norm, an input whose channels have large means, and weights for its output."""
    generator = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm2d(CHANNELS)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(CHANNELS, generator=generator) + 0.5)
        norm.bias.copy_(torch.rand(CHANNELS, generator=generator))
    x = torch.randn(sum(SHARES), CHANNELS, 6, 7, generator=generator)
    x = x + torch.tensor([0.0, 1.0, -10.0, 100.0, 1000.0]).view(1, -1, 1, 1)
    return norm, x, torch.randn(x.shape, generator=generator)


def through_norm(norm: nn.Module, x: torch.Tensor, weights: torch.Tensor) -> dict:
    """Three passes in training mode; outputs, gradients and statistics of the last."""
    for _ in range(3):
        norm.zero_grad()
        leaf = x.clone().requires_grad_()
        y = norm(leaf)
        (y.square() * weights).sum().backward()
    return {
        "y": y.detach(),
        "x": leaf.grad,
        "weight": norm.weight.grad,
        "bias": norm.bias.grad,
        "mean": norm.running_mean,
        "var": norm.running_var,
        "count": norm.num_batches_tracked,
    }


def write_norm(rank: int, folder: Path) -> None:
    with join_world("cpu") as world:
        norm, x, weights = norm_and_input()
        norm = synchronize_batch_norm(norm, "cpu")
        share = slice(sum(SHARES[:rank]), sum(SHARES[: rank + 1]))
        found = through_norm(norm, x[share], weights[share])
        # A distributed model adds up the parameters' gradients by itself.
        found["weight"], found["bias"] = world.sum(found["weight"]), world.sum(found["bias"])
        torch.save(found, folder / f"{rank}.pt")
        norm.eval()
        torch.save(norm(x[share]).detach(), folder / f"eval{rank}.pt")


def test_synchronised_batch_norm_is_that_of_the_whole_batch(tmp_path):
    run_ranks(2, tmp_path, write_norm, tmp_path)
    norm, x, weights = norm_and_input()
    reference = through_norm(norm.double(), x.double(), weights.double())
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for key in ("y", "x"):
        found = torch.cat([rank[key] for rank in ranks]).double()
        # An input near 1000 holds four digits behind the point.
        torch.testing.assert_close(found, reference[key], rtol=1e-4, atol=1e-4)
    for rank in ranks:
        for key in ("weight", "bias", "mean", "var"):
            torch.testing.assert_close(rank[key].double(), reference[key], rtol=1e-4, atol=1e-4)
        assert rank["count"] == 3
    norm.eval()
    found = torch.cat(
        [torch.load(tmp_path / f"eval{rank}.pt", weights_only=True) for rank in range(2)]
    )
    torch.testing.assert_close(found.double(), norm(x.double()).detach(), rtol=1e-4, atol=1e-4)


# --- shares of the data ---------------------------------------------------------------------


def pairs_of(folder: Path, count: int) -> ChangeDetectionDataset:
    return ChangeDetectionDataset(index_pairs(folder)[:count], SECOND_CLASSES)


def write_confusion(rank: int, data: Path, folder: Path, batch_size: int) -> None:
    """Evaluate five pairs; each process writes what it saw, and the scores."""
    with join_world("cpu") as world:
        torch.manual_seed(0)
        from models import build_model

        model = build_model(ModelConfig("fcn", BACKBONE)).eval()
        loader = evaluation_loader(
            pairs_of(data / "train", 5), batch_size, 0, False, world.rank, world.size
        )
        seen = []
        metrics = evaluate(
            Predictor([model]), loader, 6, world, lambda names, *_: seen.extend(names)
        )
        (folder / f"seen{rank}.json").write_text(json.dumps([seen, metrics.to_dict()]))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_uneven_shares_have_the_confusion_of_one_process(batch_size, sample_root, tmp_path):
    scores = {}
    for size in (1, 2, 3):
        folder = tmp_path / str(size)
        run_ranks(size, folder, write_confusion, sample_root, folder, batch_size)
        parts = [json.loads((folder / f"seen{r}.json").read_text()) for r in range(size)]
        seen = sorted(name for names, _ in parts for name in names)
        assert seen == [f"{i:05d}" for i in range(5)]  # each pair once
        assert all(found == parts[0][1] for _, found in parts)
        scores[size] = parts[0][1]
    assert scores[2] == scores[1]
    assert scores[3] == scores[1]


def test_every_batch_of_a_process_is_one_of_a_single_process(sample_root):
    dataset = pairs_of(sample_root / "train", 11)
    alone = list(evaluation_loader(dataset, 3, 0, False).batch_sampler)
    for size in (2, 3, 5):
        shares = [
            list(evaluation_loader(dataset, 3, 0, False, rank, size).batch_sampler)
            for rank in range(size)
        ]
        assert sorted(batch for share in shares for batch in share) == sorted(alone)


def test_a_process_without_pairs_is_allowed():
    shares = [list(SameSizeBatches([(8, 8)] * 2, 4, rank=rank, world_size=3)) for rank in range(3)]
    assert shares == [[[0, 1]], [], []]


@pytest.mark.parametrize("skip", [0, 1, 2])
@pytest.mark.parametrize("size", [2, 3])
def test_training_batches_of_all_processes_are_those_of_one(size, skip, sample_root):
    dataset = ChangeDetectionDataset(
        index_pairs(sample_root / "train"), SECOND_CLASSES, TrainTransform(None), seed=3
    )

    def batches(rank: int, world_size: int) -> list[dict]:
        loader = training_loader(dataset, 6 // world_size, 0, 3, False, rank, world_size)
        set_epoch(loader, 2, skip)
        return list(loader)

    alone = batches(0, 1)
    assert len(alone) == 2 - skip
    shares = [batches(rank, size) for rank in range(size)]
    assert all(len(share) == len(alone) for share in shares)
    for step, expected in enumerate(alone):
        images = {
            name: image for name, image in zip(expected["name"], expected["image1"], strict=True)
        }
        found = {}
        for share in shares:
            found |= dict(zip(share[step]["name"], share[step]["image1"], strict=True))
        assert found.keys() == images.keys()
        assert all(torch.equal(found[name], image) for name, image in images.items())


# --- scripts --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Trained:
    outdir: Path
    out: str


@pytest.fixture(scope="module")
def trained(sample_root, tmp_path_factory) -> Trained:
    """Two epochs in two processes, with validation masks. Read only."""
    outdir = tmp_path_factory.mktemp("nproc2")
    more = ("--epochs", 2, "--nproc", 2, "--save-mask", "--workers", 1)
    argv = train_options(sample_root, outdir, *more)
    with ended(start_script("train.py", argv, outdir / "printed")) as child:
        assert child.wait() == 0, child.err
        assert error_lines(child) == []
        return Trained(outdir, child.out)


def test_two_processes_train_validate_and_leave_one_of_each(trained):
    assert len(best_files(trained.outdir)) == 1
    names = {path.name for path in (trained.outdir / "models").iterdir()}
    assert names == {best_files(trained.outdir)[0].name, f"{PREFIX}_latest.pth"}
    rows = csv_rows(trained.outdir)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    state = read_checkpoint(latest_file(trained.outdir))
    assert state["epoch"] == 2
    assert len(state["training"]["rng"]) == 2  # of every process
    assert not torch.equal(*(rng["cpu"] for rng in state["training"]["rng"]))
    best = max(float(row["score"]) for row in rows)
    assert read_checkpoint(best_files(trained.outdir)[0])["metrics"]["score"] == best
    for date in ("im1", "im2"):
        masks = sorted(p.name for p in (trained.outdir / "masks" / "val" / date).iterdir())
        assert masks == [f"{i:05d}.png" for i in range(4)]


def test_only_the_leading_process_prints(trained):
    assert "2 × cpu" in trained.out
    for text in ("training and", "epoch 1/2", "epoch 2/2", "best: "):
        assert trained.out.count(text) == 1, trained.out


def masks_in(folder: Path) -> dict[str, bytes]:
    files = {f"{p.parent.name}/{p.name}": p.read_bytes() for p in folder.glob("im?/*.png")}
    assert files
    return files


@pytest.mark.parametrize(
    ("script", "size"),
    [
        ("label.py", 2),
        pytest.param("label.py", 3, marks=pytest.mark.slow),
        pytest.param("test.py", 2, marks=pytest.mark.slow),
        pytest.param("test.py", 3, marks=pytest.mark.slow),
    ],
)
def test_masks_do_not_depend_on_the_number_of_processes(
    script, size, trained, sample_root, tmp_path
):
    (best,) = best_files(trained.outdir)
    more = ("--checkpoints", best, "--test-batch-size", 2)
    folder = ("masks", "train") if script == "label.py" else ("masks", "test")
    alone = {"label.py": label, "test.py": predict}[script]
    alone.main(options(sample_root, tmp_path / "1", *more))
    argv = options(sample_root, tmp_path / "n", *more, "--nproc", size)
    with ended(start_script(script, argv, tmp_path / "printed")) as child:
        assert child.wait() == 0, child.err
        assert error_lines(child) == []
    assert masks_in(tmp_path.joinpath("n", *folder)) == masks_in(tmp_path.joinpath("1", *folder))


def test_a_batch_that_cannot_be_divided_is_an_error():
    from utils.run import batch_size_per_pass

    with pytest.raises(OptionError, match="--batch-size 5 cannot be divided among 2 processes"):
        batch_size_per_pass(5, 1, 2, 100)


def test_a_batch_that_cannot_be_divided_is_one_line(sample_root, tmp_path):
    argv = train_options(sample_root, tmp_path, "--batch-size", 5, "--nproc", 2)
    with ended(start_script("train.py", argv, tmp_path / "printed")) as child:
        assert child.wait() == 2
    (line,) = error_lines(child)
    assert line.startswith("error: --batch-size 5 cannot be divided among 2 processes")
    assert "use a multiple of 2" in line
    assert not (tmp_path / "models").exists()


# --- failures -------------------------------------------------------------------------------

SECONDS_TO_END = 20  # from the failure on; a hanging peer would take the 30 minutes of a time-out


def pair_of_rank(data: Path, rank: int, size: int, step: int = 0, epoch: int = 1) -> str:
    """The name of a pair that only one process reads, in a step of an epoch."""
    _, pairs, _ = split_pairs(data)
    dataset = ChangeDetectionDataset(pairs, SECOND_CLASSES)
    loader = training_loader(dataset, 4 // size, 0, 0, False, rank, size)
    loader.sampler.set_epoch(epoch)
    return pairs[list(loader.sampler)[4 // size * step]].name


def truncate(path: Path) -> Path:
    """Cut an image off behind its header, so that it fails when it is decoded."""
    os.truncate(path, path.stat().st_size // 2)
    return path


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_an_error_of_one_process_ends_all_with_one_line(rank, workers, broken_root, tmp_path):
    path = truncate(broken_root / "train" / "im1" / f"{pair_of_rank(broken_root, rank, 2)}.png")
    argv = train_options(broken_root, tmp_path, "--nproc", 2, "--workers", workers)
    with ended(start_script("train.py", argv, tmp_path / "printed")) as child:
        eventually(lambda: "2 × cpu" in child.out, 120)
        started = time.monotonic()
        assert child.wait() == 2
        assert time.monotonic() - started < SECONDS_TO_END
    (line,) = error_lines(child)
    assert line.startswith(f"error: {path}: cannot be decoded")
    assert "Traceback" not in child.err
    eventually(lambda: processes_with(str(tmp_path)) == [], SECONDS_TO_END)


@pytest.mark.slow
def test_debug_shows_the_traceback_of_the_failed_process(broken_root, tmp_path):
    path = truncate(broken_root / "train" / "im1" / f"{pair_of_rank(broken_root, 1, 2)}.png")
    argv = train_options(broken_root, tmp_path, "--nproc", 2, "--debug")
    with ended(start_script("train.py", argv, tmp_path / "printed")) as child:
        assert child.wait() not in (0, None)
    assert "Traceback" in child.err
    assert f"DataError: {path}: cannot be decoded" in child.err
    eventually(lambda: processes_with(str(tmp_path)) == [], SECONDS_TO_END)


def workers_of(child: "Child | subprocess.Popen") -> list[int]:
    """Processes that the launcher started, by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ranks = [word for word in environment if word.startswith(b"RANK=")]
        if int(status[1]) == child.pid and ranks:
            found[int(ranks[0][5:])] = int(folder.name)
    return [found[rank] for rank in sorted(found)]


def start_long_run(data: Path, outdir: Path, *more: object) -> Child:
    argv = train_options(data, outdir, "--epochs", 500, "--nproc", 2, *more)
    return start_script("train.py", argv, outdir / "printed")


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_process_ends_all(rank, sample_root, tmp_path):
    with ended(start_long_run(sample_root, tmp_path)) as child:
        eventually(lambda: "epoch 1/" in child.out, 120)
        started = time.monotonic()
        os.kill(workers_of(child)[rank], signal.SIGKILL)
        assert child.wait() == 128 + signal.SIGKILL
        assert time.monotonic() - started < SECONDS_TO_END
    (line,) = error_lines(child)
    assert line.startswith(f"error: process {rank} was killed by SIGKILL")
    assert read_checkpoint(latest_file(tmp_path))["epoch"] >= 1
    eventually(lambda: processes_with(str(tmp_path)) == [], SECONDS_TO_END)


@pytest.mark.slow
def test_processes_end_with_a_killed_launcher(sample_root, tmp_path):
    # Else they would go on writing to a folder in which the next start resumes.
    with ended(start_long_run(sample_root, tmp_path)) as child:
        eventually(lambda: "epoch 1/" in child.out, 120)
        assert len(workers_of(child)) == 2
        child.send(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        eventually(lambda: processes_with(str(tmp_path)) == [], SECONDS_TO_END)
    assert read_checkpoint(latest_file(tmp_path))["epoch"] >= 1


# --- torchrun -------------------------------------------------------------------------------


def start_agent(
    port: int, argv: list[str], folder: Path, nodes: int = 2, processes: int = 1, *more: str
) -> subprocess.Popen:
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(nodes)]
    command += ["--nproc-per-node", str(processes), "--rdzv-backend", "c10d", "--rdzv-id", "pair"]
    command += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1", *more]
    command.append("train.py")
    with (folder / "stdout").open("w") as out, (folder / "stderr").open("w") as err:
        return subprocess.Popen(
            [*command, *argv],
            cwd=REPO,
            stdout=out,
            stderr=err,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )


def test_two_agents_train_together(sample_root, tmp_path):
    port, outdir = free_port(), tmp_path / "out"
    argv = train_options(sample_root, outdir)
    folders = [tmp_path / f"node{i}" for i in range(2)]
    agents = [start_agent(port, argv, folder) for folder in folders]
    try:
        for agent, folder in zip(agents, folders, strict=True):
            assert agent.wait(240) == 0, (folder / "stderr").read_text()
    finally:
        for agent in agents:
            if agent.poll() is None:
                os.killpg(agent.pid, signal.SIGKILL)
    printed = "".join((folder / "stdout").read_text() for folder in folders)
    assert printed.count("epoch 1/1") == 1
    assert "2 × cpu" in printed
    assert len(best_files(outdir)) == 1
    state = read_checkpoint(latest_file(outdir))
    assert len(state["training"]["rng"]) == 2
    assert [row["epoch"] for row in csv_rows(outdir)] == ["1"]


@pytest.fixture
def single_agent(sample_root, tmp_path) -> Iterator[subprocess.Popen]:
    """One agent with two processes that train six epochs in ``out``, in their first one."""
    argv = train_options(
        sample_root, tmp_path / "out", "--epochs", 6, "--checkpoint-every", 1, "--resume"
    )
    more = ("--max-restarts", "2", "--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1")
    agent = start_agent(free_port(), argv, tmp_path / "printed", 1, 2, *more)
    try:
        eventually(latest_file(tmp_path / "out").exists, 120)
        yield agent
    finally:
        if agent.poll() is None:
            os.killpg(agent.pid, signal.SIGKILL)


@pytest.mark.slow
def test_elastic_restarts_go_on(single_agent, tmp_path):
    os.kill(workers_of(single_agent)[1], signal.SIGKILL)
    assert single_agent.wait(240) == 0, (tmp_path / "printed" / "stderr").read_text()
    assert (tmp_path / "printed" / "stdout").read_text().count("resuming ") == 1
    assert [row["epoch"] for row in csv_rows(tmp_path / "out")] == list("123456")
    assert len(best_files(tmp_path / "out")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_torchrun_saves(number, single_agent, sample_root, tmp_path):
    single_agent.send_signal(number)
    assert single_agent.wait(60) != 0
    printed = (tmp_path / "printed" / "stderr").read_text()
    assert "asked to end in epoch" in printed
    state = read_checkpoint(latest_file(tmp_path / "out"))["training"]
    assert (state["epoch"], state["step"]) < (6, 3)
    eventually(lambda: processes_with(str(tmp_path / "out")) == [], SECONDS_TO_END)
    train.main(train_options(sample_root, tmp_path / "out", "--epochs", 6, "--resume"))
    assert len(csv_rows(tmp_path / "out")) == 6


# --- the world ------------------------------------------------------------------------------


def write_world(rank: int, folder: Path) -> None:
    with join_world("cpu") as world:
        found = {
            "sum": world.sum(torch.tensor([rank + 1.0])).item(),
            "mean": world.mean(torch.tensor(float(rank))).item(),
            "any": [world.any(False), world.any(rank == 1), world.any(True)],
            "gather": world.gather({"rank": rank}),
            "leader": world.from_leader(f"from {rank}"),
            "leads": world.leads,
        }
        world.wait()
        (folder / f"{rank}.json").write_text(json.dumps(found))


def test_messages_between_processes(tmp_path):
    run_ranks(3, tmp_path, write_world, tmp_path)
    for rank in range(3):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {
            "sum": 6,
            "mean": 1,
            "any": [False, True, True],
            "gather": [{"rank": 0}, {"rank": 1}, {"rank": 2}],
            "leader": "from 0",
            "leads": rank == 0,
        }


def test_a_world_of_one_sends_nothing(capsys):
    world = World(0, 1, torch.device("cpu"))
    value = torch.tensor([1.0, 2.0])
    assert world.sum(value) is value
    assert world.mean(value) is value
    assert world.any(True) and not world.any(False)
    assert world.gather(3) == [3]
    assert world.from_leader("x") == "x"
    world.wait()
    world.say("hello")
    World(1, 2, torch.device("cpu")).say("not me")
    assert capsys.readouterr().out == "hello\n"
