import time

import pytest
import torch

from engine.predictor import VIEWS, Probabilities, within_time_limit
from utils.dist import STARTED, start_time


class SlowPredictor:
    """Takes a second per pair and view; a pair's factor tells of a busy machine."""

    def __init__(self) -> None:
        self.now, self.factor = 0.0, 1.0
        self.views = VIEWS
        self.used: list[int] = []

    def __call__(self, image1: torch.Tensor, image2: torch.Tensor) -> Probabilities:
        self.used.append(len(self.views))
        self.now += len(image1) * len(self.views) * self.factor
        return Probabilities(image1, image2, torch.zeros(len(image1)))


def run(deadline: float, sizes: tuple[int, ...], factors: tuple[float, ...] = ()) -> tuple:
    """Return the views taken, the measurement first, the views of every batch, and the clock."""
    predictor, views = SlowPredictor(), []
    images = [torch.zeros(n, 3, 2, 2) for n in sizes]
    given = [{"image1": image, "image2": image, "name": ["x"] * len(image)} for image in images]
    limited = within_time_limit(given, predictor, sum(sizes), deadline, lambda: predictor.now)
    for position, (batch, expected) in enumerate(zip(limited, given, strict=True)):
        assert batch is expected
        if position < len(factors):
            predictor.factor = factors[position]
        views.append(predictor.views)
        predictor(batch["image1"], batch["image2"])
    assert all(chosen == VIEWS[: len(chosen)] for chosen in views)
    return predictor.used, [len(chosen) for chosen in views], predictor.now


@pytest.mark.parametrize(
    ("deadline", "expected"),
    [
        (1000, 6),
        (1, 1),
        # 4 s of measuring leave some time, of which 95 % are spent on 10 pairs.
        (4 + 60 / 0.95, 6),
        (4 + 59 / 0.95, 5),
        (4 + 30 / 0.95, 3),
    ],
)
def test_as_many_views_as_there_is_time_for(deadline, expected, capsys):
    used, views, end = run(deadline + 1e-6, (4, 4, 2))
    assert used[0] == 1  # the measurement is a single view
    assert views[0] == expected
    assert min(views) == expected  # none is lost later, when nothing slows down
    assert end <= max(deadline, 4 + 10)
    said, line = capsys.readouterr().out, f"{expected} of 6 views from pair 0 on, to end in time\n"
    assert said.startswith(line) if expected < 6 else said == ""
    assert run(1000, ())[1] == []


def test_views_go_when_the_machine_slows_down(capsys):
    _, views, _ = run(80, (4, 4, 4), factors=(1, 4, 4))
    assert views == [6, 6, 1]
    assert capsys.readouterr().out == "1 of 6 views from pair 8 on, to end in time\n"


def test_views_come_back_when_there_is_time_after_all(capsys):
    _, views, end = run(40, (2, 2, 2, 2), factors=(0.2, 0.2, 0.2, 0.2))
    assert views[0] < 6 and views[2:] == [6, 6]
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert end <= 40


# The limit counts from the start of the script that the user called


def test_the_start_is_now_or_that_of_the_launcher(monkeypatch):
    before = time.time()
    assert before <= start_time() <= time.time()
    monkeypatch.setenv(STARTED, repr(before - 7))
    assert start_time() == before - 7
