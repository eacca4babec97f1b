"""How much changed, and how often changed pixels keep their class, as training labels show it."""

import json

import numpy as np
import pytest
from PIL import Image

from datasets.bands import Bands
from datasets.cache import FileReader
from datasets.classes import SECOND_CLASSES
from datasets.dataset import ChangeDetectionDataset
from datasets.pairs import index_pairs
from datasets.statistics import changed_pairs, measure_changes
from datasets.task import Task, load_task
from tests.helpers.change_sets import leave_unchanged
from tests.helpers.raster_files import HEIGHT, WIDTH, noise, write_tiff


def write_pair(root, name, label1, label2) -> None:
    for folder in ("im1", "im2", "label1", "label2"):
        (root / "train" / folder).mkdir(parents=True, exist_ok=True)
        image = np.zeros((*np.shape(label1), 3), np.uint8)
        values = {"label1": label1, "label2": label2}.get(folder, image)
        Image.fromarray(np.asarray(values, np.uint8)).save(root / "train" / folder / f"{name}.png")


def measured(root) -> tuple[float, float]:
    colors = [[i, i, i] for i in (0, 10, 20)]
    entries = [{"name": f"c{i}", "color": color} for i, color in enumerate(colors)]
    (root / "classes.json").write_text(json.dumps(entries), encoding="utf-8")
    dataset = ChangeDetectionDataset(index_pairs(root / "train"), load_task(root))
    found = measure_changes(dataset)
    return found.same_class, found.by_chance


@pytest.mark.parametrize(
    ("label1", "label2", "weight", "by_chance"),
    [
        ([1, 2, 0, 0], [2, 1, 0, 0], 0.0, 0.5),  # no such change
        ([1, 1, 0, 0], [2, 2, 0, 0], 0.0, 0.5),
        ([0, 0, 0, 0], [0, 0, 0, 0], 0.0, 0.5),  # no change at all
        ([1, 1, 2, 2], [1, 2, 1, 2], 1.0, 0.5),  # as by chance
        ([1, 2, 1, 2], [1, 2, 1, 2], 1.0, 0.5),  # nothing else
        ([1, 1, 1, 1], [1, 1, 1, 1], 1.0, 1.0),
        ([1, 1, 2, 2, 1], [1, 2, 1, 1, 2], 1 / 4 / (13 / 12), 13 / 25),
    ],
)
def test_it_is_the_odds_of_one_class_over_those_by_chance(
    label1, label2, weight, by_chance, tmp_path
):
    write_pair(tmp_path, "a", [label1], [label2])
    assert measured(tmp_path) == pytest.approx((weight, by_chance))


def test_pairs_count_together_and_a_damaged_one_is_left_to_training(tmp_path):
    write_pair(tmp_path, "a", [[1, 1]], [[1, 2]])
    write_pair(tmp_path, "b", [[2, 2]], [[1, 1]])
    found = measured(tmp_path)
    write_pair(tmp_path, "c", [[1, 1]], [[1, 0]])  # disagree on what changed
    assert 0 < found[0] < 1 and measured(tmp_path) == found


def test_share_and_pairs_are_those_of_the_labels_as_often_as_they_are_drawn(broken_root):
    leave_unchanged(broken_root, "00002", "00007")
    pairs = index_pairs(broken_root / "train")
    shares = {p: np.mean(np.any(np.array(Image.open(p.label1)) != 255, axis=-1)) for p in pairs}
    dataset = ChangeDetectionDataset(pairs, Task(SECOND_CLASSES))
    changed = [pair for pair in pairs if shares[pair]]
    assert changed_pairs(dataset) == changed and len(changed) == 10
    once = measure_changes(dataset)
    assert once.share == pytest.approx(np.mean(list(shares.values())))
    dataset.pairs += changed
    often = measure_changes(dataset)
    assert often.share == pytest.approx(np.mean([shares[pair] for pair in dataset.pairs]))
    assert often[1:] == once[1:]


def test_pixels_without_data_do_not_count_in_images_of_any_kind(write_pairs):
    folder = write_pairs({"a": (HEIGHT, WIDTH)})
    for date in (1, 2):
        (folder / f"im{date}/a.png").unlink()
        values = noise(4, seed=date) | 1
        values[:, : 2 * date] = 0
        write_tiff(folder / f"im{date}/a.tif", values, photometric="minisblack", nodata=0)
    reader = FileReader(SECOND_CLASSES, Bands((1, 2, 3, 4), 16))
    dataset = ChangeDetectionDataset(index_pairs(folder), Task(SECOND_CLASSES), reader=reader)
    label = np.array(Image.open(folder / "label1/a.png"))
    assert measure_changes(dataset).share == pytest.approx((label[:, 4:] > 0).mean())
    assert changed_pairs(dataset) == dataset.pairs
    label[:, 4:] = 0
    for date in (1, 2):
        Image.fromarray(label).save(folder / f"label{date}/a.png")
    assert changed_pairs(dataset) == [] and measure_changes(dataset).share == 0
