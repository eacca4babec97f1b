"""Processes agree on what is to be done, though each may see another state of the file system."""

import json
from pathlib import Path

from engine import run as run_files
from engine.run import RunFiles, find_resume
from tests.helpers.processes import run_ranks
from utils import dist
from utils.dist import join_world
from utils.errors import UserError
from utils.tensor_files import save_checkpoint


def write_resumed(rank: int, folder: Path, cases: list[tuple]) -> None:
    """Write what each process resumes from; a case has the step of the latest that each sees."""
    run_files.check_resumable = lambda *_: None
    dist.PEER_GRACE_S = 0
    found = []
    try:
        with join_world("cpu") as world:
            for number, steps in enumerate(cases):
                files = RunFiles(folder / f"node{rank}" / str(number), "fcn_x")
                if steps[rank] is not None:
                    training = {"epoch": 1, "step": steps[rank]}
                    state = {"run": "x", "model": {}, "best_file": None, "training": training}
                    save_checkpoint(files.latest, state)
                found.append(resumed_step(files, world))
    except UserError as error:
        found.append(str(error))
    (folder / f"{rank}.json").write_text(json.dumps(found))


def resumed_step(files: RunFiles, world: dist.World) -> int | str | None:
    try:
        saved = find_resume("auto", files, {}, {}, world)
        return saved and saved["training"]["step"]
    except UserError as error:
        if world.size > 1 and "not the same file" not in str(error):
            raise
        return str(error)


def test_the_leading_process_decides_whether_there_is_something_to_resume(tmp_path):
    run_ranks(2, tmp_path, write_resumed, tmp_path, [(2, 2), (None, 2), (None, None), (2, 3)])
    for rank in range(2):
        *same, last = json.loads((tmp_path / f"{rank}.json").read_text())
        assert same == [2, None, None]
        assert last.endswith("not the same file on all nodes; share it, or start again")


def test_a_checkpoint_that_one_process_cannot_see_is_an_error_of_it_alone(tmp_path):
    run_ranks(2, tmp_path, write_resumed, tmp_path, [(2, None)])
    (leading,), (other,) = (json.loads((tmp_path / f"{r}.json").read_text()) for r in range(2))
    assert other.startswith(f"{tmp_path / 'node1'}")
    assert leading.startswith("lost contact with another process")
