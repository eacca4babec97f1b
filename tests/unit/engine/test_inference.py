import pytest
import torch
from torch import nn

from engine.predictor import (
    IDENTITY,
    VIEWS,
    Predictor,
    Probabilities,
    apply_view,
    undo_view,
)
from models.change_detector import ModelConfig, build_model
from models.decoding import decode

CLASSES = 5


class Pointwise(nn.Module):
    """Each pixel's logits follow from that pixel alone, so that no view changes them."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.semantic = nn.Conv2d(3, CLASSES, 1)
        self.change = nn.Conv2d(3, 1, 1)
        self.passes: list[int] = []

    def forward(self, image1: torch.Tensor, image2: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.passes.append(len(image1))
        image1, image2 = image1 / 64, image2 / 64
        change = self.change((image1 - image2).abs()).squeeze(1)
        return self.semantic(image1), self.semantic(image2), change


class SmallMemory(Pointwise):
    """Runs out of memory above a number of pairs."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.failures = 0

    def forward(self, image1: torch.Tensor, image2: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if len(image1) > self.limit:
            self.failures += 1
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(image1, image2)


def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) for _ in range(2)
    )


def assert_equal(probs: Probabilities, expected: Probabilities, tolerance: float = 1e-6) -> None:
    for value, other in zip(probs, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=tolerance)


def test_views_are_the_published_six():
    x = torch.arange(6).view(2, 3)
    published = [x, x.flip(-1), x.flip(-2), *(x.rot90(turns, (-2, -1)) for turns in (1, 2, 3))]
    seen = {tuple(map(tuple, apply_view(x, view).tolist())) for view in VIEWS}
    assert len(VIEWS) == 6
    assert seen == {tuple(map(tuple, view.tolist())) for view in published}
    assert VIEWS[0] == IDENTITY[0] == (False, 0)


def test_probabilities_have_the_promised_form():
    probs = Predictor([Pointwise()], VIEWS)(*pair(2, 3, 8, 12))
    assert probs.semantic_probs1.shape == probs.semantic_probs2.shape == (2, CLASSES, 8, 12)
    assert probs.change_probs.shape == (2, 8, 12)
    torch.testing.assert_close(probs.semantic_probs1.sum(dim=1), torch.ones(2, 8, 12))
    assert all(value.dtype == torch.float32 for value in probs)
    assert probs.change_probs.min() >= 0 and probs.change_probs.max() <= 1


@pytest.mark.parametrize("shape", [(2, 3, 64, 96), (2, 3, 50, 70), (1, 3, 64, 64)])
@torch.inference_mode()
def test_views_are_averaged_as_one_by_one(shape):
    torch.manual_seed(0)
    model = build_model(ModelConfig("pspnet", "mobilenetv2_050")).eval()
    image1, image2 = pair(*shape)
    sums = [0.0, 0.0, 0.0]
    for view in VIEWS:
        output = model(*(apply_view(image, view) for image in (image1, image2)))
        probs = (output[0].softmax(dim=1), output[1].softmax(dim=1), output[2].sigmoid())
        sums = [mean + undo_view(p, view) for mean, p in zip(sums, probs, strict=True)]
    expected = Probabilities(*(mean / 6 for mean in sums))
    assert_equal(Predictor([model], VIEWS)(image1, image2), expected, 1e-5)


def test_ensemble_is_the_mean_of_its_models():
    models, images = [Pointwise(seed) for seed in range(3)], pair(2, 3, 8, 12)
    alone = [Predictor([model], VIEWS)(*images) for model in models]
    expected = Probabilities(*(torch.stack(p).mean(dim=0) for p in zip(*alone, strict=True)))
    predictor = Predictor(models, VIEWS)
    assert_equal(predictor(*images), expected)
    for probs, single in zip(predictor.each_model(*images), alone, strict=True):
        assert_equal(probs, single)


@pytest.mark.parametrize("shape", [(8, 3, 8, 8), (8, 3, 8, 12), (1, 3, 8, 8)])
@pytest.mark.parametrize("limit", [1, 3, 5, 100])
def test_out_of_memory_halves_the_pass_and_is_remembered(shape, limit):
    model, images = SmallMemory(limit), pair(*shape)
    predictor = Predictor([model], VIEWS)
    assert_equal(predictor(*images), Predictor([Pointwise()], VIEWS)(*images))
    assert max(model.passes) <= limit
    failures = model.failures
    assert (failures > 0) == (limit < len(images[0]) * (6 if shape[-1] == shape[-2] else 3))
    model.passes.clear()
    assert_equal(predictor(*images), Predictor([Pointwise()], VIEWS)(*images))
    assert model.failures == failures
    assert max(model.passes) > limit / 2 or limit > 8  # halved no further than needed
    with pytest.raises(torch.OutOfMemoryError):  # not even a single pair
        Predictor([SmallMemory(0)], VIEWS)(*images)


@pytest.mark.parametrize(
    ("shape", "pixels", "passes"),
    [
        ((5, 3, 8, 8), 2**20, [30]),
        ((5, 3, 8, 12), 2**20, [20, 10]),  # turned ones apart
        ((5, 3, 8, 8), 10 * 64, [10, 10, 10]),
        ((5, 3, 8, 8), 4 * 64, [4] * 6 + [4, 2]),
        ((5, 3, 8, 8), 1, [1] * 30),
    ],
)
def test_passes_are_full_and_every_pair_has_every_view(shape, pixels, passes):
    model, images = Pointwise(), pair(*shape)
    predictor = Predictor([model], VIEWS)
    predictor.pixels_per_pass = pixels
    assert_equal(predictor(*images), Predictor([Pointwise()])(*images))
    assert model.passes == passes


def test_decode_takes_the_class_where_it_changed():
    semantic1 = torch.tensor([[0.7, 0.1], [0.2, 0.8], [0.1, 0.1]]).view(1, 3, 1, 2)
    semantic2 = semantic1.flip(1)
    for change, expected in (
        ([0.5, 0.49], ([1, 0], [3, 0])),
        ([0.0, 1.0], ([0, 2], [0, 2])),
        ([0.51, 0.5], ([1, 2], [3, 2])),
    ):
        probs = Probabilities(semantic1, semantic2, torch.tensor(change).view(1, 1, 2))
        pred1, pred2 = decode(probs)
        assert pred1.dtype == pred2.dtype == torch.uint8
        assert (pred1.flatten().tolist(), pred2.flatten().tolist()) == expected
