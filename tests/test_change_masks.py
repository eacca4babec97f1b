"""Change masks without classes: recognised, read, trained, tested and scored."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from processes import run_ranks
from runs import (
    BACKBONE,
    PREFIX,
    assert_same_run,
    best_files,
    latest_file,
    options,
    train_options,
)

import label
import test as predict
import train
from datasets import (
    ChangeDetectionDataset,
    change_masks,
    evaluation_loader,
    index_pairs,
    split_pairs,
)
from datasets.change_masks import find_change_masks, is_mask_folder
from datasets.classes import CHANGE_CLASSES, SECOND_CLASSES, load_classes, read_label
from datasets.inspection import inspect_dataset
from datasets.mask_folders import find_masks
from datasets.sample import write_sample_data
from models import ModelConfig, build_model, load_model, open_checkpoint
from models.ensemble import open_ensemble
from models.transfer import transfer_weights
from tools import check_data, pseudo_accuracy, report, score
from utils.change_metrics import compute_change_metrics
from utils.checkpoint import read_checkpoint
from utils.distributed import join_world
from utils.engine import evaluate
from utils.errors import CheckpointError, DataError, OptionError
from utils.files import write_json
from utils.fit import Record
from utils.inference import VIEWS, Predictor, decode
from utils.label_counts import metrics_from_dict
from utils.losses import ChangeCriterion
from utils.masks import open_image, save_change_mask
from utils.split_options import SplitOptions
from utils.tensorboard_panels import CHANGE_TITLES, panel_writer, validation_panels

SIDE = 64
OF_CLASSES = re.compile(r"score|sek|f_scd|class_iou|iou_(?!changed|unchanged)|semantic")


@pytest.fixture(scope="session")
def binary_root(tmp_path_factory) -> Path:
    """12 training and 4 validation pairs with change masks in ``label``. Read only."""
    root = tmp_path_factory.mktemp("binary_root")
    write_sample_data(root, 12, 4, SIDE, SIDE, seed=0, label_format="binary")
    return root


@pytest.fixture(scope="module")
def outdir(binary_root, tmp_path_factory) -> Path:
    """Two epochs of training on change masks, and the masks of the test set. Read only."""
    outdir = tmp_path_factory.mktemp("binary_run")
    train.main(train_options(binary_root, outdir, "--epochs", 2))
    predict.main(options(binary_root, outdir, "--tta"))
    return outdir


@pytest.fixture
def one_mask(tmp_path):
    """Write a mask file of given pixels; returns its path."""

    def write(values, mode: str = "L", name: str = "a.png", palette=None) -> Path:
        image = Image.fromarray(np.asarray(values, dtype=np.uint8))
        if palette:
            image.putpalette([channel for color in palette for channel in color])
        image = image if image.mode == mode else image.convert(mode)
        image.save(tmp_path / name)
        return tmp_path / name

    return write


def masks_in_both(root: Path, high: int = 255) -> None:
    """Turn a semantic set's labels into change masks, equal in label1 and label2."""
    for path in root.glob("*/label[12]/*.png"):
        changed = SECOND_CLASSES.to_index(np.asarray(Image.open(path))) > 0
        Image.fromarray(changed.astype(np.uint8) * np.uint8(high)).save(path)


# --- files ----------------------------------------------------------------------------------

BLACK, WHITE = (0, 0, 0), (255, 255, 255)


@pytest.mark.parametrize(
    ("values", "mode", "palette"),
    [
        ([[0, 255]], "L", None),
        ([[0, 1]], "L", None),
        ([[0, 255]], "1", None),
        ([[0, 255]], "RGB", None),
        ([[0, 1]], "P", (BLACK, WHITE)),
        ([[0, 1]], "P", ((9, 9, 9), (200, 0, 0))),
    ],
)
def test_masks_of_every_kind(values, mode, palette, one_mask):
    path = one_mask(values, mode, palette=palette)
    mask = read_label(path, CHANGE_CLASSES)
    assert mask.dtype == np.uint8 and mask.tolist() == [[0, 1]]


