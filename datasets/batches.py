"""Batches of pairs: which pairs go together, and how samples become tensors of N."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler


class SameSizeBatches(Sampler[list[int]]):
    """Batches in file order whose pairs have one size, so that any mix of sizes can be evaluated.

    Args:
        sizes: (height, width) of every pair.
        batch_size: pairs per batch at the most.
        skip: indices that need no work; a batch of nothing else is left out, the others stay as
            they are, so that their results do too.
        rank: number of this process; it takes every ``world_size``-th batch.
        world_size: number of processes.

    Attributes:
        batches: indices of this process's batches.
        skipped: indices in the batches that were left out, this process's share of them.
        sizes: the sizes there are.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        batch_size: int,
        skip: Collection[int] = (),
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(sizes):
            by_size.setdefault(size, []).append(index)
        self.sizes = tuple(by_size)
        batches = [
            indices[start : start + batch_size]
            for indices in by_size.values()
            for start in range(0, len(indices), batch_size)
        ]
        needless = set(skip)
        done = [batch for batch in batches if needless.issuperset(batch)]
        batches = [batch for batch in batches if not needless.issuperset(batch)]
        self.skipped = [index for batch in done[rank::world_size] for index in batch]
        self.batches = batches[rank::world_size]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples; images become (N, bands, H, W) in channels-last memory, names a list."""
    batch: dict[str, Any] = {"name": [sample["name"] for sample in samples]}
    for key in samples[0]:
        if key in ("image1", "image2"):
            stacked = torch.stack([sample[key].permute(1, 2, 0) for sample in samples])
            batch[key] = stacked.permute(0, 3, 1, 2)
        elif key != "name":
            batch[key] = torch.stack([sample[key] for sample in samples])
    return batch
