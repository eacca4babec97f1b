from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.bands import RGB, Bands, Imagery
from datasets.classes import CHANGE_CLASSES, PRESETS, ClassList
from datasets.images import save_raster
from datasets.task import Task
from engine.config import DECODE
from engine.ensemble import (
    bands_to_read,
    check_classes,
    choose_decoding,
    choose_ensemble,
    describe,
    describe_all,
    epochs_chosen,
    find_best_checkpoints,
    warn_of_leakage,
)
from models.change_detector import ModelConfig
from models.checkpoint import Checkpoint, open_checkpoint
from models.decoding import INDEPENDENT, Decoding
from tests.helpers.band_models import STATISTICS, checkpoint_of
from tests.helpers.checkpoints import CLASSES, write_model
from utils.errors import CheckpointError, DataError
from utils.tensor_files import read_checkpoint, save_checkpoint


def task_of(*names: str) -> Task:
    return Task(ClassList(names, tuple((i, i, i) for i in range(len(names)))))


OWN = task_of(*CLASSES["names"])


def test_best_of_every_run_forms_the_ensemble(tmp_path):
    write_model(tmp_path / "x_10.00.pth", run="a", score=0.10)
    write_model(tmp_path / "x_30.00.pth", run="a", score=0.30)  # a killed run left two
    write_model(tmp_path / "y_20.00.pth", run="b", score=0.20)
    write_model(tmp_path / "y_latest.pth", run="b", score=0.40)
    write_model(tmp_path / "z_-1.00.pth", run="c", score=-0.01)
    (tmp_path / ".x_40.00.pth.abc.tmp").write_bytes(b"half")
    for found in (find_best_checkpoints(tmp_path), choose_ensemble(None, tmp_path, OWN)):
        names = [checkpoint.path.name for checkpoint in found]
        assert names == ["x_30.00.pth", "y_20.00.pth", "z_-1.00.pth"]
    with pytest.raises(CheckpointError, match="no checkpoints in it; train a model first"):
        find_best_checkpoints(tmp_path / "models")


@pytest.mark.parametrize("students", [True, False])
def test_students_test_and_teachers_label(students, tmp_path, capsys):
    write_model(tmp_path / "a.pth", run="a")
    (tmp_path / "old.pth").write_bytes((tmp_path / "a.pth").read_bytes())
    state = read_checkpoint(tmp_path / "a.pth")
    for name, run, told in (("old", "o", {}), ("b", "b", {"pseudo_labels": True})):
        state = {k: v for k, v in state.items() if k != "pseudo_labels"} | {"run": run} | told
        save_checkpoint(tmp_path / f"{name}.pth", state)

    def chosen(paths: list[Path] | None = None) -> list[str]:
        found = choose_ensemble(paths, tmp_path, OWN, students)
        return [checkpoint.path.stem for checkpoint in found]

    kind, left = ("without", "a.pth, old.pth") if students else ("with", "b.pth")
    assert chosen() == (["b"] if students else ["a", "old"])
    line = f"left out, trained {kind} pseudo labels: {left}; --checkpoints takes any\n"
    assert capsys.readouterr().out == line
    every = sorted(tmp_path.glob("*.pth"))
    assert chosen(every) == ["a", "b", "old"]
    for path in every:  # of one kind alone, whichever it is
        if (path.stem == "b") == students:
            path.unlink()
    assert chosen() == (["a", "old"] if students else ["b"])
    assert capsys.readouterr().out == ""


def test_other_classes_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    write_model(path)
    assert len(choose_ensemble([path] * 2, tmp_path, OWN)) == 2
    foreign = open_checkpoint(path)._replace(info={})
    check_classes(foreign, task_of("unchanged", "a", "b"))
    for checkpoint, task, message in (
        (None, task_of("unchanged", "forest", "water"), "trained on the classes unchanged, water"),
        (foreign, task_of("unchanged", "a", "b", "c"), "predicts 2 classes, the data set has 3"),
        (None, Task(CHANGE_CLASSES), "predicts classes, the data set has change masks alone"),
    ):
        with pytest.raises(CheckpointError, match=rf"a\.pth: {message}"):
            check_classes(checkpoint or open_checkpoint(path), task)


