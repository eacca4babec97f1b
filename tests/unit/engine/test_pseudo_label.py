from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.labelling import (
    Coverage,
    count_votes,
    hard_votes,
    merge_labels,
    soft_vote,
)


def test_pseudo_labels_are_the_published_ones():
    with np.load(Path(__file__).parents[2] / "data" / "votes.npz") as figures:
        maps = {name: torch.from_numpy(value) for name, value in figures.items()}
    # Predictions of the published ensemble are class maps, numbered as the labels.
    vote = count_votes(hard_votes(maps["prediction1"], maps["prediction2"]), 6)
    for date in (1, 2):
        merged = merge_labels(maps[f"label{date}"], vote)
        assert torch.equal(merged, maps[f"pseudo_label{date}"])
        assert merged.dtype == torch.uint8


@pytest.mark.parametrize(
    ("entries", "winner"),
    [((3,), 3), ((2, 5, 5), 5), ((5, 2), 2), ((0, 4), 0), ((0, 4, 4), 4), ((0, 0, 3, 3, 5), 0)],
)
def test_winner_of_a_vote(entries, winner):
    # Ties go to the lower index, and an abstention counts like a class.
    assert count_votes(torch.tensor(entries).view(-1, 1), 6).tolist() == [winner]


def test_votes_equal_a_count_per_pixel():
    entries = torch.randint(0, 5, (6, 3, 8, 9), generator=torch.Generator().manual_seed(0))
    result = count_votes(entries.to(torch.uint8), 4)
    assert result.dtype == torch.uint8
    for n, y, x in np.ndindex(3, 8, 9):
        counted = Counter(entries[:, n, y, x].tolist())
        assert result[n, y, x] == min(counted, key=lambda entry: (-counted[entry], entry))


def test_a_model_abstains_where_its_dates_disagree():
    maps1, maps2 = torch.tensor([[1, 2, 3]]), torch.tensor([[1, 3, 3]])
    assert hard_votes(maps1, maps2).tolist() == [[1, 0, 3]]


@pytest.mark.parametrize(("threshold", "expected"), [(0.0, 2), (0.5, 2), (0.625, 2), (0.63, 0)])
def test_soft_vote_needs_the_confidence(threshold, expected):
    # The mean over both dates is (0.375, 0.625).
    probs1, probs2 = torch.tensor([0.75, 0.25]), torch.tensor([0.0, 1.0])
    vote = soft_vote(probs1.view(1, 2, 1, 1), probs2.view(1, 2, 1, 1), threshold)
    assert vote.dtype == torch.uint8
    assert vote.tolist() == [[[expected]]]


def test_soft_vote_is_the_likeliest_class_of_both_dates():
    generator = torch.Generator().manual_seed(0)
    probs1, probs2 = torch.rand(2, 3, 5, 6, 7, generator=generator).softmax(dim=2)
    expected = (probs1 + probs2).argmax(dim=1) + 1
    assert torch.equal(soft_vote(probs1, probs2, 0.0).long(), expected)


def test_ground_truth_is_never_overruled():
    label, vote = torch.tensor([0, 3, 0], dtype=torch.uint8), torch.tensor([5, 5, 0])
    merged = merge_labels(label, vote.to(torch.uint8))
    assert merged.tolist() == [5, 3, 0]
    assert merged.dtype == torch.uint8


def test_coverage_equals_a_count_per_pixel():
    generator = torch.Generator().manual_seed(0)
    coverage = Coverage(3)
    labelled, voted = np.zeros(4, int), np.zeros(4, int)
    for _ in range(3):
        mask = torch.rand(2, 5, 6, generator=generator) < 0.4
        label1, label2 = (
            (torch.randint(1, 4, (2, 5, 6), generator=generator) * mask).to(torch.uint8)
            for _ in range(2)
        )
        vote = torch.randint(0, 4, (2, 5, 6), generator=generator).to(torch.uint8)
        coverage.update(label1, label2, vote)
        for label in (label1, label2):
            for truth, choice in zip(label.flatten(), vote.flatten(), strict=True):
                labelled[truth] += 1
                voted[choice] += int(truth == 0)
    assert coverage.labelled.tolist() == labelled.tolist()
    assert coverage.voted.tolist() == voted.tolist()


def test_coverage_table_has_a_row_per_class():
    coverage = Coverage(3)
    table = "% of pixels  labelled  voted  after\n-----------------------------------\n"
    names = ("unchanged", "water", "tree", "roof")
    assert coverage.table(names).startswith(f"{table}water            0.00   0.00   0.00\n")
    coverage.labelled = torch.tensor([5, 1, 2, 0])
    coverage.voted = torch.tensor([1, 0, 1, 3])
    assert coverage.table(names) == (
        f"{table}"
        "water           12.50   0.00  12.50\n"
        "tree            25.00  12.50  37.50\n"
        "roof             0.00  37.50  37.50\n"
        "all             37.50  50.00  87.50\n"
        "unlabelled      62.50         12.50"
    )
