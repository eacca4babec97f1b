import os
import time

import pytest
import torch

from engine.predictor import VIEWS, Probabilities, views_within, within_time_limit
from utils import dist
from utils.dist import STARTED, start_time


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class SlowPredictor:
    """Takes a second per pair and view; a pair's factor tells of a busy machine."""

    def __init__(self, clock: Clock, views=VIEWS) -> None:
        self.clock = clock
        self.views = views
        self.used: list[int] = []
        self.factor = 1.0

    def __call__(self, image1: torch.Tensor, image2: torch.Tensor) -> Probabilities:
        self.used.append(len(self.views))
        self.clock.now += len(image1) * len(self.views) * self.factor
        return Probabilities(image1, image2, torch.zeros(len(image1)))


def batches(*sizes: int) -> list[dict]:
    return [
        {"image1": torch.zeros(n, 3, 2, 2), "image2": torch.zeros(n, 3, 2, 2), "name": ["x"] * n}
        for n in sizes
    ]


def run(deadline: float, sizes: tuple[int, ...], factors: tuple[float, ...] = ()) -> tuple:
    """Return the predictor, the views of every batch, what was said, and the clock."""
    clock, said = Clock(), []
    predictor = SlowPredictor(clock)
    limited = within_time_limit(
        batches(*sizes), predictor, sum(sizes), deadline, said.append, clock
    )
    views = []
    for position, batch in enumerate(limited):
        if position < len(factors):
            predictor.factor = factors[position]
        views.append(predictor.views)
        predictor(batch["image1"], batch["image2"])
    return predictor, views, said, clock.now


def test_enough_time_keeps_all_views():
    _, views, said, _ = run(1000, (4, 4, 2))
    assert views == [VIEWS] * 3
    assert said == []


def test_too_little_time_leaves_one_view():
    predictor, views, said, _ = run(1, (4, 4, 2))
    assert views == [VIEWS[:1]] * 3
    assert said == ["1 of 6 views from pair 0 on, to end in time"]
    assert predictor.used == [1] * 4  # the measurement is a single view, too


def test_some_time_keeps_some_views_and_ends_in_time():
    _, views, said, end = run(44, (4, 4, 2))
    # 4 s of measuring leave 40 s, of which 38 s are spent: 3 views of 10 pairs.
    assert views[0] == VIEWS[:3]
    assert all(chosen == VIEWS[: len(chosen)] for chosen in views)
    assert end <= 44
    assert said[0] == "3 of 6 views from pair 0 on, to end in time"


def test_views_go_when_the_machine_slows_down():
    _, views, said, _ = run(80, (4, 4, 4), factors=(1, 4, 4))
    assert [len(chosen) for chosen in views[:2]] == [6, 6]
    assert len(views[2]) == 1
    assert said == ["1 of 6 views from pair 8 on, to end in time"]


def test_views_come_back_when_there_is_time_after_all():
    _, views, said, end = run(40, (2, 2, 2, 2), factors=(0.2, 0.2, 0.2, 0.2))
    assert len(views[0]) < 6
    assert [len(chosen) for chosen in views[2:]] == [6, 6]
    assert len(said) == 1
    assert end <= 40


@pytest.mark.parametrize("deadline", [1, 20, 44, 1000])
def test_every_batch_is_passed_on_once_and_in_order(deadline):
    clock = Clock()
    predictor = SlowPredictor(clock)
    given = batches(4, 4, 2)
    limited = within_time_limit(given, predictor, 10, deadline, lambda text: None, clock)
    assert all(a is b for a, b in zip(limited, given, strict=True))


def test_no_batches():
    assert list(within_time_limit([], SlowPredictor(Clock()), 0, 10, print, Clock())) == []


@pytest.mark.parametrize(
    ("remaining_s", "pairs", "view_s", "expected"),
    [(60, 10, 1, 5), (64, 10, 1, 6), (1000, 10, 1, 6), (9, 10, 1, 1), (-5, 10, 1, 1), (5, 0, 1, 6)],
)
def test_views_within(remaining_s, pairs, view_s, expected):
    assert views_within(remaining_s, pairs, view_s, 6) == expected


def test_a_fresh_clock_reading_of_zero_is_no_error():
    assert views_within(10, 10, 0, 6) == 6


# The limit counts from the start of the script that the user called


def test_alone_the_start_is_now():
    before = time.perf_counter()
    assert before <= start_time() <= time.perf_counter()


def test_processes_count_from_the_start_of_their_launcher(monkeypatch):
    seen = []
    monkeypatch.setattr(dist, "_launch", lambda *arguments: seen.append(start_time()))
    began = time.perf_counter() - 7  # the launcher has been loading torch
    dist.run_script("test.py", [], 2, "cpu", lambda world: None, began)
    assert seen == [pytest.approx(began, abs=1)]
    dist.launch("test.py", [], 2)
    assert seen[1] == pytest.approx(time.perf_counter(), abs=1)
    assert STARTED not in os.environ


def test_a_clock_set_back_gives_no_start_in_the_future(monkeypatch):
    monkeypatch.setenv(STARTED, str(time.time() + 1000))
    before = time.perf_counter()
    assert before <= start_time() <= time.perf_counter()
