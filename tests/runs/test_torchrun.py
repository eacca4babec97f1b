"""Training under torchrun: two agents, restarts, signals."""

import contextlib
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


@dataclasses.dataclass(frozen=True)
class Agent:
    """torchrun on one machine."""

    process: subprocess.Popen
    folder: Path

    def end_well(self) -> None:
        assert self.process.wait(240) == 0, self.printed("stderr")

    def printed(self, name: str = "stdout") -> str:
        return (self.folder / name).read_text()


@pytest.fixture
def start_agents(sample_root, tmp_path) -> Iterator[Callable[..., list[Agent]]]:
    """Start agents that train into ``out`` together; ``more`` are options of theirs."""
    agents: list[Agent] = []

    def start(nodes: int, processes: int, options: tuple = (), more: str = "") -> list[Agent]:
        endpoint = f"--rdzv-backend c10d --rdzv-id x --rdzv-endpoint 127.0.0.1:{free_port()}"
        launch = f"--nnodes {nodes} --nproc-per-node {processes} --local-addr 127.0.0.1 {more}"
        command = [sys.executable, "-m", "torch.distributed.run", *endpoint.split()]
        command += [*launch.split(), "train.py"]
        command += train_options(sample_root, tmp_path / "out", *options)
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        for folder in (tmp_path / f"node{i}" for i in range(nodes)):
            folder.mkdir()
            with (folder / "stdout").open("w") as out, (folder / "stderr").open("w") as err:
                process = subprocess.Popen(
                    command, cwd=REPO, stdout=out, stderr=err, env=env, start_new_session=True
                )
            agents.append(Agent(process, folder))
        return agents

    yield start
    for agent in agents:
        if agent.process.poll() is None:
            os.killpg(agent.process.pid, signal.SIGSTOP)
            for process in workers_of(agent.process):  # they are in groups of their own
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            os.killpg(agent.process.pid, signal.SIGKILL)


SIX_EPOCHS = ("--epochs", 6, "--checkpoint-every", 1, "--resume")


def test_two_agents_train_together(start_agents, tmp_path):
    agents, outdir = start_agents(2, 1), tmp_path / "out"
    for agent in agents:
        agent.end_well()
    printed = "".join(agent.printed() for agent in agents)
    assert printed.count("epoch 1/1") == 1
    assert "2 × cpu" in printed
    assert len(best_files(outdir)) == 1
    assert len(read_checkpoint(latest_file(outdir))["training"]["rng"]) == 2
    assert [row["epoch"] for row in csv_rows(outdir)] == ["1"]


@pytest.mark.slow
def test_all_processes_restart_when_one_is_killed(start_agents, tmp_path):
    agents = start_agents(1, 2, SIX_EPOCHS, "--max-restarts 3")
    eventually(latest_file(tmp_path / "out").exists, 120)
    workers = [process for agent in agents for process in workers_of(agent.process)]
    os.kill(workers[1], signal.SIGKILL)
    for agent in agents:
        agent.end_well()
    assert "".join(agent.printed() for agent in agents).count("resuming ") == 1
    assert [row["epoch"] for row in csv_rows(tmp_path / "out")] == list("123456")
    assert len(best_files(tmp_path / "out")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_torchrun_saves(number, start_agents, sample_root, tmp_path):
    more = "--max-restarts 2 --signals-to-handle SIGTERM,SIGINT,SIGUSR1"
    (agent,) = start_agents(1, 2, SIX_EPOCHS, more)
    eventually(latest_file(tmp_path / "out").exists, 120)
    agent.process.send_signal(number)
    assert agent.process.wait(60) != 0
    assert "asked to end in epoch" in agent.printed("stderr")
    state = read_checkpoint(latest_file(tmp_path / "out"))["training"]
    assert (state["epoch"], state["step"]) < (6, 3)
    eventually(lambda: processes_with(str(tmp_path / "out")) == [], SECONDS_TO_END)
    train.main(train_options(sample_root, tmp_path / "out", "--epochs", 6, "--resume"))
    assert len(csv_rows(tmp_path / "out")) == 6