@pytest.mark.parametrize("values", [[[0, 1, 255]], [[0, 7]], [[0, 254, 255]]])
def test_other_values_are_refused(values, one_mask):
    path = one_mask(values)
    with pytest.raises(DataError, match="a change mask holds 0 and 255, or 0 and 1") as caught:
        read_label(path, CHANGE_CLASSES)
    assert str(path) in str(caught.value)


def test_an_inverted_palette_is_refused(one_mask):
    with pytest.raises(DataError, match="index 0 means 'unchanged'"):
        read_label(one_mask([[0, 1]], "P", palette=(WHITE, BLACK)), CHANGE_CLASSES)


# --- recognition ----------------------------------------------------------------------------


def test_a_semantic_set_is_none_of_change(sample_root, unlabelled_val_root):
    for root in (sample_root, unlabelled_val_root, sample_root / "train"):
        assert find_change_masks(root) == ""
        assert load_classes(root) is SECOND_CLASSES


def test_a_stray_folder_label_is_no_sign(unlabelled_val_root, tmp_path):
    shutil.copytree(unlabelled_val_root / "val", tmp_path / "val")
    (tmp_path / "label").mkdir()
    assert load_classes(tmp_path) is SECOND_CLASSES
    shutil.copytree(unlabelled_val_root / "train", tmp_path / "train")
    (tmp_path / "train" / "label").mkdir()
    assert load_classes(tmp_path) is SECOND_CLASSES


def test_the_folder_label_is_recognised(binary_root):
    assert "train/label" in find_change_masks(binary_root)
    assert load_classes(binary_root) is CHANGE_CLASSES


def test_equal_masks_of_both_dates_are_recognised(broken_root):
    masks_in_both(broken_root)
    assert "0 and 255 only" in find_change_masks(broken_root)
    classes = load_classes(broken_root)
    dataset = ChangeDetectionDataset(index_pairs(broken_root / "train"), classes)
    assert set(dataset[0]) == {"name", "image1", "image2", "change_mask"}


@pytest.mark.parametrize("marked", [0, 7, 11])
def test_blank_masks_do_not_hide_the_others(marked, broken_root):
    masks_in_both(broken_root)
    for path in broken_root.glob("train/label[12]/*.png"):
        values = np.uint8(255 * (path.stem == f"{marked:05d}"))
        Image.fromarray(np.full((SIDE, SIDE), values)).save(path)
    assert load_classes(broken_root) is CHANGE_CLASSES


def test_the_labels_looked_at_are_spread(one_mask, tmp_path, monkeypatch):
    for index in range(200):
        one_mask([[0, 255]], name=f"{index:03d}.png")
    opened = []

    def recorded(path: Path) -> Image.Image:
        opened.append(int(path.stem))
        return open_image(path)

    monkeypatch.setattr(change_masks, "open_image", recorded)
    assert is_mask_folder(tmp_path)
    assert len(opened) == 8 and np.all(np.abs(np.diff(opened) - 25) <= 1)


@pytest.mark.parametrize("kind", ["0 and 1", "nothing changed", "one with classes", "black, white"])
def test_what_might_be_classes_stays_classes(kind, broken_root):
    masks_in_both(broken_root, high=1 if kind == "0 and 1" else 255)
    for path in broken_root.glob("train/label[12]/*.png"):
        if kind == "nothing changed":
            Image.new("L", (SIDE, SIDE)).save(path)
        if kind == "black, white":
            Image.open(path).convert("RGB").save(path)
    if kind == "one with classes":
        Image.fromarray(np.full((SIDE, SIDE), 3, np.uint8)).save(
            broken_root / "train/label1/00000.png"
        )
    assert load_classes(broken_root) is SECOND_CLASSES


