import csv
import json
import re
import shutil
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.classes import SECOND_CLASSES
from datasets.labels import read_label
from datasets.splits import Split, k_fold
from tests.helpers.reports import COLUMNS, write_masks, write_run
from tools import demo, report, score
from tools.reporting.gallery import mask_step
from tools.reporting.runs import find_run_folders, read_run
from tools.scoring.tables import percent
from utils.errors import UserError
from utils.tensor_files import save_checkpoint

WORST_FIRST = ["00002", "00000", "00003", "00001"]


@pytest.fixture(scope="module")
def outdir(sample_root, tmp_path_factory) -> Path:
    """Two runs and masks of the test set. Read only."""
    outdir = tmp_path_factory.mktemp("reported") / "out"
    write_run(outdir, "fcn_a_20260101-000000-aaaa", sample_root)
    write_run(outdir, "fcn_b_20260102-000000-bbbb", sample_root, draw=1, use_pseudo_label=True)
    write_masks(outdir / "masks" / "test", sample_root / "val")
    return outdir


@pytest.fixture(scope="module")
def page(outdir) -> str:
    return page_of(outdir)


def page_of(*argv: object) -> str:
    return report.main([str(part) for part in argv]).read_text(encoding="utf-8")


def data_of(page: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])


def names_of(page: str) -> list[str]:
    return [pair["name"] for pair in data_of(page)["gallery"]["pairs"]]


def groups_of(page: str) -> dict[str, str]:
    return {run["name"]: run["group"] for run in data_of(page)["runs"]}


def rows_of(page: str) -> dict[str, str]:
    return dict(re.findall(r'<tr data-run="(.*?)">(.*?)</tr>', page, re.S))


def decode(uri: str) -> Image.Image:
    return Image.open(urlopen(uri))


def test_page_needs_nothing_but_itself(page):
    assert not re.search(r"(?i)\b(https?|file|ftp|wss?)://", page)
    assert not re.search(r"(?i)@import|url\(|<link|<iframe|<script src|\bfetch\(|XMLHttp", page)
    assert all(target.startswith("#") for target in re.findall(r'href="(.*?)"', page))
    assert "default-src 'none'" in page
    assert "{{" not in page and "{%" not in page


def test_tables_and_curves_hold_each_csv(page, outdir):
    rows = rows_of(page)
    assert list(rows) == [run["name"] for run in data_of(page)["runs"]]
    for run in data_of(page)["runs"]:
        html = rows[run["name"]]
        with open(outdir / "logs" / run["name"] / "metrics.csv", newline="") as file:
            lines = list(csv.DictReader(file))
        for column, values in run["values"].items():
            assert values == [float(line[column]) for line in lines]
        best = max(lines, key=lambda line: float(line["score"]))
        for column in COLUMNS:
            shown = re.search(rf'data-column="{column}".*?>(.*?)<', html)[1]
            assert shown == f"{100 * float(best[column]):.2f}"
        assert f'"epoch">{best["epoch"]} of 5</td>' in html
        seconds = sum(float(line["train_s"]) + float(line["val_s"]) for line in lines)
        assert re.search(r'data-column="seconds">(.*?)<', html)[1] == f"{seconds:,.0f}"
    assert len(rows) == 2 and "pseudo labels" in rows["fcn_b_20260102-000000-bbbb"]
    assert page.count('<table class="stages">') == 1 and page.count('class="top"') == len(COLUMNS)
    assert "Validation split folders" in page and "different validation splits" not in page


def test_runs_of_different_splits_are_shown_apart(outdir, sample_root, tmp_path, capsys):
    names = tmp_path / "val.txt"
    names.write_text("00001\n00002\n")
    write_run(tmp_path / "other", "fcn_c", sample_root, val_list=str(names))
    page = page_of(outdir, tmp_path / "other")
    assert page.count('<table class="stages">') == 2
    assert "2 different validation splits" in page and "Validation split lists" in page
    assert list(groups_of(page).values()) == ["A", "A", "B"]
    assert "not to be compared" in capsys.readouterr().out


def write_split(outdir: Path, name: str, split: Split) -> None:
    state = {"run": name, "split": split.to_dict(), "model": {"weight": torch.zeros(1)}}
    save_checkpoint(outdir / "models" / f"{name}_30.00.pth", state)


