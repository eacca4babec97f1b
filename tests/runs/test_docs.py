"""docs/scaling.md: commands are accepted, files and tests exist, the arithmetic is right."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from torch.distributed.run import get_args_parser

from models.change_detector import ModelConfig, build_model
from tests.helpers.pages import (
    SCRIPTS,
    assert_accepted,
    assert_files_exist,
    commands,
    load,
    read_page,
)
from tests.helpers.processes import REPO, eventually

DOC = read_page("docs/scaling.md")
SBATCH = REPO / "tools" / "slurm" / "train.sbatch"


def test_every_command_is_accepted(tmp_path):
    assert len(commands(DOC)) >= 8
    for script, *arguments in commands(DOC):
        assert_accepted("train.py" if "sbatch" in script else script, arguments, tmp_path)


def test_every_option_in_the_text_exists(capsys):
    known = {"--max-restarts", "--signals-to-handle", "--signal"}  # torchrun's
    for script in SCRIPTS:
        with pytest.raises(SystemExit):
            load(script).main(["--help"])
        known |= set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    assert set(re.findall(r"`(--[a-z][a-z-]+)", DOC)) <= known


def test_every_named_file_and_test_exists():
    assert_files_exist(DOC)
    named = re.findall(r"`(\w+/test_\w+\.py)::(\w+)`", DOC)
    assert len(named) >= 20
    for file, name in named:
        assert f"def {name}(" in read_page(f"tests/{file}"), f"{file}::{name}"


@pytest.mark.parametrize(
    ("model", "backbone", "lightweight"),
    [("pspnet", "hrnet_w18", True), ("pspnet", "hrnet_w48", False)],
)
def test_sizes_of_checkpoints(model, backbone, lightweight):
    with torch.device("meta"):
        built = build_model(ModelConfig(model, backbone, lightweight))
    count = sum(parameter.numel() for parameter in built.parameters())
    name = f"{model}, {backbone}" + (", lightweight" if lightweight else "")
    best, latest = (round(size * count / 1e6) for size in (4, 12))
    assert f"| {name} | {count:,} | {best} MB | {latest} MB |" in DOC
    if backbone == "hrnet_w48":  # both dates of a scene, at stride 4
        features = 2 * (10**4 // 4) ** 2 * built.encoder.out_channels
        assert f"Scenes of 10⁴ × 10⁴ take {gb(features)} of features with hrnet_w48" in WORDS


WORDS = " ".join(DOC.split())
PAIRS = 10**6


def gb(count: float, size: int = 4) -> str:
    return f"{count * size / 1e9:.2g} GB"


def test_arithmetic():
    decoded = 512**2 * (2 * 3 + 2 * 1)
    processes = 8 * (1 + 8)
    for text in (
        f"| 49 µs *M* local, 1 ms network; every process | {49e-6 * PAIRS:.0f} s; "
        f"{1e-3 * PAIRS / 60:.0f} min |",
        f"= {decoded / 1e6:.1f} MB per pair | {decoded * PAIRS / 1e12:.1f} TB |",
        f"| 1,180 B *M* per pair and process; readers get copies as they count references | "
        f"{gb(PAIRS, 1180)}; 8 GPUs × (1 + 8 readers): {gb(processes * PAIRS, 1180)} |",
        f"512 GB of memory hold the decoded files of {round(512e9 / decoded, -3):,.0f} pairs",
        f"reads 10⁶ headers, {1e-3 * PAIRS / 60:.0f} minutes",
        f"256 GB of memory are full at {256e9 / (1180 * processes) / 1e6:.0f} million pairs with "
        f"{processes} processes",
        f"`--crop-size 512` decodes {gb(10**8, 8)} to use {decoded / 1e6:.1f} MB of it, "
        f"{100 * 512**2 / 10**8:.2f} %",
    ):
        assert text in WORDS, text


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
    assert words[script + 1 :] == ["--resume", "--epochs", "3"]
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
