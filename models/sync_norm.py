"""Batch norm over the batches of all processes."""

from types import MethodType
from typing import Any

import timm.layers
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn


class _SumOverProcesses(torch.autograd.Function):
    """Sum over all processes; the gradient of a sum of all is the sum of all gradients."""

    @staticmethod
    def forward(_context: Any, value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(_context: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def synchronize_batch_norm(model: nn.Module, device_type: str) -> nn.Module:
    """Let every batch norm see the batches of all processes, so that a rank may hold one pair.

    On GPUs this is torch's SyncBatchNorm (in timm's variant, which keeps activations). It has no
    CPU implementation; there the same statistics are taken with differentiable all-reduces.
    """
    if device_type == "cuda":
        return timm.layers.convert_sync_batchnorm(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.forward = MethodType(_synchronized_forward, module)
    return model


def _synchronized_forward(norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    if norm.training and dist.is_initialized():
        y = _normalize_over_processes(norm, x)
    else:
        y = F.batch_norm(
            x,
            norm.running_mean,
            norm.running_var,
            norm.weight,
            norm.bias,
            norm.training,
            norm.momentum,
            norm.eps,
        )
    # timm's variant carries a dropout and an activation.
    return norm.act(norm.drop(y)) if hasattr(norm, "act") else y


def _normalize_over_processes(norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    x32 = x.float()
    channels = x.shape[1]
    shape = (1, -1, 1, 1)
    # Sums of squares would cancel where a mean is large beside its deviation; sums of squared
    # distances to each process's own mean, and the distances between those means, do not.
    own_mean = x32.mean((0, 2, 3))
    own_squares = (x32 - own_mean.view(shape)).square().sum((0, 2, 3))
    own = torch.cat([own_mean, own_squares, x32.new_tensor([x.numel() / channels])])
    rows = [torch.zeros_like(own)] * dist.get_world_size()
    rows[dist.get_rank()] = own
    rows = _SumOverProcesses.apply(torch.stack(rows))
    means, squares, counts = rows[:, :channels], rows[:, channels:-1], rows[:, -1:]
    count = counts.sum()
    mean = (means * counts).sum(0) / count
    variance = (squares + (means - mean).square() * counts).sum(0) / count
    with torch.no_grad():
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    y = (x32 - mean.view(shape)) * scale.view(shape) + norm.bias.view(shape)
    return y.to(x.dtype)