def test_a_class_list_of_one_class_is_binary(broken_root):
    masks_in_both(broken_root, high=1)
    entries = [{"name": n, "color": c} for n, c in (("same", BLACK), ("built", WHITE))]
    write_json(broken_root / "classes.json", entries)
    classes = load_classes(broken_root)
    assert classes.is_binary and classes.semantic_classes == 0
    assert not SECOND_CLASSES.is_binary and SECOND_CLASSES.semantic_classes == 6


def test_masks_that_differ_between_the_dates_are_refused(broken_root):
    masks_in_both(broken_root)
    path = broken_root / "train/label2/00000.png"
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    dataset = ChangeDetectionDataset(index_pairs(broken_root / "train"), CHANGE_CLASSES)
    with pytest.raises(DataError, match=r"00000\.png: disagree on what changed"):
        dataset[0]


def test_masks_beside_a_class_list_are_refused(binary_root, tmp_path):
    dataset = ChangeDetectionDataset(index_pairs(binary_root / "train"), SECOND_CLASSES)
    with pytest.raises(DataError, match="a change mask, but the class list names 6 classes"):
        dataset[0]
    shutil.copytree(binary_root, tmp_path / "root")
    findings = inspect_dataset(tmp_path / "root", SECOND_CLASSES).findings
    assert "label-binary" in {finding.kind for finding in findings}


def test_one_folder_of_masks_is_as_good_as_two(broken_root):
    masks_in_both(broken_root)
    for split in ("train", "val"):
        shutil.rmtree(broken_root / split / "label2")
    assert inspect_dataset(broken_root, CHANGE_CLASSES).findings == []


def test_masks_all_white_are_named_with_their_own_remedy(broken_root):
    masks_in_both(broken_root)
    for path in broken_root.glob("*/label[12]/*.png"):
        Image.new("L", (SIDE, SIDE), 255).save(path)
    classes = load_classes(broken_root)
    (finding,) = inspect_dataset(broken_root, classes).findings
    assert finding.kind == "all-marked" and "--unchanged-where-equal" not in str(finding)


@pytest.mark.parametrize("split", ["train", "val"])
def test_splits_of_two_kinds_are_refused_and_predicted(split, broken_root, tmp_path, capsys):
    semantic = small_model(0 if split == "train" else 6)
    state = {"format": 1, "config": semantic.config.to_dict(), "model": semantic.state_dict()}
    torch.save(state, tmp_path / "a.pth")
    for path in (broken_root / split / "label1").iterdir():
        changed = SECOND_CLASSES.to_index(np.asarray(Image.open(path))) > 0
        save_change_mask(broken_root / split / "label" / path.name, changed.astype(np.uint8))
    for folder in ("label1", "label2"):
        shutil.rmtree(broken_root / split / folder)
    with pytest.raises(DataError, match=r"val: labels in label.*train has them in label.*--split"):
        train.main(train_options(broken_root, tmp_path))
    argv = options(broken_root, tmp_path, "--checkpoints", tmp_path / "a.pth")
    assert predict.main(argv) is None
    assert "predicting without scores" in capsys.readouterr().out
    assert len(list((tmp_path / "masks/test").glob("*/*.png"))) == (4 if split == "train" else 8)
    chosen, _, _ = split_pairs(broken_root, SplitOptions("every-10th"))
    assert chosen.val == ("train/00000", "train/00010")


@pytest.mark.parametrize("script", [train, check_data])
def test_folders_a_and_b_are_named_with_the_remedy(script, binary_root, tmp_path):
    shutil.copytree(binary_root, tmp_path / "root")
    for old, new in (("im1", "A"), ("im2", "B")):
        (tmp_path / "root/train" / old).rename(tmp_path / "root/train" / new)
    argv = [str(tmp_path / "root"), "--outdir", str(tmp_path / "out"), "--workers", "1"]
    argv = argv if script is check_data else train_options(tmp_path / "root", tmp_path / "out")
    with pytest.raises(DataError, match=r"rename .*train/A to im1 and .*train/B to im2"):
        script.main(argv)


# --- model, loss, scores --------------------------------------------------------------------


