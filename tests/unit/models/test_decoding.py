"""Joint decoding against all pairs of classes, one by one, and what must not change beside it."""

import itertools

import pytest
import torch

from models.decoding import (
    INDEPENDENT,
    Decoding,
    _correct_all,
    _correct_few,
    best_pair,
    decode,
    joint_change_probs,
)

JOINT = Decoding("joint")


def draw(classes: int, seed: int, ties: bool = False, pixels: int = 400):
    """Probabilities in float64, (1, C, 1, pixels) twice and (1, 1, pixels); maybe many equal."""
    generator = torch.Generator().manual_seed(seed)
    if ties:
        semantic = torch.randint(0, 3, (2, 1, classes, 1, pixels), generator=generator) / 4.0
    else:
        logits = torch.randn(2, 1, classes, 1, pixels, generator=generator, dtype=torch.float64)
        semantic = (3 * logits).softmax(dim=2)
        semantic[1, ..., ::2] = semantic[0, ..., ::2]  # dates that agree, as most do
    change = torch.rand(1, 1, pixels, generator=generator, dtype=torch.float64)
    return *semantic.double(), change


def enumerate_pixel(p1, p2, q, decoding):
    """The probability of change and the best pair of one pixel, over all fates there are."""
    classes = range(len(p1))
    unchanged = sum(p1[c] * p2[c] for c in classes)
    pairs = {
        (a, b): p1[a] * p2[b] * (decoding.same_class if a == b else 1)
        for a, b in itertools.product(classes, classes)
        if a != b or decoding.same_class
    }
    by_chance = decoding.by_chance
    before = (1 - by_chance + decoding.same_class * by_chance) / by_chance
    odds = q / (1 - q) * (sum(pairs.values()) / unchanged / before) ** decoding.evidence
    best = max(pairs, key=lambda pair: (pairs[pair], -pair[0], -pair[1]))
    return odds / (1 + odds), best


