"""docs/scaling.md: commands are accepted, files and tests exist, the arithmetic is right."""

import os
import re
import shlex
import signal
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch.distributed.run import get_args_parser

from engine.config import LabelConfig, TestConfig, TrainConfig
from models.change_detector import ModelConfig, build_model
from tests.helpers.processes import eventually
from utils.cli import parse

REPO = Path(__file__).resolve().parents[2]
DOC = (REPO / "docs" / "scaling.md").read_text(encoding="utf-8")
SCRIPTS = {"train.py": TrainConfig, "label.py": LabelConfig, "test.py": TestConfig}
FEATURES = {"hrnet_w18": 270, "hrnet_w48": 720}  # channels that an encoder returns
SBATCH = REPO / "tools" / "slurm" / "train.sbatch"


def commands() -> list[list[str]]:
    """The words of each line of the document's shell blocks, from the script's name on."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", DOC, flags=re.DOTALL):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            first = [i for i, word in enumerate(words) if word in SCRIPTS or "sbatch" in word[1:]]
            assert first, line
            found.append(words[first[-1] :])
    return found


def test_every_command_is_accepted():
    assert len(commands()) >= 8
    for script, *arguments in commands():
        name = "train.py" if script.endswith(".sbatch") else script
        parse(SCRIPTS[name], arguments)


def test_every_option_in_the_text_exists():
    names = {field.name for config in SCRIPTS.values() for field in fields(config)}
    known = {f"--{name.replace('_', '-')}" for name in names}
    torchrun = {"--max-restarts", "--signals-to-handle", "--signal"}
    for option in re.findall(r"`(--[a-z][a-z-]+)", DOC):
        assert option in known | torchrun, option


def test_every_named_file_exists():
    for name in re.findall(r"(?:tools|docs|tests|utils)/[\w./]+\.\w+", DOC):
        assert (REPO / name).exists(), name


def test_every_named_test_exists():
    named = re.findall(r"`(\w+/test_\w+\.py)::(\w+)`", DOC)
    assert len(named) >= 20
    for file, name in named:
        text = (REPO / "tests" / file).read_text(encoding="utf-8")
        assert f"def {name}(" in text, f"{file}::{name}"


@pytest.mark.parametrize(
    ("model", "backbone", "lightweight"),
    [
        ("pspnet", "hrnet_w18", True),
        ("pspnet", "hrnet_w48", False),
    ],
)
def test_sizes_of_checkpoints(model, backbone, lightweight):
    with torch.device("meta"):
        built = build_model(ModelConfig(model, backbone, lightweight))
    count = sum(parameter.numel() for parameter in built.parameters())
    name = f"{model}, {backbone}" + (", lightweight" if lightweight else "")
    best, latest = (round(size * count / 1e6) for size in (4, 12))
    assert f"| {name} | {count:,} | {best} MB | {latest} MB |" in DOC
    assert built.encoder.out_channels == FEATURES[backbone]


def test_arithmetic():
    words, pairs, processes = " ".join(DOC.split()), 10**6, 8 * (1 + 8)
    decoded = 512**2 * (2 * 3 + 2 * 1)
    lists, features = 1180 * processes * pairs, 2 * 2500**2 * FEATURES["hrnet_w48"] * 4
    for text in (
        f"| {49e-6 * pairs:.0f} s; {1e-3 * pairs / 60:.0f} min |",
        f"= {decoded / 1e6:.1f} MB per pair | {decoded * pairs / 1e12:.1f} TB |",
        f"| 1.2 GB; 8 GPUs × (1 + 8 readers): {lists / 1e9:.0f} GB |",
        f"512 GB of memory hold the decoded files of {round(512e9 / decoded, -3):,.0f} pairs",
        f"reads 10⁶ headers, {1e-3 * pairs / 60:.0f} minutes",
        f"are full at {256e9 * pairs / lists / 1e6:.0f} million pairs with {processes} processes",
        f"Scenes of 10⁴ × 10⁴ take {features / 1e9:.0f} GB of features with hrnet_w48",
        f"decodes {8 * 10**8 / 1e9:.1f} GB to use {512**2 * 8 / 1e6:.1f} MB of it, "
        f"{100 * 512**2 / 10**8:.2f} %",
    ):
        assert text in words, text


# --- the Slurm script, with stand-ins for Slurm's commands ----------------------------------


def write_command(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
    path.chmod(0o755)


def start_job(folder: Path, srun: str) -> subprocess.Popen:
    write_command(folder, "srun", f'echo "$@" > {folder}/srun.log\n{srun}')
    shows = '[ "$1" = show ] && echo node1 && echo node2'
    requeues = f'[ "$1" = requeue ] && echo $2 > {folder}/requeued'
    write_command(folder, "scontrol", f"{shows}\n{requeues}")
    env = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_CPUS_PER_TASK": "24",
        "SLURM_JOB_ID": "7",
    }
    return subprocess.Popen(["bash", SBATCH, "--epochs", "3"], env=env, cwd=REPO)


@pytest.mark.parametrize("status", [0, 2])
def test_a_job_ends_as_its_step_does(status, tmp_path):
    assert start_job(tmp_path, f"exit {status}").wait(30) == status
    assert not (tmp_path / "requeued").exists()
    words = (tmp_path / "srun.log").read_text().split()
    assert "--cpus-per-task=24" in words[: words.index("torchrun")]
    script = words.index("train.py")
    args = parse(TrainConfig, words[script + 1 :])
    assert args.resume == "auto" and args.epochs == 3
    launcher = words[words.index("torchrun") + 1 : script]
    taken = get_args_parser().parse_args([*launcher, "train.py"])
    assert (taken.nnodes, taken.nproc_per_node, taken.rdzv_backend) == ("2", "4", "c10d")
    assert taken.rdzv_endpoint == "node1:20007"
    assert "SIGUSR1" in taken.signals_to_handle


def test_a_job_near_its_limit_goes_back_into_the_queue(tmp_path):
    step = f"trap 'sleep 0.5; touch {tmp_path}/saved; exit 1' USR1\ntouch {tmp_path}/runs\n"
    job = start_job(tmp_path, step + "while true; do sleep 0.05; done")
    try:
        eventually((tmp_path / "runs").exists, 30)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(30) == 0
    finally:
        job.kill()
    assert (tmp_path / "saved").exists()  # it waited for the step to end
    assert (tmp_path / "requeued").read_text() == "7\n"