def test_one_order_of_classes_does_not_vote_with_another(tmp_path):
    path = tmp_path / "a.pth"
    write_model(path)
    checkpoint = open_checkpoint(path)
    other = task_of(CLASSES["names"][0], *CLASSES["names"][:0:-1])
    with pytest.raises(CheckpointError, match="in another order: convert the data"):
        check_classes(checkpoint, other)
    six = replace(checkpoint.config, num_classes=6)
    published = checkpoint._replace(config=six, info={})
    orders = [Task(PRESETS[name].classes) for name in ("second", "second-changemamba-order")]
    check_classes(published, orders[0])
    with pytest.raises(CheckpointError, match="trained on the classes unchanged, water, ground"):
        check_classes(published, orders[1])


def test_scores_say_on_what_the_epoch_was_chosen(tmp_path):
    write_model(tmp_path / "a.pth")
    own = open_checkpoint(tmp_path / "a.pth")
    val = own.info["split"]["val"]
    foreign, last = own._replace(info={}), own._replace(info={**own.info, "training": {}})
    assert epochs_chosen([own, own], val) == "epoch chosen on these pairs"
    assert (
        epochs_chosen([own], [*val, "train/other"]) == f"epoch chosen on {len(val)} of these pairs"
    )
    assert epochs_chosen([own], ["test/1"]) == f"epoch chosen on {len(val)} other pairs"
    assert epochs_chosen([foreign, last], val) == (
        "epoch chosen on unknown pairs (1 of 2), last epoch, not chosen (1 of 2)"
    )


def test_leakage_is_named_once_per_checkpoint(tmp_path, capsys):
    write_model(tmp_path / "a.pth")
    checkpoint = open_checkpoint(tmp_path / "a.pth")
    warn_of_leakage([checkpoint, checkpoint._replace(info={})], ["train/1", "train/2"])
    warn_of_leakage([checkpoint], ["val/1"])
    assert capsys.readouterr().out.splitlines() == [
        f"warning: leakage: {checkpoint.path} was trained on 1 of the 2 pairs; scores on them will "
        "be too high"
    ]


def test_descriptions_say_where_scores_are_from(tmp_path):
    write_model(tmp_path / "a.pth", score=0.3874, lightweight=True)
    opened = open_checkpoint(tmp_path / "a.pth")
    plain = "a.pth  (fcn test_convnext lightweight"
    assert describe(opened).endswith(f"{plain}, epoch 7, Score 38.74 on split folders)")
    foreign = opened._replace(info={})
    assert describe(foreign).endswith(f"{plain})")
    latest = opened._replace(info={**opened.info, "training": {}})
    assert ", best Score 38.74" in describe(latest)
    split = {"protocol": "k-fold(k=5, fold=0, seed=0)", "train": [], "val": ["train/1"]}
    other = opened._replace(info={**opened.info, "split": split})
    assert len(describe_all([opened, foreign, opened]).splitlines()) == 3
    lines = describe_all([opened, other]).splitlines()
    assert lines[1].endswith("Score 38.74 on split k-fold(k=5, fold=0, seed=0))")
    assert "different validation pairs" in lines[2]


@pytest.fixture
def deep(tmp_path) -> Path:
    """An image of four bands of 16 bits."""
    save_raster(tmp_path / "deep.png", np.zeros((8, 8, 4), np.uint16))
    return tmp_path / "deep.png"


def test_an_ensemble_reads_what_all_its_models_need(deep):
    statistics = ((1.0, 2.0), (3.0, 4.0))
    some = [Imagery(Bands(numbers, 16), *statistics) for numbers in ((4, 2), (1, 2))]
    assert bands_to_read([checkpoint_of(i) for i in some], deep) == Bands((1, 2, 4), 16)
    assert bands_to_read([checkpoint_of(some[0])], deep) == Bands((4, 2), 16)


