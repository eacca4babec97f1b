from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from datasets.classes import IGNORED
from models.losses import (
    SECOND_CLASS_WEIGHTS,
    ChangeCriterion,
    change_loss,
    distillation_loss,
    semantic_loss,
    soft_targets,
)

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


def random_teacher(*shape: int, classes: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    n, h, w = shape
    semantic = torch.randn(2, n, classes, h, w, generator=generator).mul(4).softmax(dim=2)
    return [*semantic, torch.rand(n, h, w, generator=generator)]


def test_soft_targets_keep_probabilities():
    teacher = random_teacher(2, 5, 6)
    soft = soft_targets(teacher)
    assert soft.shape == (2, 13, 5, 6) and soft.dtype == torch.uint8
    found = soft.double() / 255
    assert (found[:, :6] ** 2 - teacher[0]).abs().max() <= 1 / 255
    assert (found[:, 6:12] ** 2 - teacher[1]).abs().max() <= 1 / 255
    assert (found[:, 12] - teacher[2]).abs().max() <= 0.5 / 255 + 1e-6
    roots = teacher[0].sqrt()  # what a temperature of 2 makes of them
    tempered = found[:, :6] / found[:, :6].sum(dim=1, keepdim=True)
    assert (tempered - roots / roots.sum(dim=1, keepdim=True)).abs().max() <= 2 / 255
    assert soft_targets(teacher[2:]).shape == (2, 1, 5, 6)


def test_distillation_equals_a_sum_over_cells():
    """9 × 6 pixels are 3 × 2 cells, of which the right and the lower ones are smaller."""
    output, soft = random_output(2, 9, 6), soft_targets(random_teacher(2, 3, 2))
    mask = torch.zeros(2, 9, 6, dtype=torch.uint8)
    mask[1, 2, 5] = mask[1, 3, 5] = IGNORED  # both in one cell
    values = soft.double() / 255
    sums, count = {"change": 0.0, "semantic1": 0.0, "semantic2": 0.0}, 0
    for n, y, x in np.ndindex(2, 3, 2):
        rows, columns = slice(4 * y, 4 * y + 4), slice(4 * x, 4 * x + 4)
        if (mask[n, rows, columns] == IGNORED).any():
            continue
        count += 1
        logits = [each.detach().double()[n, ..., rows, columns].mean((-2, -1)) for each in output]
        p, q = values[n, 12, y, x], logits[2].sigmoid()
        sums["change"] -= (p * q.log() + (1 - p) * (1 - q).log()).item()
        for date in (0, 1):
            teacher = values[n, 6 * date : 6 * date + 6, y, x] ** 2
            teacher = teacher.sqrt() / teacher.sqrt().sum()
            student = (logits[date] / 2).softmax(dim=0)
            divergence = (teacher * (teacher / student).log()).nansum()
            sums[f"semantic{date + 1}"] += 4 * divergence.item()
    assert count == 11
    found = distillation_loss(output, soft, mask)
    assert found.keys() == {f"distill_{name}" for name in sums}
    for name, total in sums.items():
        assert found[f"distill_{name}"].item() == pytest.approx(total / count, rel=1e-5), name
    sum(found.values()).backward()
    for each in output:
        gradient = each.grad.reshape(2, -1, 9, 6)
        assert not gradient[1, :, :4, 4:].any() and gradient[0, :, :4, 4:].all()


def test_a_student_that_agrees_has_no_divergence_and_a_flat_cross_entropy():
    teacher = random_teacher(1, 1, 1)
    logits = [*(probs.log() for probs in teacher[:2]), teacher[2].logit()]
    output = [each.repeat_interleave(4, -1).repeat_interleave(4, -2) for each in logits]
    output[2].requires_grad_()
    soft = soft_targets(teacher)
    found = distillation_loss(output, soft, torch.zeros(1, 4, 4))
    assert found["distill_semantic1"] < 1e-3 and found["distill_semantic2"] < 1e-3
    found["distill_change"].backward()
    assert output[2].grad.abs().max() < 1e-3


def test_weights_of_distillation():
    output, soft = random_output(1, 8, 8), soft_targets(random_teacher(1, 2, 2))
    label = torch.randint(0, 7, (1, 8, 8))
    maps = (label, label, (label > 0).to(torch.uint8))
    plain = ChangeCriterion(6)(output, *maps)
    assert ChangeCriterion(6, distill_weights=(0, 0))(output, *maps, soft) == plain
    terms = ChangeCriterion(6, distill_weights=(8, 0))(output, *maps, soft)
    assert terms.keys() - plain.keys() == {"distill_change"}
    expected = plain["total"] + 8 * terms["distill_change"]
    assert terms["total"].item() == pytest.approx(expected.item(), rel=1e-6)
    both = ChangeCriterion(6)(output, *maps, soft)
    expected = terms["total"] + both["distill_semantic1"] + both["distill_semantic2"]
    assert both["total"].item() == pytest.approx(expected.item(), rel=1e-6)
    nothing = distillation_loss(output, soft, torch.full_like(label, IGNORED))
    assert not any(nothing.values())
