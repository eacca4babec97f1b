"""tools/score.py: what it reads, prints, writes and refuses."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.classes import SECOND_CLASSES
from datasets.labels import read_label
from engine.metrics import ConfusionMatrix, compute_metrics, summary
from tests.helpers.random_maps import SCALARS, SIZES, all_maps, counts_of
from tools import score
from tools.scoring.statistics import drop_one_sided, image_scores, pooled_scores, tally
from utils.errors import DataError, OptionError, UserError


def write(folder: Path, names: tuple[str, str], mask1: np.ndarray, mask2: np.ndarray, stem: str):
    for name, mask in zip(names, (mask1, mask2), strict=True):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(folder / name / f"{stem}.png")


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Predictions in im1/im2 and labels in label1/label2 for `all_maps`."""
    for i, (first, second, true1, true2) in enumerate(all_maps()):
        write(tmp_path / "prediction", ("im1", "im2"), first, second, f"{i:03d}")
        write(tmp_path / "label", ("label1", "label2"), true1, true2, f"{i:03d}")
    return tmp_path / "prediction", tmp_path / "label"


def run(prediction: Path, label: Path, *options: object) -> dict:
    argv = ("--prediction", prediction, "--label", label, *options)
    return score.main([str(part) for part in argv])


def value(result: dict, name: str) -> float:
    return result["scores"][name]["value"]


@pytest.mark.parametrize("matrix", ["dates", "transitions"])
def test_labels_score_one_against_themselves(folders, matrix):
    _, label = folders
    result = run(label, label, "--matrix", matrix, "--bootstrap", 20)
    for name in (*SCALARS, "oa_image_mean", "iou_changed", "iou_unchanged"):
        assert result["scores"][name] == {"value": 1, "interval": [1, 1]}, name
    assert all(row["iou"] == 1 for row in result["transitions"])


def test_what_test_py_prints(folders, capsys):
    """The same maps through the confusion matrix of evaluation, and its printed line."""
    prediction, label = folders
    confusion = ConfusionMatrix(7)
    for date in ("1", "2"):
        for path in sorted((prediction / f"im{date}").iterdir()):
            truth = read_label(label / f"label{date}" / path.name, SECOND_CLASSES)
            mask = read_label(path, SECOND_CLASSES)
            confusion.update(torch.from_numpy(mask), torch.from_numpy(truth))
    expected = compute_metrics(confusion.counts)
    result = run(prediction, label, "--bootstrap", 0)
    for name in SCALARS:
        assert value(result, name) == pytest.approx(getattr(expected, name), abs=1e-12), name
    assert result["confusion"] == confusion.counts.tolist()
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    printed = {(line[0].rstrip(","), line[-1]) for line in lines}
    assert {tuple(figure.split()) for figure in summary(expected).split("  ")} <= printed


def test_transitions_are_listed(folders):
    result, maps = run(*folders, "--bootstrap", 0), all_maps()
    rows = {(row["from"], row["to"]): row for row in result["transitions"]}
    for i, j in ((1, 2), (4, 4), (6, 1)):
        row = rows[SECOND_CLASSES.names[i], SECOND_CLASSES.names[j]]
        labelled = [(m[2] == i) & (m[3] == j) for m in maps]
        predicted = [(m[0] == i) & (m[1] == j) for m in maps]
        both = sum((a & b).sum() for a, b in zip(labelled, predicted, strict=True))
        assert row["labelled"] == sum(part.sum() for part in labelled)
        assert row["predicted"] == sum(part.sum() for part in predicted)
        assert row["right"] == both
        union = row["labelled"] + row["predicted"] - both
        assert row["iou"] == pytest.approx(both / union)


