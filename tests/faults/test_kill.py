"""Scripts killed at random moments leave whole files, and go on."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import label
from datasets.pairs import UNFINISHED, index_pairs
from tests.helpers.faults import assert_only_whole_files
from tests.helpers.image_files import files_below
from tests.helpers.one_date_scenes import IGNORED, single_date_set
from tests.helpers.processes import LIMIT_S, ended, eventually, start_script
from tests.helpers.runs import latest_file, options, train_options
from tools import check_data, compose_pairs, make_sample_data
from utils.errors import DataError, OptionError
from utils.tensor_files import read_checkpoint


def kill_at_random(
    moments: int,
    script: str,
    argv: list[str],
    folder: Path,
    longest_s: float,
    prepare: Callable | None = None,
) -> int:
    """Kill a script that writes to ``out``; return how often it was still running."""
    draw, killed, marker = random.Random(0), 0, folder / "out" / UNFINISHED
    for moment in range(moments):
        with ended(start_script(script, argv, folder / f"{script}{moment}", prepare)) as child:
            eventually(lambda child=child: child.out or marker.exists(), LIMIT_S, 0.01)
            time.sleep(draw.uniform(0, longest_s))
            if child.poll() is None:
                child.send(signal.SIGKILL)
            status = child.wait()
            killed += status == -signal.SIGKILL
            assert status in (0, -signal.SIGKILL), child.err
        if "/" not in script:
            assert_only_whole_files(folder / "out")
    return killed


def slow_masks() -> None:
    """Leave time to kill a process between two masks."""
    replace = os.replace

    def slow(*paths: object) -> None:
        time.sleep(0.2)
        replace(*paths)

    os.replace = slow


MOMENTS = [3, pytest.param(30, marks=pytest.mark.slow)]


@pytest.mark.parametrize("moments", MOMENTS)
def test_training_killed_at_random_moments(moments, sample_root, tmp_path):
    outdir = tmp_path / "out"
    argv = train_options(
        sample_root, outdir, "--epochs", 1000, "--checkpoint-every", 1, "--workers", 1, "--resume"
    )
    assert kill_at_random(moments, "train.py", argv, tmp_path, 2) == moments

    def position() -> tuple[int, int]:
        if not latest_file(outdir).exists():
            return 0, 0
        state = read_checkpoint(latest_file(outdir))["training"]
        return state["epoch"], state["step"]

    before = position()
    with ended(start_script("train.py", argv, tmp_path / "last")) as child:
        eventually(lambda: position() > before, LIMIT_S)
        assert ("resuming" in child.out) == (before > (0, 0))
        child.send(signal.SIGKILL)
    assert_only_whole_files(outdir)


@pytest.mark.parametrize("moments", MOMENTS)
def test_labelling_killed_at_random_moments(moments, fcn_run, sample_root, tmp_path):
    whole, outdir = tmp_path / "whole", tmp_path / "out"
    more = ("--checkpoints", fcn_run.best, "--test-batch-size", 1)
    label.main(options(sample_root, whole, *more))
    argv = options(sample_root, outdir, *more)
    assert kill_at_random(moments, "label.py", argv, tmp_path, 1, slow_masks) > 0
    label.main(argv)
    masks = [
        {path.relative_to(d): path.read_bytes() for path in d.rglob("*.png")}
        for d in (outdir, whole)
    ]
    assert len(masks[0]) == 24
    assert masks[0] == masks[1]


@pytest.mark.parametrize(
    "tool",
    [
        compose_pairs,
        *(pytest.param(t, marks=pytest.mark.slow) for t in (check_data, make_sample_data)),
    ],
)
def test_tools_killed_go_on_with_the_same_command(tool, sample_root, tmp_path):
    """Until then what they have left is read by nobody, and other work is refused there."""
    city = single_date_set(tmp_path / "city")
    few = ["--train-pairs", 8, "--val-pairs", 4, "--size", 64]
    source = ["--images", city / "images", "--masks", city / "masks", "--ignore", IGNORED]
    argv, other = {
        check_data: ([sample_root, "--outdir", tmp_path / "check"], ["--unchanged-where-equal"]),
        compose_pairs: ([*source, *few], []),
        make_sample_data: (few, ["--label-format", "index"]),
    }[tool]
    out = "--convert" if tool is check_data else "--out"
    argv = [str(part) for part in [*argv, "--workers", 1, out]]
    name = f"tools/{Path(tool.__file__).name}"
    whole, killed = str(tmp_path / "whole"), tmp_path / "out"
    tool.main([*argv, whole])
    assert kill_at_random(1, name, [*argv, str(killed)], tmp_path, 2, slow_masks) == 1
    with pytest.raises(DataError, match=r"out: not finished; .* give its command again"):
        index_pairs(killed / "train")
    with pytest.raises(OptionError, match="begun with another"):
        tool.main([*argv, str(killed), *(other or ["--seed", "1"])])
    made = {path: path.stat().st_mtime_ns for path in killed.glob("train/im1/*.png")}
    tool.main([*argv, str(killed)])
    assert files_below(killed) == files_below(Path(whole))
    kept = [path for path, time in made.items() if path.stat().st_mtime_ns == time]
    assert len(kept) >= len(made) - 1
