"""Batch norm over several processes is that of the whole batch."""

from pathlib import Path

import torch
from torch import nn

from models.sync_norm import synchronize_batch_norm
from tests.helpers.processes import run_ranks
from utils.dist import join_world

CHANNELS = 5
SHARES = (3, 1)  # pairs of each rank; a rank may hold one


def norm_and_input() -> tuple[nn.BatchNorm2d, torch.Tensor, torch.Tensor]:
    """A batch norm, an input whose channels have large means, and weights for its output."""
    generator = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm2d(CHANNELS)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(CHANNELS, generator=generator) + 0.5)
        norm.bias.copy_(torch.rand(CHANNELS, generator=generator))
    x = torch.randn(sum(SHARES), CHANNELS, 6, 7, generator=generator)
    x = x + torch.tensor([0.0, 1.0, -10.0, 100.0, 1000.0]).view(1, -1, 1, 1)
    return norm, x, torch.randn(x.shape, generator=generator)


def through_norm(norm: nn.Module, x: torch.Tensor, weights: torch.Tensor) -> dict:
    """Three passes in training mode; outputs, gradients and statistics of the last."""
    for _ in range(3):
        norm.zero_grad()
        leaf = x.clone().requires_grad_()
        y = norm(leaf)
        (y.square() * weights).sum().backward()
    return {
        "y": y.detach(),
        "x": leaf.grad,
        "weight": norm.weight.grad,
        "bias": norm.bias.grad,
        "mean": norm.running_mean,
        "var": norm.running_var,
        "count": norm.num_batches_tracked,
    }


def write_norm(rank: int, folder: Path) -> None:
    with join_world("cpu") as world:
        norm, x, weights = norm_and_input()
        norm = synchronize_batch_norm(norm, "cpu")
        share = slice(sum(SHARES[:rank]), sum(SHARES[: rank + 1]))
        found = through_norm(norm, x[share], weights[share])
        # A distributed model adds up the parameters' gradients by itself.
        found["weight"], found["bias"] = world.sum(found["weight"]), world.sum(found["bias"])
        torch.save(found, folder / f"{rank}.pt")
        norm.eval()
        torch.save(norm(x[share]).detach(), folder / f"eval{rank}.pt")


def test_synchronised_batch_norm_is_that_of_the_whole_batch(tmp_path):
    run_ranks(2, tmp_path, write_norm, tmp_path)
    norm, x, weights = norm_and_input()
    reference = through_norm(norm.double(), x.double(), weights.double())
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for key in ("y", "x"):
        found = torch.cat([rank[key] for rank in ranks]).double()
        # An input near 1000 holds four digits behind the point.
        torch.testing.assert_close(found, reference[key], rtol=1e-4, atol=1e-4)
    for rank in ranks:
        for key in ("weight", "bias", "mean", "var"):
            torch.testing.assert_close(rank[key].double(), reference[key], rtol=1e-4, atol=1e-4)
        assert rank["count"] == 3
    norm.eval()
    found = torch.cat(
        [torch.load(tmp_path / f"eval{rank}.pt", weights_only=True) for rank in range(2)]
    )
    torch.testing.assert_close(found.double(), norm(x.double()).detach(), rtol=1e-4, atol=1e-4)
