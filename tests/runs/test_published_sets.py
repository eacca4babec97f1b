"""Public sets where they lie: masks are scored and shown against labels as they are published."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import test as predict
import train
from tests.helpers.raster_files import write_tiff
from tests.helpers.runs import options, train_options
from tools import check_data, report, score
from tools.scoring.folders import bands_read
from utils.errors import DataError, OptionError

SIDE, NAMES = 32, [f"tile_{i}" for i in range(6)]
RNG = np.random.default_rng(0)
# Of each code of Landsat-SCD the class at both dates.
CODES = np.array([list(map(int, "0112223344")), list(map(int, "0231341212"))])


def write_pair(folder: Path, name: str, shades: np.ndarray, label: np.ndarray) -> None:
    """Images of five bands, the last of which knows no data where one date is dark."""
    for date, shade in zip("AB", shades, strict=True):
        (folder / date).mkdir(parents=True, exist_ok=True)
        image = RNG.integers(1, 30, (SIDE, SIDE, 5)) + 40 * shade[..., None]
        if date == "B":
            image[:5, :9, 4] = 0
        write_tiff(folder / date / f"{name}.tif", image.astype(np.uint8), nodata=0)
    (folder / "label").mkdir(exist_ok=True)
    Image.fromarray(label.astype(np.uint8)).save(folder / "label" / f"{name}.png")


def blocks(highest: int) -> np.ndarray:
    return RNG.integers(0, highest + 1, (4, 4)).repeat(SIDE // 4, 0).repeat(SIDE // 4, 1)


def require_equal(prediction: Path, label: Path, preset: str, *more: object) -> dict:
    """The scores of tools/score.py are those that test.py has written, digit for digit."""
    argv = ("--bootstrap", 0, "--prediction", prediction, "--label", label, "--preset", preset)
    result = score.main([*map(str, (*argv, "--workers", 1, *more))])
    written = json.loads((prediction / "metrics.json").read_text())
    found = {name: entry["value"] for name, entry in result["scores"].items()}
    shared = found.keys() & written.keys()
    assert {name: found[name] for name in shared} == {name: written[name] for name in shared}
    assert shared >= {"miou", "kappa", "oa", "iou_changed"} and 0 < found["iou_changed"] < 1
    return result


def gallery(*argv: object) -> dict:
    page = report.main([*map(str, argv), "--workers", "1"]).read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])["gallery"]


def test_change_masks_in_their_folders(tmp_path):
    root, out = tmp_path / "LEVIR-CD", tmp_path / "out"
    for split in ("train", "test"):
        for name in NAMES:
            changed = blocks(1)
            write_pair(root / split, name, [0 * changed, changed], 255 * changed)
    more = ("--preset", "levir-cd", "--bands", "5,", "--lr", 1e-3, "--epochs", 3)
    train.main(train_options(root, out, *more))
    predict.main(options(root, out, "--preset", "levir-cd"))
    prediction = out / "masks/test"
    assert bands_read(prediction) == (5,)
    result = require_equal(prediction, root / "test", "levir-cd")
    pixels = len(NAMES) * (SIDE**2 - 5 * 9)
    assert result["scores"]["f1"]["value"] > 0 and np.sum(result["confusion"]) == pixels
    argv = ["--prediction", str(prediction), "--label", str(root / "test"), "--bootstrap", "0"]
    everywhere = score.main([*argv, "--preset", "levir-cd", "--bands", "3"])
    assert np.sum(everywhere["confusion"]) == len(NAMES) * SIDE**2
    with pytest.raises(OptionError, match="--preset knows the classes"):
        score.main([*argv, "--preset", "levir-cd", "--classes", str(root)])
    shutil.rmtree(root / "test/label")
    with pytest.raises(DataError, match="no labels in it"):
        score.main([*argv, "--preset", "levir-cd"])
    shutil.copytree(prediction, tmp_path / "elsewhere/masks/test")
    shown = gallery(tmp_path / "elsewhere", "--data-root", root, "--preset", "levir-cd")
    assert shown["total"] == len(NAMES) and shown["pairs"][0]["error"] is None


def test_transitions_in_one_file(tmp_path):
    root, copy, out = tmp_path / "Landsat", tmp_path / "copy", tmp_path / "out"
    for name in NAMES:
        codes = blocks(9)
        write_pair(root, name, CODES[:, codes], codes)
    argv = [str(root), "--preset", "landsat-scd", "--convert", str(copy), "--workers", "1"]
    check_data.main([*argv, "--outdir", str(tmp_path / "log")])
    train.main(train_options(copy, out, "--lr", 1e-3, "--epochs", 6))
    split = ("--split", "random", "--val-fraction", 0.5)
    predict.main(options(copy, out, *split))
    prediction = out / "masks/val"
    names = tmp_path / "names.txt"
    names.write_text("\n".join(path.stem for path in (prediction / "im1").iterdir()))
    where = (prediction, root / "train", "landsat-scd", "--names", names)
    result = require_equal(*where, "--versus", copy / "train", "--bootstrap", 1)
    assert result["classes"][1] == "farmland" and result["scores"]["sek"]["value"] > 0
    assert result["versus"]["scores"]["score"]["value"] == 1  # of the copy's labels
    again = require_equal(prediction, copy / "train", "landsat-scd", "--names", names)
    assert again["confusion"] == result["confusion"]
    argv = ("--data-root", root, "--preset", "landsat-scd", "--split", "train", "--names", names)
    shown = gallery(tmp_path, "--masks", prediction, *argv)
    assert shown["total"] == 3 and 0 < shown["pairs"][0]["error"] < 1
