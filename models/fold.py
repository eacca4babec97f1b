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


def fold_batch_norm(model: nn.Module, *example: Tensor) -> list[tuple[str, str]]:
    """Fold every batch norm that directly follows a convolution, in place.

    Returns the names of all such convolutions and batch norms, for `refold`.

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
    folded = []
    for weight, found in readers.of_weight.items():
        names = (convs[weight], norms[found[0]] if found else [])
        only = len(set(found)) == 1 and feeding.count(found[0]) == 1
        if not only or [len(each) for each in names] != [1, 1]:
            continue
        [conv_name], [norm_name] = names
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        conv.weight, conv.bias = _fused(conv, norm)
        # timm's batch norms may carry their activation with them.
        model.set_submodule(norm_name, getattr(norm, "act", None) or nn.Identity())
        folded.append((conv_name, norm_name))
    return folded


def refold(folded: nn.Module, names: list[tuple[str, str]], model: nn.Module) -> None:
    """Give a folded model, ``names`` are what `fold_batch_norm` returned, the weights of its like.

    They become what folding anew would make of them, in the folded model's number format.
    """
    known = folded.state_dict()
    values = {name: value for name, value in model.state_dict().items() if name in known}
    for conv, norm in names:
        fused = _fused(model.get_submodule(conv), model.get_submodule(norm))
        values |= dict(zip((f"{conv}.weight", f"{conv}.bias"), fused, strict=True))
    folded.load_state_dict(values)


def _fused(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[nn.Parameter, nn.Parameter]:
    statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    return fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)


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
