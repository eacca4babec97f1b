"""Folding batch norm into the convolution before it: fewer passes over memory at inference."""

from collections import defaultdict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

# They tell what folding does not change.
_PROPERTIES = ("shape", "ndim", "dtype", "device")
_READS_OF_SHAPE = {Tensor.size, Tensor.dim, *(getattr(Tensor, p).__get__ for p in _PROPERTIES)}


def fold_batch_norm(model: nn.Module, *example: Tensor) -> int:
    """Fold every batch norm that directly follows a convolution, in place; return how many.

    The pairs are found by running the model, in eval mode, once on ``example`` and watching which
    convolution's output each batch norm receives, so that any architecture works, traceable or not.
    A convolution whose output something else reads as well, such as a sum or the caller, stays.
    """
    with torch.no_grad(), _Readers() as readers:
        readers.note(model(*example), reader=None)
    # By the tensors that a call reads. A module of two names cannot be replaced under one of them.
    convs, norms = defaultdict(list), defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Conv2d):
            convs[id(module.weight)].append(name)
        elif isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            norms[id(module.running_mean), id(module.weight)].append(name)
    feeding = [reader for found in readers.of_weight.values() for reader in set(found)]
    folded = 0
    for weight, found in readers.of_weight.items():
        names = (convs[weight], norms[found[0]] if found else [])
        only = len(set(found)) == 1 and feeding.count(found[0]) == 1
        if not only or [len(each) for each in names] != [1, 1]:
            continue
        conv, norm = (model.get_submodule(name) for [name] in names)
        statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
        # timm's batch norms may carry their activation with them.
        model.set_submodule(names[1][0], getattr(norm, "act", None) or nn.Identity())
        folded += 1
    return folded


class _Readers(TorchFunctionMode):
    """Notes who reads the outputs of convolutions.

    ``of_weight`` has, by the id of a convolution's weight, for each read the ids of running mean
    and weight of the batch norm that reads, or None for anything else.
    """

    def __init__(self) -> None:
        super().__init__()
        self.of_weight: dict[int, list[tuple[int, int] | None]] = {}
        self._outputs: dict[int, tuple[Tensor, int]] = {}  # keeps tensors alive: ids stay unique

    def note(self, value: object, reader: tuple[int, int] | None) -> None:
        """Note a read of all outputs in a value: a tensor, or containers of tensors."""
        for leaf in tree_leaves(value):
            if id(leaf) in self._outputs:
                self.of_weight[self._outputs[id(leaf)][1]].append(reader)

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = kwargs or {}
        if func not in _READS_OF_SHAPE:
            is_norm = func is F.batch_norm
            self.note((args, kwargs), (id(args[1]), id(kwargs["weight"])) if is_norm else None)
        result = func(*args, **kwargs)
        if func is torch.conv2d:
            self._outputs[id(result)] = (result, id(args[1]))
            self.of_weight.setdefault(id(args[1]), [])
        return result
