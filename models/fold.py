"""Folding batch norm into the convolution before it: fewer passes over memory at inference."""

from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

# They tell what folding does not change.
_READS_OF_SHAPE = frozenset(
    (
        *(Tensor.size, Tensor.dim),
        *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device")),
    )
)


def fold_batch_norm(model: nn.Module, *example: torch.Tensor) -> int:
    """Fold every batch norm that directly follows a convolution, in place.

    The pairs are found by running the model once and watching which convolution's output each
    batch norm receives, so that any architecture works, traceable or not. A convolution whose
    output something else reads as well, such as a sum or the caller, stays as it is.

    Args:
        model: in eval mode; trained further it would no longer normalise.
        example: inputs of one forward pass.

    Returns:
        The number of folded pairs.
    """
    pairs = _find_pairs(model, example)
    for conv_name, norm_name in pairs:
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight,
            conv.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        # timm's batch norms may carry their activation with them.
        model.set_submodule(norm_name, getattr(norm, "act", None) or nn.Identity())
    return len(pairs)


def _find_pairs(model: nn.Module, example: tuple[torch.Tensor, ...]) -> list[tuple[str, str]]:
    """Return names of convolutions and the one batch norm that each always feeds, and it alone."""
    outputs: dict[int, tuple[str, torch.Tensor]] = {}  # keeps tensors alive, so ids stay unique
    feeds: dict[str, list[str]] = {}
    fed_by: dict[str, set[str | None]] = {}

    def saw_conv(name: str, output: torch.Tensor) -> None:
        outputs[id(output)] = (name, output)
        feeds.setdefault(name, [])

    def saw_norm(name: str, value: torch.Tensor) -> None:
        source = outputs[id(value)][0] if id(value) in outputs else None
        fed_by.setdefault(name, set()).add(source)
        if source is not None:
            feeds[source].append(name)

    hooks = []
    # A module of two names counts as two: replacing it under one of them would not be enough.
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Conv2d):
            hooks.append(
                module.register_forward_hook(lambda m, i, output, n=name: saw_conv(n, output))
            )
        elif isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            hooks.append(module.register_forward_pre_hook(lambda m, i, n=name: saw_norm(n, i[0])))
    try:
        with torch.no_grad(), _Reads(outputs) as reads:
            result = model(*example)
    finally:
        for hook in hooks:
            hook.remove()
    reads.note(result)
    return [
        (conv, norm)
        for norm, sources in fed_by.items()
        for conv in sources
        # A batch norm reads its input once; any further read is somebody else's.
        if len(sources) == 1
        and conv is not None
        and set(feeds[conv]) == {norm}
        and reads.count[conv] == len(feeds[conv])
    ]


class _Reads(TorchFunctionMode):
    """Counts how often the outputs of each convolution are read."""

    def __init__(self, outputs: Mapping[int, tuple[str, torch.Tensor]]) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self._outputs = outputs

    def note(self, value: object) -> None:
        """Count the outputs of convolutions in a value: a tensor, or containers of tensors."""
        if isinstance(value, torch.Tensor):
            if id(value) in self._outputs:
                self.count[self._outputs[id(value)][0]] += 1
        elif isinstance(value, Mapping):
            self.note(list(value.values()))
        elif isinstance(value, list | tuple):
            for part in value:
                self.note(part)

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if func not in _READS_OF_SHAPE:
            self.note((args, kwargs))
        return func(*args, **(kwargs or {}))
