"""How often changed pixels keep their class, as training labels show it."""

import json

import numpy as np
import pytest
from PIL import Image

from datasets.dataset import ChangeDetectionDataset
from datasets.pairs import index_pairs
from datasets.statistics import measure_changes
from datasets.task import load_task


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
    return found["same_class"], found["by_chance"]


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