@pytest.mark.parametrize("same_class", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("evidence", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("classes", [2, 6])
def test_it_is_the_best_of_all_pairs(classes, evidence, same_class):
    decoding = Decoding("joint", evidence, 0.6, same_class, by_chance=0.3)
    probs = draw(classes, seed=classes)
    pred1, pred2 = decode(probs, decoding)
    chances = joint_change_probs(*probs, decoding)
    p1, p2 = (p[0, :, 0].T.tolist() for p in probs[:2])
    expected = [
        enumerate_pixel(*pixel, decoding)
        for pixel in zip(p1, p2, probs[2].flatten().tolist(), strict=True)
    ]
    assert chances.flatten().tolist() == pytest.approx([chance for chance, _ in expected])
    pairs = [(a + 1, b + 1) if chance >= 0.6 else (0, 0) for chance, (a, b) in expected]
    assert list(zip(pred1.flatten().tolist(), pred2.flatten().tolist(), strict=True)) == pairs
    assert pred1.dtype == pred2.dtype == torch.uint8
    kept = (pred1 == pred2) & (pred1 > 0)
    assert bool(kept.any()) == (same_class > 0)


@pytest.mark.parametrize("same_class", [0.0, 0.5, 1.0])
def test_of_equal_pairs_the_lower_classes_count(same_class):
    semantic1, semantic2, _ = draw(4, seed=1, ties=True)
    everywhere = torch.ones(semantic1[:, 0].shape, dtype=torch.bool)
    for dtype in (torch.float32, torch.float64):  # quarters are exact in both
        found = best_pair(semantic1.to(dtype), semantic2.to(dtype), everywhere, same_class)
        for p1, p2, *pair in zip(
            *(p[0, :, 0].T.tolist() for p in (semantic1, semantic2)),
            *(c.flatten().tolist() for c in found),
            strict=True,
        ):
            weights = {
                (a, b): p1[a] * p2[b] * (same_class if a == b else 1)
                for a, b in itertools.product(range(4), range(4))
                if a != b or same_class
            }
            best = max(weights.values())
            assert weights[tuple(pair)] == best
            equals = [pair for pair, weight in weights.items() if weight == best]
            if best:
                assert tuple(pair) == min(equals)
            if not same_class:
                assert pair[0] != pair[1]


@pytest.mark.parametrize("same_class", [0.0, 0.5])
@pytest.mark.parametrize("ties", [False, True])
def test_every_device_finds_the_same_pairs(ties, same_class):
    semantic1, semantic2, change = draw(5, seed=3, ties=ties)
    probs = (semantic1.float(), semantic2.float())
    class1, class2 = (p.argmax(dim=1) for p in probs)
    alike = (class1 == class2) & (change > 0.4)
    assert 0 < alike.sum() < alike.numel()
    few = _correct_few(probs, (class1.clone(), class2.clone()), alike, same_class)
    assert all(map(torch.equal, _correct_all(probs, (class1, class2), alike, same_class), few))


def test_no_other_device_than_the_cpu_is_waited_for():
    # Without values there is nothing to wait for: what has to know one fails.
    semantic, change = torch.rand(2, 6, 4, 5, device="meta"), torch.rand(2, 4, 5, device="meta")
    maps = decode((semantic, semantic, change), Decoding("joint", same_class=0.5))
    assert [(pred.shape, pred.dtype) for pred in maps] == [((2, 4, 5), torch.uint8)] * 2


@pytest.mark.parametrize(
    ("change", "semantic1", "semantic2", "expected"),
    [
        (0.0, [1.0, 0.0, 0.0], [1.0, 0.0, 0.0], (0, 0)),
        (1.0, [1.0, 0.0, 0.0], [1.0, 0.0, 0.0], (1, 2)),  # as likely as all but (1, 1)
        (1.0, [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], (1, 3)),
        (0.0, [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], (0, 0)),  # neither can be: q counts more
        (0.5, [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], (1, 3)),
        (0.5, [0.0, 0.0, 1.0], [0.0, 0.0, 1.0], (0, 0)),
    ],
)
def test_certainty_is_no_trap(change, semantic1, semantic2, expected):
    probs = [torch.tensor(p).view(1, 3, 1, 1) for p in (semantic1, semantic2)]
    probs.append(torch.tensor(change).view(1, 1, 1))
    assert joint_change_probs(*probs, JOINT).isfinite().all()
    pred1, pred2 = decode(probs, JOINT)
    assert (pred1.item(), pred2.item()) == expected


def test_independent_decoding_is_what_it_was():
    for ties in (False, True):
        semantic1, semantic2, change = (p.float() for p in draw(6, seed=2, ties=ties))
        change[..., :9] = 0.5  # of which a pixel is changed
        changed = change >= 0.5
        before = [((p.argmax(dim=1) + 1) * changed).to(torch.uint8) for p in (semantic1, semantic2)]
        for found in (
            decode((semantic1, semantic2, change)),
            decode((semantic1, semantic2, change), INDEPENDENT),
        ):
            assert all(map(torch.equal, found, before))


@pytest.mark.parametrize("classes", [0, 1])
def test_without_two_classes_there_is_nothing_to_join(classes):
    change = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0))
    semantic = torch.ones(2, 1, 3, 5) if classes else None
    found = decode((semantic, semantic, change), JOINT)
    assert all(torch.equal(pred, (change >= 0.5).to(torch.uint8)) for pred in found)
    assert len(found) == 1 + classes


def test_dates_that_know_no_class_say_nothing_of_change():
    for classes in (2, 6):
        semantic = torch.full((1, classes, 1, 1), 1 / classes)
        change = torch.full((1, 1, 1), 0.3)
        for same_class in (0.0, 0.5, 1.0):
            decoding = Decoding("joint", 1.0, 0.5, same_class, by_chance=1 / classes)
            found = joint_change_probs(semantic, semantic, change, decoding)
            assert torch.allclose(found, change)


def test_title():
    assert INDEPENDENT.title == "independent"
    joint = Decoding("joint", by_chance=0.2)
    assert joint.title == "joint (evidence 0.5, threshold 0.5, by chance 0.2)"
    within = Decoding("joint", 1.0, 0.6, 0.125, 0.25).title
    assert within == "joint (evidence 1, threshold 0.6, same class 0.125, by chance 0.25)"
