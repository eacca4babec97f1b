from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from datasets.classes import IGNORED
from models.losses import SECOND_CLASS_WEIGHTS, ChangeCriterion, change_loss, semantic_loss

TERMS = ("change", "semantic1", "semantic2", "total")


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(Path(__file__).parents[2] / "data" / "loss.npz") as figures:
        return {name: torch.from_numpy(np.asarray(value)) for name, value in figures.items()}


def output_of(golden: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    # The published head speaks of "unchanged", ours of "changed".
    return [golden["semantic_logits1"], golden["semantic_logits2"], -golden["unchanged_logits"]]


def random_output(*shape: int, classes: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    n, h, w = shape
    sizes = [(n, classes, h, w), (n, classes, h, w), (n, h, w)]
    return [torch.randn(size, generator=generator).requires_grad_() for size in sizes]


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_terms_are_the_published_ones(golden, dtype):
    criterion = ChangeCriterion(6, SECOND_CLASS_WEIGHTS)
    label1, label2 = golden["label1"].to(dtype), golden["label2"].to(dtype)
    losses = criterion(output_of(golden), label1, label2, (label1 > 0).to(dtype))
    assert set(losses) == set(TERMS)
    for name in TERMS:
        assert losses[name].item() == pytest.approx(golden[name].item(), rel=1e-5), name


def test_pixels_without_data_have_no_loss():
    """The loss of a batch with them is that of the other pixels, also where nothing else is."""
    output, generator = random_output(2, 8, 8), torch.Generator().manual_seed(1)
    labels = torch.randint(0, 7, (2, 2, 8, 8), generator=generator).to(torch.uint8)
    labels[1][labels[0] == 0] = 0
    maps = [*labels, (labels[0] > 0).to(torch.uint8)]
    criterion = ChangeCriterion(6, SECOND_CLASS_WEIGHTS)
    expected = criterion([x[..., 3:] for x in output], *(x[..., 3:] for x in maps))
    for each in maps:
        each[..., :3] = IGNORED
    losses = criterion(output, *maps)
    for name in TERMS:
        assert losses[name].item() == pytest.approx(expected[name].item(), rel=1e-6), name
    losses["total"].backward()
    assert not any(x.grad[..., :3].any() for x in output) and output[2].grad[..., 3:].all()
    nothing = criterion(output, *(torch.full_like(each, IGNORED) for each in maps))
    assert nothing["total"] == 0
    nothing["total"].backward()
    assert all(logits.grad.isfinite().all() for logits in output)


def test_nothing_labelled_is_no_loss_and_no_nan():
    output = random_output(2, 8, 8)
    empty = torch.zeros(2, 8, 8, dtype=torch.uint8)
    losses = ChangeCriterion(6, SECOND_CLASS_WEIGHTS)(output, empty, empty, empty)
    assert losses["semantic1"].item() == losses["semantic2"].item() == 0
    assert losses["change"] > 0
    losses["total"].backward()
    assert all(logits.grad.isfinite().all() for logits in output)
    assert not output[0].grad.any() and not output[1].grad.any()
    assert output[2].grad.any()


def test_one_date_unlabelled_leaves_the_other_alone():
    output = random_output(1, 8, 8)
    label = torch.randint(1, 7, (1, 8, 8))
    losses = ChangeCriterion(6)(output, label, torch.zeros_like(label), label > 0)
    assert losses["semantic1"] > 0
    assert losses["semantic2"].item() == 0


def test_semantic_loss_is_the_cross_entropy_of_labelled_pixels():
    logits = random_output(2, 8, 8)[0].detach()
    label = torch.randint(0, 7, (2, 8, 8), generator=torch.Generator().manual_seed(1))
    weights = torch.tensor([2.0, 1, 2, 2, 1, 0.5])
    labelled = label > 0
    expected = F.cross_entropy(
        logits.permute(0, 2, 3, 1)[labelled], label[labelled] - 1, weight=weights
    )
    assert semantic_loss(logits, label, weights).item() == pytest.approx(expected.item(), rel=1e-5)


def test_unlabelled_pixels_get_no_gradient():
    output = random_output(1, 4, 4)
    label = torch.zeros(1, 4, 4, dtype=torch.uint8)
    label[0, 1, 2] = 6
    ChangeCriterion(6)(output, label, label, label > 0)["total"].backward()
    touched = output[0].grad.abs().sum(dim=1)[0] > 0
    assert touched.nonzero().tolist() == [[1, 2]]


def test_changed_pixels_count_twice():
    logits, mask = torch.tensor([[[2.0, -1.0]]]), torch.tensor([[[1, 0]]])
    expected = (2 * F.softplus(torch.tensor(-2.0)) + F.softplus(torch.tensor(-1.0))) / 2
    assert change_loss(logits, mask).item() == pytest.approx(expected.item(), rel=1e-6)


def test_large_logits_stay_finite_in_half_precision():
    output = [logits.detach().mul(1e4).half() for logits in random_output(1, 8, 8)]
    label = torch.randint(0, 7, (1, 8, 8))
    losses = ChangeCriterion(6)(output, label, label, label > 0)
    assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())
