"""Activation checkpointing: less memory for a second forward pass of the encoder."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from models.change_detector import ChangeDetector
from models.encoder import is_hrnet
from utils.errors import OptionError


def checkpoint_activations(model: ChangeDetector) -> None:
    """Keep only the inputs of the encoder's blocks, and compute the rest again when needed.

    Outputs and gradients stay what they are without it; so do the running statistics of HRNets,
    while timm's own way counts each batch twice in those of other backbones. An OptionError for
    backbones that neither timm nor this function knows.
    """
    body = model.encoder.body
    if is_hrnet(body):
        for stage in (body.layer1, body.stage2, body.stage3, body.stage4):
            for block in stage.children():
                block.forward = _recomputing(block, block.forward)
        return
    try:
        body.set_grad_checkpointing(True)
    except (AttributeError, AssertionError) as error:
        raise OptionError(
            f"--checkpoint-activations: not known for {model.config.backbone}; use a smaller "
            "--batch-size with --accumulate"
        ) from error


def _recomputing(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _frozen_statistics(block)

    def recomputed(maps: torch.Tensor | list[torch.Tensor]) -> Any:
        if isinstance(maps, torch.Tensor):
            return checkpoint(forward, maps, use_reentrant=False, context_fn=contexts)
        # Multi-branch modules write into the list they are given; each pass gets a list of its own.
        return checkpoint(
            lambda *parts: forward(list(parts)), *maps, use_reentrant=False, context_fn=contexts
        )

    return recomputed


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Keep the second forward pass from counting a batch twice in the running statistics."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked -= 1
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