def write_fold(outdir: Path, name: str, split: Split, **options) -> Path:
    write_split(outdir, name, split)
    return write_run(outdir, name, outdir / "gone", draw=len(name), **options)


def test_checkpoint_tells_the_split_where_the_data_is_gone(tmp_path):
    for name, val in (("a", "train/1"), ("b", "train/1"), ("c", "train/2")):
        write_fold(tmp_path, name, Split("every-10th", (), (val,)))
    for name in "de":
        folder = write_run(tmp_path, name, tmp_path / "gone")
    (folder / "options.json").unlink()
    (tmp_path / "models" / "broken.pth").write_bytes(b"no checkpoint")
    page = page_of(tmp_path)
    assert page.count("known from the checkpoint") == 2
    assert page.count("Validation split unknown") == 2
    assert list(groups_of(page).values()) == ["A", "A", "B", "C", "D"]
    assert data_of(page)["gallery"] is None


def test_folds_of_one_k_fold_share_a_table_with_their_mean(tmp_path):
    ids = [f"train/{i}" for i in range(10)]
    runs = [read_run(write_fold(tmp_path, "a" * (n + 1), k_fold(ids, 5, n, 0))) for n in range(3)]
    write_fold(tmp_path, "b", k_fold(ids, 5, 0, 0), lr=1.0)
    for name in ("twice", "again"):
        write_fold(tmp_path, name, k_fold(ids, 5, 1, 0), lr=2.0)
    write_fold(tmp_path, "other seed", k_fold(ids, 5, 0, 1))
    write_fold(tmp_path, "other pairs", k_fold(ids[1:], 5, 0, 0))
    page = page_of(tmp_path)
    assert page.count('<table class="stages">') == 3
    assert "Validation split k-fold(k=5, seed=0) (each run on another of k parts" in page
    assert "10 pairs of" in page and "9 pairs of" in page
    assert "validated on fold 2<" in rows_of(page)["aaa"]
    mean, none = re.findall(r'<tr class="mean">(.*?)</tr>', page, re.S)
    assert "Mean ± deviation of 3 of 5 folds" in mean
    assert "No mean: several runs of fold 1" in none and "±" not in none
    for column in COLUMNS:
        values = 100 * np.array([run.best[column] for run in runs])
        assert f'"{column}">{values.mean():.2f} ± {values.std(ddof=1):.2f}<' in mean
    groups = groups_of(page)
    assert (groups["aa"][1:], groups["b"][1:]) == (" fold 1", " fold 0")
    assert 'class="top"' not in page  # a fold is no better than another


def test_runs_that_differ_in_the_seed_alone_have_a_mean(tmp_path):
    folders = [write_run(tmp_path, "ab_"[: i + 1], tmp_path, draw=i, seed=i) for i in range(3)]
    runs = [read_run(folder) for folder in folders]
    for name, seed in (("same", 1), ("again", 1)):  # one seed is no spread
        write_run(tmp_path, name, tmp_path, seed=seed, lr=2.0)
    write_run(tmp_path, "alone", tmp_path, lr=3.0)
    [mean] = re.findall(r'<tr class="mean">(.*?)</tr>', page_of(tmp_path), re.S)
    assert "Mean ± deviation of 3 seeds" in mean
    markdown, latex = (page_of(tmp_path, "--format", kind) for kind in ("md", "tex"))
    for column in COLUMNS:
        values = 100 * np.array([run.best[column] for run in runs])
        figures = f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"
        assert f'"{column}">{figures}<' in mean
        assert f"| {figures} " in markdown and f"& {figures} ".replace("±", r"$\pm$") in latex
    assert r"| ab\_ (fcn, resnet18) | " in markdown and r"ab\_ (fcn, resnet18) & " in latex
    assert (len(markdown.splitlines()), len(latex.splitlines())) == (11, 12)


def test_demo_refuses_a_file_for_a_folder(tmp_path):
    (tmp_path / "demo").write_text("mine")
    with pytest.raises(UserError, match="demo: a file; name another folder with --outdir"):
        demo.main(["--outdir", str(tmp_path / "demo")])
    assert (tmp_path / "demo").read_text() == "mine"