def test_a_frequent_prediction_is_shown_whatever_its_label(tmp_path, capsys):
    """27 labelled transitions of few pixels, and tree → tree, which is predicted alone."""
    others = [(i, j) for i in range(1, 7) for j in range(1, 7) if i != j][:27]
    true1, true2 = (np.array([pair[d] for pair in others], np.uint8)[None] for d in (0, 1))
    first, second = (np.where(np.arange(27) < 18, 4, mask) for mask in (true1, true2))
    write(tmp_path / "p", ("im1", "im2"), *(m.astype(np.uint8) for m in (first, second)), "a")
    write(tmp_path / "l", ("label1", "label2"), true1, true2, "a")
    result = run(tmp_path / "p", tmp_path / "l", "--bootstrap", 0)
    assert result["one_class"] == {"labelled": 0, "predicted": pytest.approx(18 / 27)}
    text = capsys.readouterr().out
    assert re.search(r"IoU %\n-+\ntree → tree +0 +18 +0 ", text) and "and 8 more" in text
    assert "one class at both dates: labelled 0.00 %, predicted 66.67 %" in text


def test_files_and_text(folders, tmp_path, capsys):
    result = run(*folders, "--json", tmp_path / "o.json", "--csv", tmp_path / "o.csv")
    assert json.loads((tmp_path / "o.json").read_text(encoding="utf-8")) == result
    with (tmp_path / "o.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [f"{i:03d}" for i in range(6)]
    expected = image_scores(tally(counts_of(all_maps()), "dates"))
    for i, row in enumerate(rows):
        height, width = SIZES[i]
        assert int(row["pixels"]) == height * width
        assert int(row["changed_label"]) == (all_maps()[i][2] > 0).sum()
        assert float(row["sek"]) == pytest.approx(expected["sek"][i])
    text = capsys.readouterr().out
    for part in ("dates:", "7 × 7", "bootstrap", "1000 resamples, seed 0", "mean of images"):
        assert part in text
    run(*folders, "--matrix", "37", "--bootstrap", 0)
    assert "37 × 37" in capsys.readouterr().out


def test_a_better_folder_is_better(folders, tmp_path, capsys):
    prediction, label = folders
    rows = tmp_path / "rows.csv"
    result = run(label, label, "--versus", prediction, "--bootstrap", 50, "--csv", rows)
    assert result["differences"]["score"]["low"] > 0
    assert result["differences"]["score"]["share_better"] == 1
    assert result["versus"]["scores"] == run(prediction, label, "--bootstrap", 50)["scores"]
    assert "A is better" in capsys.readouterr().out
    header = rows.read_text(encoding="utf-8").splitlines()[0].split(",")
    assert {"score", "versus_score", "versus_changed_prediction"} <= set(header)
    run(prediction, label, "--versus", label, "--bootstrap", 50)
    assert "B is better" in capsys.readouterr().out
    result = run(prediction, label, "--versus", prediction, "--bootstrap", 50)
    for difference in result["differences"].values():
        assert difference == {"value": 0, "low": 0, "high": 0, "share_better": 0}
    assert "undecided" in capsys.readouterr().out


def test_names_choose_the_pairs(folders, tmp_path):
    prediction, label = folders
    for folder in ("im1", "im2"):
        (prediction / folder / "005.png").unlink()
    names = tmp_path / "names.txt"
    names.write_text("train/001.png\n003\n\n", encoding="utf-8")
    result = run(prediction, label, "--names", names, "--bootstrap", 0)
    counts = counts_of([all_maps()[i] for i in (1, 3)])
    assert result["pairs"] == 2
    assert value(result, "score") == pytest.approx(pooled_scores(tally(counts, "dates"))["score"])


def test_classes_are_found(folders, tmp_path):
    prediction, label = folders
    entries = [{"name": f"c{i}", "color": [i, i, i]} for i in range(9)]
    (label.parent / "classes.json").write_text(json.dumps(entries), encoding="utf-8")
    assert run(prediction, label, "--bootstrap", 0)["classes"] == [f"c{i}" for i in range(9)]
    other = tmp_path / "other"
    other.mkdir()
    (other / "classes.json").write_text(json.dumps(entries[:8]), encoding="utf-8")
    shutil.copy(other / "classes.json", other / "eight.json")
    for path in (other, other / "classes.json", other / "eight.json"):
        result = run(prediction, label, "--bootstrap", 0, "--classes", path)
        assert len(result["classes"]) == 8
    assert value(result, "class_iou")[7] == 0


def one_sided(prediction: Path) -> None:
    path = prediction / "im2" / "001.png"
    mask = np.array(Image.open(path))
    mask[mask > 3] = 0
    Image.fromarray(mask).save(path)


def test_rules_for_change_at_one_date(folders):
    prediction, label = folders
    one_sided(prediction)
    maps = all_maps()
    second = np.where(maps[1][1] > 3, 0, maps[1][1])
    maps[1] = (maps[1][0], second, *maps[1][2:])
    kept = pooled_scores(tally(counts_of(maps), "dates"))
    result = run(prediction, label, "--one-sided", "keep", "--bootstrap", 0)
    assert value(result, "score") == pytest.approx(kept["score"], abs=1e-12)
    maps[1] = (*drop_one_sided(*maps[1][:2]), *maps[1][2:])
    for matrix in ("dates", "transitions"):
        expected = pooled_scores(tally(counts_of(maps), matrix))
        options = ("--one-sided", "unchanged", "--matrix", matrix, "--bootstrap", 0)
        result = run(prediction, label, *options)
        assert value(result, "score") == pytest.approx(expected["score"], abs=1e-12)
    with pytest.raises(OptionError, match="keep"):
        run(prediction, label, "--one-sided", "keep", "--matrix", "37")


def remove(*names: str) -> Callable[[Path, Path], None]:
    """Remove files, or folders with what is in them."""

    def damage(prediction: Path, label: Path) -> None:
        for path in (prediction.parent / name for name in names):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def save(name: str, mask: np.ndarray) -> Callable[[Path, Path], None]:
    return lambda prediction, label: Image.fromarray(mask).save(prediction.parent / name)


def full(value: int, *shape: int) -> np.ndarray:
    return np.full((*SIZES[2], *shape), value, np.uint8)


def nothing_in_it(prediction: Path, label: Path) -> None:
    for path in prediction.glob("*/*.png"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "file", "remedy"),
    [
        (remove("prediction/im1/002.png", "prediction/im2/002.png"), "label1/002.png", "--names"),
        (remove("label/label1/002.png", "label/label2/002.png"), "im1/002.png", "remove the file"),
        (remove("prediction/im2/002.png"), "im1/002.png", "add the file"),
        (save("prediction/im2/002.png", np.zeros((5, 7), np.uint8)), "im2/002.png", "labels' size"),
        (save("prediction/im1/002.png", full(7)), "im1/002.png", "classes.json"),
        (save("prediction/im1/002.png", full(77, 3)), "im1/002.png", "classes.json"),
        (save("prediction/im1/002.bmp", full(0)), "im1/002.png", "remove one"),
        (save("label/label1/002.png", full(1)), "label1/002.png", "correct the labels"),
        (lambda prediction, label: one_sided(prediction), "im2/001.png", "--one-sided"),
        (remove("prediction/im2"), "prediction/im2", "both dates"),
        (remove("label/label1", "label/label2"), "label", "label1 and label2"),
        (nothing_in_it, "prediction/im1", "PNG"),
    ],
)
def test_damage_is_named_with_its_remedy(folders, damage, file, remedy):
    damage(*folders)
    with pytest.raises(DataError) as caught:
        run(*folders, "--bootstrap", 0)
    message = str(caught.value)
    assert file in message and remedy in message and "\n" not in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--names", "no/such/file"), "cannot be read"),
        (("--names", __file__), "has no label"),
        (("--classes", "other.json"), "other.json: no such file; name a JSON file of classes"),
        (("--versus", ".", "--bootstrap", "0"), "--bootstrap"),
        (("--versus", "no/such/folder"), "no/such/folder"),
    ],
)
def test_bad_options(folders, options, message):
    with pytest.raises(UserError, match=message):
        run(*folders, *options)