def small_model(num_classes: int = 0) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(ModelConfig("fcn", "test_convnext", num_classes=num_classes)).eval()


def test_a_model_without_classes_has_no_semantic_head():
    model = small_model()
    assert not any(name.startswith("semantic_head") for name in model.state_dict())
    images = torch.randint(0, 256, (2, 3, 40, 33), dtype=torch.uint8)
    with torch.no_grad():
        output = model(images.float(), images.float().flip(0))
    assert output.semantic_logits1 is None and output.semantic_logits2 is None
    assert output.change_logits.shape == (2, 40, 33)
    terms = ChangeCriterion(0)(output, None, None, torch.ones(2, 40, 33))
    assert set(terms) == {"change", "total"}
    assert terms["total"] == 2 * terms["change"]


def test_views_and_models_are_averaged():
    models = [small_model(), build_model(ModelConfig("fcn", "test_convnext", num_classes=0)).eval()]
    images = torch.randint(0, 256, (2, 2, 3, 32, 48), dtype=torch.uint8)
    probs = Predictor(models, VIEWS)(*images)
    alone = [Predictor([model], VIEWS)(*images).change_probs for model in models]
    torch.testing.assert_close(probs.change_probs, torch.stack(alone).mean(0))
    (change,) = decode(probs)
    assert change.dtype == torch.uint8
    assert torch.equal(change > 0, probs.change_probs >= 0.5)


def test_the_change_part_alone_goes_from_one_kind_to_the_other(tmp_path):
    binary, semantic = small_model(), small_model(4)
    for source, target, anew in ((binary, semantic, ["semantic_head"]), (semantic, binary, [])):
        path = tmp_path / f"{bool(anew)}.pth"
        torch.save(
            {"format": 1, "config": source.config.to_dict(), "model": source.state_dict()}, path
        )
        model = build_model(target.config)
        assert transfer_weights(model, open_checkpoint(path)) == anew
        for name, value in model.state_dict().items():
            if not name.startswith("semantic_head"):
                assert torch.equal(value, source.state_dict()[name])


def test_scores_equal_their_definitions():
    unchanged, false, missed, found = 50.0, 7.0, 11.0, 32.0
    counts = torch.tensor([[unchanged, false], [missed, found]])
    metrics = compute_change_metrics(counts)
    precision, recall = found / (found + false), found / (found + missed)
    assert metrics.precision == pytest.approx(precision)
    assert metrics.recall == pytest.approx(recall)
    assert (
        metrics.f1 == metrics.rank == pytest.approx(2 * precision * recall / (precision + recall))
    )
    ious = (unchanged / (unchanged + false + missed), found / (found + false + missed))
    assert (metrics.iou_unchanged, metrics.iou_changed) == pytest.approx(ious)
    assert metrics.miou == pytest.approx(sum(ious) / 2)
    assert metrics.oa == pytest.approx(0.82)
    chance = ((57 * 61) + (43 * 39)) / 100**2
    assert metrics.kappa == pytest.approx((0.82 - chance) / (1 - chance))
    assert not any(OF_CLASSES.search(name) for name in metrics.to_dict())
    assert metrics_from_dict(metrics.to_dict()) == metrics
    assert compute_change_metrics(torch.zeros(2, 2)).f1 == 0


def test_names_of_a_binary_list_mean_nothing(outdir):
    (best,) = best_files(outdir)
    names = {"names": ["same", "built"]}
    assert open_ensemble([best], names)[0].path == best


def test_panels_of_the_log_show_the_prediction(binary_root):
    class Log:
        shows_images = True
        images: ClassVar = []

        def add_image(self, *image: object) -> None:
            self.images.append(image)

    dataset = ChangeDetectionDataset(index_pairs(binary_root / "val"), CHANGE_CLASSES)
    predictor = Predictor([small_model()])
    panel_writer(Log(), predictor, dataset, CHANGE_CLASSES)(7)
    ((name, picture, epoch),) = Log.images
    samples = [dataset[i] for i in range(4)]
    maps = [decode(predictor(s["image1"][None], s["image2"][None]))[0][0] for s in samples]
    assert (name, epoch) == ("validation", 7)
    assert np.array_equal(picture, validation_panels(samples, maps, None, CHANGE_CLASSES))
    others = [1 - each for each in maps]
    assert not np.array_equal(picture, validation_panels(samples, others, None, CHANGE_CLASSES))


