"""tools/study.py but for its processes: the study file, shared stages, evidence, tables."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.classes import SECOND_CLASSES
from datasets.labels import read_label
from tests.conftest import write_sample
from tests.helpers.pages import assert_files_exist, commands, load, read_page
from tests.helpers.processes import REPO
from tools import report, study
from tools.studying import evidence
from tools.studying.counts import CONFIRM, SCREEN, ScoredSet
from tools.studying.plan import KEYS, read_plan
from tools.studying.runner import find_slots
from tools.studying.stages import Cell, find_cells
from tools.studying.study import Study
from tools.studying.summary import summarise
from utils.errors import DataError, OptionError, UserError
from utils.files import read_json, write_json
from utils.machine import core_limit

STUDY = """
question = "Does it help?"
seeds = "0-1"
train = "--model fcn --epochs 2"
[data]
scenes = "{data}"
[arms]
plain = [{{ train = "" }}]
recipe = [
  {{ name = "a", train = "" }},
  {{ name = "vote", label = "--checkpoints {{a.best}}" }},
  {{ train = "--use-pseudo-label --pseudo-label-root {{vote.masks}}" }},
]
both = [
  {{ name = "a", train = "" }},
  {{ test = "--tta --checkpoints {{a}}" }},
]
[compare]
recipe = "plain"
"""


def write_study(folder: Path, *changes: tuple[str, str], data: object = "data/dataset") -> Path:
    text = STUDY.format(data=data)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path = folder / "study.toml"
    path.write_text(text, encoding="utf-8")
    return path


# --- the file -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((REPO / "studies").glob("*.toml")), ids=lambda p: p.stem)
def test_studies_of_the_repository_can_be_run(path):
    plan = read_plan(path)
    assert plan.compare and plan.seeds and plan.question


def test_the_page_has_every_key_and_commands_that_are_accepted():
    page = read_page("docs/studies.md")
    rows = "\n".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`\[?(\w+)", rows)) == set(KEYS)
    for tool, *arguments in commands(page):
        load(tool).parse_args(arguments)
    assert_files_exist(page)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('question = "Does it help?"', "", "question is missing or empty; a study says it before"),
        ('seeds = "0-1"', 'seeds = "4-1"', "'4-1' has an empty range"),
        ('seeds = "0-1"', "seeds = 3", "seeds has to be text"),
        ('seeds = "0-1"', 'seeds = "0-1"\nscore = "iou"', "score iou: choose from score, miou"),
        ('seeds = "0-1"', 'seeds = "0-1"\nrepeat = 3', "unknown key repeat; there are question"),
        ('seeds = "0-1"', "seeds = ", "cannot be read as TOML"),
        ("--epochs 2", "--epoch 2", "arm plain: train.py: unknown option --epoch; did you mean"),
        ("--epochs 2", "--epochs 0", "train.py: argument --epochs: '0' is not a whole number"),
        ("--epochs 2", "--seed 2", "arm plain: stage 1: --seed: leave it to the study"),
        ("--epochs 2", "--name 'x", "arm plain: stage 1: No closing quotation"),
        ('{ train = "" }', '{ trian = "" }', 'stage 1: has to be { train = "options", name'),
        ('{ train = "" }', '{ name = "test", train = "" }', "another stage is called test"),
        ("{a.best}", "{b.best}", "arm recipe: stage 2: {b}: no stage before it is called so"),
        ("{a.best}", "{a}", "stage 2: {a}: it may be {a.best} or {a.last}"),
        ("{vote.masks}", "{vote.best}", "stage 3: {vote.best}: it may be {vote.masks}"),
        ("{a}", "{a.best}", "arm both: stage 2: names no {stage}, which is its best and its last"),
        ('recipe = "plain"', 'recipe = "plane"', "compare: recipe = 'plane': name two different"),
        ('seeds = "0-1"', 'seeds = "0-1"\nconfirm = ["both"]', "'both' is compared with nothing"),
        ("data/dataset", "--pairs 3", "data scenes: make_sample_data.py: unknown option --pairs"),
    ],
)
def test_mistakes_are_named_in_one_line(old, new, said, tmp_path):
    path = write_study(tmp_path, (old, new))
    with pytest.raises(OptionError) as error:
        read_plan(path)
    assert str(error.value).startswith(f"{path}: ") and said in str(error.value)
    assert "\n" not in str(error.value)


def test_seeds_on_the_command_line(capsys):
    assert study.parse_args(["a.toml", "--seeds", "0-2,7"]).seeds == (0, 1, 2, 7)
    with pytest.raises(SystemExit):
        study.parse_args(["a.toml", "--seeds", "two"])
    assert "is no list of numbers; write 0-4 or 0,1,5" in capsys.readouterr().err


# --- stages ---------------------------------------------------------------------------------


def cells_of(path: Path, root: Path, folder: Path) -> dict:
    cells = find_cells(read_plan(path), {"scenes": root}, [0, 1], folder)
    return {(cell.arm, cell.seed): cell for cell in cells}


def test_equal_stages_run_once_and_others_do_not(sample_root, tmp_path):
    cells = cells_of(write_study(tmp_path), sample_root, tmp_path)
    plain, recipe, both = (cells[arm, 0] for arm in ("plain", "recipe", "both"))
    assert plain.stages[0] == recipe.stages[0] == both.stages[0]
    assert plain.tests["best"] != both.tests["best"] != both.tests["last"]
    assert plain.stages[0] != cells["plain", 1].stages[0] != recipe.stages[2]
    assert len({stage for cell in cells.values() for stage in cell.needs}) == 2 * (3 + 3 * 2)
    assert [stage.script for stage in recipe.needs] == ["train", "label", "train", "test", "test"]
    assert recipe.stages[1].inputs == recipe.stages[:1]


def test_a_digest_knows_options_inputs_and_data_but_not_where_they_are(sample_root, tmp_path):
    first = cells_of(write_study(tmp_path), sample_root, tmp_path)["recipe", 0]
    same = cells_of(write_study(tmp_path), sample_root, tmp_path / "other")["recipe", 0]
    assert [stage.digest for stage in first.needs] == [stage.digest for stage in same.needs]
    longer = write_study(tmp_path, ("--epochs 2", "--epochs 3"))
    fewer = write_sample(tmp_path / "fewer", pairs=(11, 4))
    for changed in (
        cells_of(longer, sample_root, tmp_path)["recipe", 0],
        cells_of(write_study(tmp_path), fewer, tmp_path)["recipe", 0],
    ):
        assert not {s.digest for s in first.needs} & {s.digest for s in changed.needs}


def test_an_epoch_is_chosen_on_other_pairs_than_those_that_are_scored(sample_root, tmp_path):
    stage = cells_of(write_study(tmp_path), sample_root, tmp_path)["plain", 0].stages[0]
    assert "--split random --val-fraction 0.1" in " ".join(stage.options)
    folds = write_study(tmp_path, ("--epochs 2", "--split k-fold --fold 0"))
    stage = cells_of(folds, sample_root, tmp_path)["plain", 0].stages[0]
    assert "random" not in stage.options
    halves = ScoredSet.open(sample_root, divide=True).subsets
    assert sorted([*halves[SCREEN], *halves[CONFIRM]]) == [f"{i:05d}" for i in range(4)]
    assert len(halves[SCREEN]) == len(halves[CONFIRM]) == 2


def test_cores_and_gpus_are_divided(monkeypatch):
    slots = find_slots(3)
    assert len(slots) == 3 and {slot.gpu for slot in slots} == {""}
    assert {slot.threads for slot in slots} == {max(1, int(core_limit() / 3))}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    slots = find_slots(None)
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["4", "7"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [slot.gpu for slot in find_slots(3)] == ["0", "1", "0"]


# --- evidence -------------------------------------------------------------------------------


def tallies(rng, skill: float, seeds: int, spread: float, images: int = 30) -> np.ndarray:
    """(S, 3, n, 2) tallies of change masks, of images that are easy or hard for every seed."""
    hard = np.random.default_rng(5).normal(0, 0.7, images)
    found = []
    for _ in range(seeds):
        p = 1 / (1 + np.exp(-(skill + rng.normal(0, spread) + hard)))
        right, wrong = rng.binomial(200, p), rng.binomial(800, 0.2 * (1 - p))
        label = np.stack([np.full(images, 800), np.full(images, 200)], axis=1)
        prediction = np.stack([1000 - right - wrong, right + wrong], axis=1)
        found.append(np.stack([label, prediction, np.stack([800 - wrong, right], axis=1)]))
    return np.stack(found)


def test_a_clear_difference_is_proven_and_its_interval_holds_it():
    rng = np.random.default_rng(0)
    arm, baseline = tallies(rng, 1.3, 5, 0.05), tallies(rng, 1.0, 5, 0.05)
    many = [tallies(rng, skill, 40, 0.05) for skill in (1.3, 1.0)]
    truth = evidence.compare(*many, "f1")["value"]
    found = evidence.compare(arm, baseline, "f1")
    assert 0 < found["low"] < truth < found["high"]
    assert found["paired_p"] < 0.01 and found["welch_p"] < 0.01
    assert evidence.verdict([found, found], 5) == evidence.PROVEN
    turned = evidence.compare(baseline, arm, "f1")
    assert turned["value"] == -found["value"]
    assert evidence.verdict([turned, turned], 5) == evidence.WORSE


@pytest.mark.parametrize("spread", [0.05, 0.5])
def test_equal_arms_are_seldom_told_apart(spread):
    rng, hits = np.random.default_rng(1), 0
    for _ in range(20):
        found = evidence.compare(*(tallies(rng, 1.0, 4, spread, 12) for _ in "ab"), "f1")
        hits += not found["low"] < 0 < found["high"]
    assert hits <= 3  # a right interval does it in 1 of 20; one without the widening in 3


def test_few_images_widen_an_interval_that_seeds_alone_would_close():
    rng = np.random.default_rng(2)
    one = tallies(rng, 1.3, 1, 0), tallies(rng, 1.0, 1, 0)
    copies = [np.repeat(each, 4, axis=0) for each in one]
    few = evidence.compare(*(each[:, :, :4] for each in copies), "f1")
    assert few["low"] < few["value"] < few["high"]
    assert few["paired_p"] is None or few["paired_p"] < 1e-6  # all seeds agree
    alone = evidence.compare(*one, "f1")
    assert alone["low"] is alone["paired_p"] is None


def test_a_verdict_needs_three_seeds_and_both_epochs():
    above, around = {"low": 0.1, "high": 2.0}, {"low": -0.1, "high": 2.0}
    below = {"low": -2.0, "high": -0.1}
    assert evidence.verdict([above, above], 3) == evidence.PROVEN
    assert evidence.verdict([above, above], 2) == evidence.NOT_SHOWN
    assert evidence.verdict([above, around], 5) == evidence.NOT_SHOWN
    assert evidence.verdict([above, below], 5) == evidence.NOT_SHOWN
    assert evidence.verdict([{"low": None, "high": None}] * 2, 1) == evidence.NOT_SHOWN


# --- results and summary --------------------------------------------------------------------


def finish_stages(cells: list[Cell], code: str = "a") -> None:
    """Leave what finished stages do; of an arm's masks some first rows are wrong."""
    for cell in cells:
        for stage in cell.needs:
            seconds = {f"{stage.script}_s": 2.0}
            record = {"seconds": seconds, "commit": f"c{code}", "code": code}
            write_json(stage.folder / "stage.json", record)
        for test in cell.tests.values():
            for date in (1, 2):
                for path in (stage.data / "val" / f"label{date}").iterdir():
                    mask = read_label(path, SECOND_CLASSES).copy()
                    mask[: ROWS[cell.arm] + cell.seed] = 6
                    out = test.folder / "masks" / "test" / f"im{date}" / path.name
                    out.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(mask).save(out)


