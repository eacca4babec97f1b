"""Folding batch norm into the convolution before it: fewer passes over memory at inference."""

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


def fold_batch_norm(model: nn.Module, *example: torch.Tensor) -> int:
    """Fold every batch norm that directly follows a convolution, in place.

    The pairs are found by running the model once and watching which convolution's output each
    batch norm receives, so that any architecture works, traceable or not.

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
    """Return names of convolutions and the one batch norm that each always feeds."""
    outputs: dict[int, tuple[str, torch.Tensor]] = {}  # keeps tensors alive, so ids stay unique
    feeds: dict[str, set[str]] = {}
    fed_by: dict[str, set[str | None]] = {}

    def saw_conv(name: str, output: torch.Tensor) -> None:
        outputs[id(output)] = (name, output)
        feeds.setdefault(name, set())

    def saw_norm(name: str, value: torch.Tensor) -> None:
        source = outputs[id(value)][0] if id(value) in outputs else None
        fed_by.setdefault(name, set()).add(source)
        if source is not None:
            feeds[source].add(name)

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(
                module.register_forward_hook(lambda m, i, output, n=name: saw_conv(n, output))
            )
        elif isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            hooks.append(module.register_forward_pre_hook(lambda m, i, n=name: saw_norm(n, i[0])))
    try:
        with torch.no_grad():
            model(*example)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        (conv, norm)
        for norm, sources in fed_by.items()
        for conv in sources
        if len(sources) == 1 and conv is not None and feeds[conv] == {norm}
    ]