def test_panels_show_one_map(binary_root):
    dataset = ChangeDetectionDataset(index_pairs(binary_root / "val")[:2], CHANGE_CLASSES)
    samples = [dataset[0], dataset[1]]
    maps = [sample["change_mask"] for sample in samples]
    panels = validation_panels(samples, maps, None, CHANGE_CLASSES, cell=32)
    assert len(CHANGE_TITLES) * 32 < panels.shape[1] < (len(CHANGE_TITLES) + 1) * 32 + 40


# --- scripts --------------------------------------------------------------------------------


def test_training_says_so_and_keeps_no_score_of_classes(binary_root, outdir, capsys):
    (best,) = best_files(outdir)
    state = read_checkpoint(best)
    assert best.name == f"{PREFIX}_{100 * state['metrics']['f1']:.2f}.pth"
    assert state["config"]["num_classes"] == 0
    assert not any(OF_CLASSES.search(name) for name in state["metrics"])
    with next((outdir / "logs").glob("*/metrics.csv")).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert not any(OF_CLASSES.search(name) for name in rows[0])
    assert max(float(row["f1"]) for row in rows) == state["metrics"]["f1"]
    assert load_model(best).semantic_head is None
    argv = train_options(binary_root, outdir, "--load-from", best, "--save-mask")
    metrics = train.main(argv)
    printed = capsys.readouterr().out
    assert "binary change labels (from train/label): the change branch is trained alone" in printed
    assert not re.search("Score|SeK|F_scd", printed)
    assert metrics.f1 == pytest.approx(state["metrics"]["f1"], abs=1e-6)
    assert len(list((outdir / "masks/val/change").iterdir())) == 4


def test_masks_are_black_and_white_and_score_as_they_were_scored(binary_root, outdir, tmp_path):
    folder = outdir / "masks" / "test"
    assert sorted(path.name for path in (folder / "change").iterdir()) == [
        f"{i:05d}.png" for i in range(4)
    ]
    assert not (folder / "im1").exists()
    for path in (folder / "change").iterdir():
        with Image.open(path) as image:
            assert image.mode == "L" and set(np.unique(image)) <= {0, 255}
    printed = json.loads((folder / "metrics.json").read_text())
    for prediction, truth in ((folder, binary_root / "val"), (folder / "change",) * 2):
        argv = ["--prediction", str(prediction), "--label", str(truth), "--bootstrap", "20"]
        result = score.main([*argv, "--versus", str(folder), "--csv", str(tmp_path / "rows.csv")])
        assert "transitions" not in result and np.sum(result["confusion"]) == 4 * SIDE**2
        assert not any(OF_CLASSES.search(name) for name in result["scores"])
        assert set(result["differences"]) == set(result["scores"])
        if truth != prediction:
            found = {name: result["scores"][name]["value"] for name in printed}
            assert found == pytest.approx(printed)
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert not any(OF_CLASSES.search(name) for name in next(csv.reader(file)))


def test_score_text_and_what_change_masks_cannot(binary_root, outdir, capsys):
    argv = ["--prediction", str(outdir / "masks/test"), "--label", str(binary_root / "val")]
    score.main([*argv, "--bootstrap", "0"])
    printed = capsys.readouterr().out
    assert "every pixel once" in printed and "F1 " in printed
    assert not re.search("Score|SeK|F_scd|per class|from→to", printed)
    with pytest.raises(OptionError, match="--matrix transitions: change masks"):
        score.main([*argv, "--matrix", "transitions"])