def test_gallery_is_sorted_by_error_and_embeds_the_masks(page, outdir, sample_root):
    gallery = data_of(page)["gallery"]
    assert names_of(page) == WORST_FIRST
    assert gallery["step"] == mask_step(7)
    for pair in gallery["pairs"]:
        wrong = 0
        for date in (1, 2):
            file = f"{pair['name']}.png"
            label = read_label(sample_root / f"val/label{date}" / file, SECOND_CLASSES)
            mask = read_label(outdir / f"masks/test/im{date}" / file, SECOND_CLASSES)
            wrong += (mask != label).mean() / 2
            for uri, expected in (("labels", label), ("predictions", mask)):
                grey = np.asarray(decode(pair[uri][date - 1]).convert("L"))
                assert np.array_equal(grey // gallery["step"], expected)
            assert decode(pair["images"][date - 1]).size == (64, 64)
        assert pair["error"] == pytest.approx(wrong)
    assert gallery["pairs"][-1]["error"] == 0


def test_scores_are_those_of_the_scoring_tool(page, outdir, sample_root):
    argv = ["--prediction", outdir / "masks/test", "--label", sample_root / "val"]
    found = score.main([str(part) for part in (*argv, "--bootstrap", "0")])
    tiles = dict(re.findall(r'data-score="(\w+)">(.*?)<', page))
    assert set(tiles) == {*COLUMNS, "kappa"}
    for name, shown in tiles.items():
        assert shown == percent(found["scores"][name]["value"])
    for row in found["transitions"]:
        assert f"{row['from']} → {row['to']}: {row['labelled']:,} pixels" in page


def test_pairs_and_names_limit_the_gallery(outdir, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("00001\n00003\n00000\n")
    page = page_of(outdir, "--names", names, "--pairs", 2, "--out", tmp_path / "a.html")
    assert names_of(page) == ["00000", "00003"]
    assert data_of(page)["gallery"]["total"] == 3


def test_masks_of_an_unlabelled_set_are_shown(outdir, unlabelled_val_root, tmp_path):
    page = page_of(outdir, "--data-root", unlabelled_val_root, "--out", tmp_path / "a.html")
    pairs = data_of(page)["gallery"]["pairs"]
    assert [pair["error"] for pair in pairs] == [None] * 4
    changed = [pair["changed"] for pair in pairs]
    assert changed == sorted(changed, reverse=True)
    assert "without labels" in page
    (outdir / "masks/test").rename(tmp_path / "masks")
    try:  # masks alone, of a checkpoint from elsewhere
        shutil.copytree(tmp_path / "masks", tmp_path / "out/masks/test")
        page = page_of(tmp_path / "out", "--data-root", unlabelled_val_root)
    finally:
        (tmp_path / "masks").rename(outdir / "masks/test")
    assert data_of(page)["gallery"]["pairs"] == pairs and 'id="runs"' not in page
    predicted = score.main(
        [*("--prediction", str(outdir / "masks/test"), "--label", str(outdir / "masks/test"))]
    )
    for row in predicted["transitions"]:
        assert f"{row['from']} → {row['to']}: {row['predicted']:,} pixels" in page
    assert f"{percent(predicted['one_class']['predicted'])} % of the pixels predicted" in page


def test_validation_pairs_are_those_of_the_checkpoint(sample_root, tmp_path):
    val = ("train/00001", "train/00003")
    folder = write_run(tmp_path, "a", sample_root, val_list=str(tmp_path / "moved.txt"))
    write_masks(tmp_path / "masks" / "val", sample_root / "train")
    write_split(tmp_path, "a", Split("lists", (), val))
    argv = [tmp_path, "--split", "val", "--data-root", sample_root]
    assert names_of(page_of(*argv[:3])) == ["00003", "00001"]
    (folder / "options.json").unlink()
    assert names_of(page_of(*argv)) == ["00003", "00001"]
    write_split(tmp_path, "a", Split("lists", (), (*val, "train/99")))
    with pytest.raises(UserError, match=r"no pair train/99, but .*logs.a was validated on it"):
        page_of(*argv)
    shutil.rmtree(tmp_path / "models")
    with pytest.raises(UserError, match=r"logs.a has no options.json and no checkpoint"):
        page_of(*argv)
    (folder / "options.json").write_text('{"split": "folders"}')
    shutil.rmtree(tmp_path / "masks")
    write_masks(tmp_path / "masks" / "val", sample_root / "val")
    assert names_of(page_of(*argv)) == WORST_FIRST


def test_labels_of_another_kind_than_trained_on_are_not_scored(
    sample_root, binary_root, tmp_path, capsys
):
    root, masks = tmp_path / "root", tmp_path / "out/masks/test"
    shutil.copytree(binary_root, root)
    masks.mkdir(parents=True)
    (root / "val/label").rename(masks / "change")
    for name in ("label1", "label2"):
        shutil.copytree(sample_root / "val" / name, root / "val" / name)
    write_run(tmp_path / "out", "a", root)
    page = page_of(tmp_path / "out")
    assert "labels in label1 and label2, but" in capsys.readouterr().out
    assert "without labels" in page
    assert [pair["error"] for pair in data_of(page)["gallery"]["pairs"]] == [None] * 4


def test_names_cannot_break_out_of_the_page(tmp_path):
    write_run(tmp_path, "a<script>&", tmp_path / "gone", model="</script><b>")
    page = page_of(tmp_path)
    assert "a<script>" not in page and "</script><b>" not in page
    assert data_of(page)["runs"][0]["name"] == "a<script>&"


def test_missing_scores_are_absent_rather_than_zero(tmp_path):
    folder = write_run(tmp_path, "a", tmp_path / "gone")
    text = "epoch,loss_total,miou,sek\n1,nan,0.5,\n2,1.5,0.75,\n"
    (folder / "metrics.csv").write_text(text)
    run = read_run(folder)
    assert run.rows[0] == {"epoch": 1, "loss_total": None, "miou": 0.5, "sek": None}
    assert run.best["epoch"] == 2
    assert run.seconds is None
    html = rows_of(page_of(tmp_path))["a"]
    assert 'data-column="sek">–<' in html and 'data-column="score">–<' in html


def test_runs_may_be_log_folders_or_outdirs(outdir, tmp_path):
    one = outdir / "logs" / "fcn_b_20260102-000000-bbbb"
    assert find_run_folders([one])[0] == [one]
    assert len(find_run_folders([one, outdir, outdir / "logs"])[0]) == 2
    shutil.copytree(outdir / "logs", tmp_path / "logs")
    (tmp_path / "logs" / one.name / "metrics.csv").unlink()
    found, empty = find_run_folders([tmp_path])
    assert [len(found), len(empty)] == [1, 1]


def spoil(name: str, text: str):
    return lambda out: next(out.glob(f"logs/*a/{name}")).write_text(text)


def without_masks(out: Path) -> None:
    for path in out.glob("masks/test/*/00001.png"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "argv", "message"),
    [
        (shutil.rmtree, [], "no such folder"),
        (lambda out: [shutil.rmtree(child) for child in out.iterdir()], [], "no run with a met"),
        (spoil("metrics.csv", ""), [], "no epochs in it"),
        (spoil("metrics.csv", "epoch,score\n1,high\n"), [], "line 2: .* must be a number"),
        (spoil("metrics.csv", "epoch,score\n1,0.5,3\n"), [], "line 2"),
        (spoil("options.json", "{"), [], "options.json"),
        (without_masks, [], "no masks for pair 00001; predict all"),
        (
            lambda out: Image.new("L", (8, 8)).save(out / "masks/test/im2/00001.png"),
            [],
            "8 × 8 pixels, but",
        ),
        (Path.exists, ["--masks", "nowhere"], "no folders im1 and im2"),
        (Path.exists, ["--data-root", "nowhere"], "no such folder"),
        (Path.exists, ["--split", "train"], "pseudo masks"),
        (Path.exists, ["--out", "."], "is a folder"),
    ],
)
def test_errors_name_the_file_and_the_remedy(outdir, tmp_path, damage, argv, message):
    copy = tmp_path / "out"
    shutil.copytree(outdir, copy, ignore=shutil.ignore_patterns("*.html"))
    damage(copy)
    with pytest.raises(UserError, match=message):
        page_of(copy, *argv)
    assert not (copy / "report.html").exists()
