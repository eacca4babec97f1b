"""Training under torchrun: two agents, restarts, signals."""

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import train
from tests.helpers.processes import (
    REPO,
    SECONDS_TO_END,
    eventually,
    free_port,
    processes_with,
    workers_of,
)
from tests.helpers.runs import best_files, csv_rows, latest_file, train_options
from utils.tensor_files import read_checkpoint


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


@dataclasses.dataclass(frozen=True)
class TwoNodes:
    """Two agents with one process each, as on two machines."""

    agents: list[subprocess.Popen]
    folders: list[Path]

    def end_well(self) -> None:
        for agent, folder in zip(self.agents, self.folders, strict=True):
            assert agent.wait(240) == 0, (folder / "stderr").read_text()

    @property
    def printed(self) -> str:
        return "".join((folder / "stdout").read_text() for folder in self.folders)


@pytest.fixture
def start_two_nodes(sample_root, tmp_path) -> Iterator[Callable[..., TwoNodes]]:
    """Start training into ``out``."""
    agents = []

    def start(options: tuple[object, ...] = (), more: tuple[str, ...] = ()) -> TwoNodes:
        port, argv = free_port(), train_options(sample_root, tmp_path / "out", *options)
        folders = [tmp_path / f"node{i}" for i in range(2)]
        agents.extend(start_agent(port, argv, folder, 2, 1, *more) for folder in folders)
        return TwoNodes(agents, folders)

    yield start
    for agent in agents:
        if agent.poll() is None:
            os.killpg(agent.pid, signal.SIGSTOP)
            for process in workers_of(agent):  # they are in groups of their own
                os.kill(process, signal.SIGKILL)
            os.killpg(agent.pid, signal.SIGKILL)


def test_two_agents_train_together(start_two_nodes, tmp_path):
    nodes, outdir = start_two_nodes(), tmp_path / "out"
    nodes.end_well()
    assert nodes.printed.count("epoch 1/1") == 1
    assert "2 × cpu" in nodes.printed
    assert len(best_files(outdir)) == 1
    state = read_checkpoint(latest_file(outdir))
    assert len(state["training"]["rng"]) == 2
    assert [row["epoch"] for row in csv_rows(outdir)] == ["1"]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_all_nodes_restart_when_a_process_of_one_is_killed(killed, start_two_nodes, tmp_path):
    # The agent of the other node does not count this as a failure: its process was only cut off.
    options = ("--epochs", 6, "--checkpoint-every", 1, "--resume")
    nodes = start_two_nodes(options, ("--max-restarts", "3"))
    eventually(latest_file(tmp_path / "out").exists, 120)
    (process,) = workers_of(nodes.agents[killed])
    os.kill(process, signal.SIGKILL)
    nodes.end_well()
    assert nodes.printed.count("resuming ") == 1
    assert [row["epoch"] for row in csv_rows(tmp_path / "out")] == list("123456")
    assert len(best_files(tmp_path / "out")) == 1


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