def test_labels_of_classes_beside_a_folder_label_are_scored_as_such(broken_root, capsys):
    root = broken_root / "val"
    (root / "label").mkdir()
    score.main(["--prediction", str(root), "--label", str(root), "--bootstrap", "0"])
    assert "Score" in capsys.readouterr().out
    masks_in_both(broken_root)
    Image.new("L", (SIDE, SIDE)).save(root / "label/00000.png")
    assert is_mask_folder(root)
    masks = find_masks(root, binary=True)
    assert masks["00001"] == (root / "label1/00001.png", root / "label2/00001.png")


@pytest.mark.parametrize("date", [1, 2])
def test_a_mask_of_one_date_alone_is_not_scored(date, broken_root):
    masks_in_both(broken_root)
    (broken_root / f"val/label{date}/00002.png").unlink()
    with pytest.raises(
        DataError, match=rf"label{3 - date}/00002\.png: no partner in .*label{date}"
    ):
        find_masks(broken_root / "val", binary=True)


def test_finished_masks_are_skipped(binary_root, outdir, tmp_path, capsys):
    shutil.copytree(outdir, tmp_path / "out")
    folder = tmp_path / "out/masks/test"
    predict.main(options(binary_root, tmp_path / "out", "--tta"))  # copies have another age
    before = {path: path.stat().st_mtime_ns for path in (folder / "change").iterdir()}
    expected = (folder / "metrics.json").read_text()
    capsys.readouterr()
    predict.main(options(binary_root, tmp_path / "out", "--tta"))
    assert "4 pairs were finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (folder / "metrics.json").read_text() == expected
    predict.main(options(binary_root, tmp_path / "out", "--tta", "--overwrite"))
    assert all(path.stat().st_mtime_ns != time for path, time in before.items())


@pytest.mark.parametrize(
    ("crash_at", "more"),
    [((1, True), ()), ((2, False), ("--checkpoint-every", 1, "--cache", "disk"))],
)
def test_a_resumed_run_is_the_uninterrupted_one(
    crash_at, more, binary_root, outdir, tmp_path, monkeypatch
):
    class CrashError(Exception):
        pass

    save = Record.save_latest

    def crash(record, trainer):
        save(record, trainer)
        if (trainer.epoch, trainer.validated) == crash_at:
            raise CrashError

    argv = train_options(binary_root, tmp_path, "--epochs", 2, *more)
    monkeypatch.setattr(Record, "save_latest", crash)
    with pytest.raises(CrashError):
        train.main(argv)
    monkeypatch.setattr(Record, "save_latest", save)
    train.main([*argv, "--resume"])
    assert_same_run(tmp_path, outdir)


def test_a_time_limit_that_is_kept_changes_no_mask(binary_root, outdir, tmp_path):
    more = ("--tta", "--time-limit", 1000, "--checkpoints", *best_files(outdir))
    predict.main(options(binary_root, tmp_path, *more))
    paths = sorted((outdir / "masks/test/change").glob("*.png"))
    assert len(paths) == 4
    for path in paths:
        found = tmp_path / "masks/test/change" / path.name
        assert found.read_bytes() == path.read_bytes()


def test_a_run_with_a_head_of_one_class_is_not_gone_on_with(binary_root, outdir, tmp_path):
    shutil.copytree(outdir, tmp_path / "out")
    state = read_checkpoint(latest_file(outdir))
    state["config"]["num_classes"] = 1
    torch.save(state, latest_file(tmp_path / "out"))
    with pytest.raises(OptionError, match="semantic classes is 1, that of these data 0"):
        train.main(train_options(binary_root, tmp_path / "out", "--epochs", 2, "--resume"))