def test_checkpoints_that_do_not_fit_the_data_or_each_other(deep, tmp_path):
    shallow = tmp_path / "shallow.png"
    Image.new("RGB", (8, 8)).save(shallow)
    rgb, four = checkpoint_of(path="rgb.pth"), checkpoint_of(STATISTICS, "four.pth")
    fifth = checkpoint_of(Imagery(Bands((5,), 16), (1,), (1,)))
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "float.tif")
    foreign = rgb._replace(config=ModelConfig("fcn", "test_convnext", in_channels=4))
    for checkpoints, image, error, message in (
        ([four], shallow, DataError, f"four.pth does not fit the data: {shallow}: has 3 bands"),
        ([rgb], deep, DataError, f"rgb.pth does not fit the data: {deep}: has 4 bands of 16 bits"),
        ([rgb], tmp_path / "float.tif", DataError, "float32 values; save all .* gdal_translate"),
        ([fifth], deep, DataError, "has 4 bands of 16 bits, but band 5 of 16 bits"),
        ([four, rgb], deep, CheckpointError, "rgb.pth: trained on 8-bit images, four.pth on 16"),
        ([foreign], shallow, CheckpointError, "takes 4 bands, but does not say which"),
    ):
        with pytest.raises(error, match=message):
            bands_to_read(checkpoints, image)


def test_grey_and_alpha_are_not_read_in_two_ways_at_once(tmp_path):
    image = tmp_path / "a.png"
    Image.fromarray(np.zeros((8, 8, 2), np.uint8), "LA").save(image)
    rgb, two = checkpoint_of(), checkpoint_of(Imagery(Bands((1, 2)), (1.0, 2.0), (3.0, 4.0)))
    for alone in (rgb, two):
        assert bands_to_read([alone, alone], image) == alone.config.imagery.bands
    for checkpoints in ([rgb, two], [two, rgb]):
        with pytest.raises(DataError, match=f"^{image}: has 2 bands, which cannot be read as band"):
            bands_to_read(checkpoints, image)
    one = checkpoint_of(Imagery(Bands((1,)), (1.0,), (2.0,)))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(image)
    assert bands_to_read([rgb, one], image) == RGB  # grey is each of the three


def deciding(*decodings: Decoding | None, classes: int = 6, **info) -> list[Checkpoint]:
    """Checkpoints of these decodings; of None one that does not tell."""
    told = [{"decoding": asdict(each)} if each else {} for each in decodings]
    config = ModelConfig("fcn", "x", num_classes=classes)
    return [Checkpoint(Path(), config, {}, each | info) for each in told]


def test_an_ensemble_decodes_as_it_was_validated():
    joint, other = Decoding("joint", 0.5, 0.6, 0.0, 0.2), Decoding("joint", 0.25, 0.5, 0.5, 0.4)
    mean = Decoding("joint", 0.375, 0.55, 0.25, pytest.approx(0.3))
    assert choose_decoding(None, deciding(joint, other)) == mean
    assert choose_decoding("independent", deciding(joint)).name == "independent"
    both = [replace(each, name="independent") for each in (joint, other)]
    assert choose_decoding("joint", deciding(*both)) == mean
    assert choose_decoding(None, deciding(joint, INDEPENDENT)).name == DECODE
    assert choose_decoding(None, deciding(None)).name == DECODE
    foreign = choose_decoding("joint", deciding(None, classes=4))
    assert foreign == Decoding("joint", by_chance=0.25)


def test_what_cannot_be_decoded_jointly_is_not():
    joint = Decoding("joint")
    for classes in (0, 1):
        assert choose_decoding("joint", deciding(joint, classes=classes)) == INDEPENDENT
    one_date = deciding(joint, labelled_dates={"training": [2], "validation": [1, 2]})
    assert choose_decoding("joint", one_date) == INDEPENDENT