ROWS = {"plain": 20, "recipe": 9, "both": 21}


@pytest.fixture
def finished(tmp_path) -> Study:
    root = write_sample(tmp_path / "root", pairs=(2, 16))
    path = write_study(tmp_path, ('"0-1"', '"0-2"\nconfirm = ["recipe"]'), data=root)
    study = Study(read_plan(path), tmp_path / "out", [0, 1, 2])
    finish_stages(study.cells)
    study.collect(study.cells)
    study.write()
    return study


def test_the_summary_judges_on_the_confirming_half(finished, capsys):
    summary = read_json(finished.folder / "summary.json")
    (found,) = summary["comparisons"]
    assert (found["subset"], found["seeds"]) == ("confirm", [0, 1, 2])
    assert found["verdict"] == "proven" and found["last"]["value"] > found["last"]["low"] > 0
    means = {(a["arm"], a["subset"]): a["last"]["score"]["mean"] for a in summary["arms"]}
    expected = means["recipe", "confirm"] - means["plain", "confirm"]
    assert found["best"]["value"] == pytest.approx(expected)
    assert ("both", "confirm") not in means  # nobody looked
    assert not list((finished.folder / "counts" / "confirm").glob("*both*"))
    with (finished.folder / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 * (2 + 2 + 1)
    assert [row["train_s"] for row in rows[:6:4]] == ["2.0", "4.0"]
    for name, sign in (("summary.md", "| ---: |"), ("summary.tex", r"\begin{tabular}")):
        text = (finished.folder / name).read_text(encoding="utf-8")
        assert sign in text and "proven" in text and "Does it help?" in text and "commit ca" in text


def test_nothing_is_proven_before_the_last_seed(finished):
    plan = replace(finished.plan, seeds=(0, 1, 2, 3))
    (found,) = summarise(plan, list(finished.results.values()), [])["comparisons"]
    assert found["last"]["low"] > 0 and found["verdict"] == "not shown"


def test_a_report_shows_a_study(finished, capsys):
    page = report.main([str(finished.folder)]).read_text(encoding="utf-8")
    assert "Does it help?" in page and ">proven<" in page
    assert "0 runs, study study" in capsys.readouterr().out
    table = report.main([str(finished.folder), "--format", "md"]).read_text(encoding="utf-8")
    assert "recipe − plain (scenes, confirming half)" in table
    (finished.folder / "summary.json").write_text("{}")
    with pytest.raises(DataError, match="no summary of a study"):
        report.main([str(finished.folder)])


def test_what_would_spoil_a_study_is_said(finished, tmp_path, capsys):
    """More seeds than asked for, a changed question, other code; a changed arm is not confirmed."""
    text = finished.plan.text.replace("Does it help?", "Does it harm?")
    (tmp_path / "study.toml").write_text(text, encoding="utf-8")
    plan = read_plan(tmp_path / "study.toml")
    later = Study(plan, finished.folder, [0, 3])
    finish_stages([cell for cell in later.cells if cell.seed == 3], code="b")
    later.collect(later.cells)
    later.write()
    notes = "\n".join(read_json(finished.folder / "summary.json")["notes"])
    assert "seeds beyond those of the study's file: 3" in notes and "CHANGED" in notes
    assert "MIXED CODE" in notes and "commit ca cb" in notes
    changed = text.replace("--epochs 2", "--epochs 3")
    (tmp_path / "study.toml").write_text(changed, encoding="utf-8")
    with pytest.raises(UserError, match=r"plain\.0\.npz: arm plain was confirmed .* name"):
        Study(read_plan(tmp_path / "study.toml"), finished.folder, [0])