def test_what_needs_classes_is_refused(binary_root, sample_root, outdir, tmp_path):
    (best,) = best_files(outdir)
    with pytest.raises(DataError, match="nothing to vote; pseudo labels need classes"):
        label.main(options(binary_root, outdir))
    with pytest.raises(DataError, match="nothing to vote; pseudo labels need classes"):
        pseudo_accuracy.main(["--data-root", str(binary_root), "--masks", str(tmp_path)])
    with pytest.raises(OptionError, match="pseudo labels are classes"):
        train.main(train_options(binary_root, outdir, "--use-pseudo-label"))
    for main in (label.main, predict.main):
        with pytest.raises(CheckpointError, match="predicts change alone, the data set has class"):
            main(options(sample_root, tmp_path, "--checkpoints", best))
    semantic = small_model(6)
    state = {"format": 1, "config": semantic.config.to_dict(), "model": semantic.state_dict()}
    torch.save(state, tmp_path / "semantic.pth")
    both = ["--checkpoints", best, tmp_path / "semantic.pth"]
    with pytest.raises(CheckpointError, match=r"semantic\.pth: predicts classes"):
        predict.main(options(binary_root, tmp_path, *both))


def test_training_of_classes_starts_from_a_model_of_change(sample_root, outdir, tmp_path, capsys):
    start = outdir / "models" / f"{PREFIX}_latest.pth"
    train.main(train_options(sample_root, tmp_path, "--pretrain-from", start))
    assert f"starting from {start}; semantic_head starts anew" in capsys.readouterr().out
    assert read_checkpoint(best_files(tmp_path)[0])["config"]["num_classes"] == 6


def test_report_tells_of_change_alone(outdir, binary_root):
    page = report.main([str(outdir)]).read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert data["gallery"]["binary"] and data["gallery"]["total"] == 4
    pair = data["gallery"]["pairs"][0]
    assert len(pair["predictions"]) == len(pair["labels"]) == 1
    columns = {chart["column"]: chart["title"] for chart in data["charts"]}
    assert columns["f1"] == "F1" and not any(OF_CLASSES.search(name) for name in columns)
    shown = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert ">F1<" in shown
    assert not re.search(r">(Score|SeK|F_scd)<|from → to|IoU per class", shown)


def test_check_and_converted_copy(binary_root, tmp_path, capsys):
    root = tmp_path / "root"
    shutil.copytree(binary_root, root)
    for path in root.glob("*/label/*.png"):
        Image.fromarray(np.asarray(Image.open(path)) // 255).save(path)  # 0 and 1
    argv = ["--outdir", str(tmp_path / "check"), "--workers", "1"]
    assert check_data.main([str(root), *argv]) == 0
    printed = capsys.readouterr().out
    assert "binary change labels" in printed and "from \\ to" not in printed
    found = json.loads((tmp_path / "check/report.json").read_text())
    assert found["findings"] == [] and found["splits"]["train"]["changed_pixels"] > 0
    assert "transitions" not in found["splits"]["train"]
    assert check_data.main([str(root), "--convert", str(tmp_path / "copy"), *argv]) == 0
    for path in binary_root.glob("*/label/*.png"):
        copy = tmp_path / "copy" / path.relative_to(binary_root)
        assert np.array_equal(np.asarray(Image.open(copy)), np.asarray(Image.open(path)))
    assert load_classes(tmp_path / "copy").is_binary


# --- processes ------------------------------------------------------------------------------


def write_scores(rank: int, data: Path, folder: Path) -> None:
    with join_world("cpu") as world:
        torch.manual_seed(0)
        model = build_model(ModelConfig("fcn", BACKBONE, num_classes=0)).eval()
        dataset = ChangeDetectionDataset(index_pairs(data / "train")[:3], CHANGE_CLASSES)
        loader = evaluation_loader(dataset, 1, 0, False, world.rank, world.size)
        metrics = evaluate(Predictor([model]), loader, CHANGE_CLASSES.num_classes, world)
        (folder / f"{rank}.json").write_text(json.dumps(metrics.to_dict()))


def test_two_processes_have_the_scores_of_one(binary_root, tmp_path):
    for size in (1, 2):
        run_ranks(size, tmp_path / str(size), write_scores, binary_root, tmp_path / str(size))
    found = [(tmp_path / name).read_text() for name in ("1/0.json", "2/0.json", "2/1.json")]
    assert found[0] == found[1] == found[2]
