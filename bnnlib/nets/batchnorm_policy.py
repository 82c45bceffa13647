"""What to do with BatchNorm in a network whose weights have a distribution.

A BatchNorm in training mode makes the output at one point depend on the other points of its batch. Then the
likelihood is no product over the data, a mini-batch no longer gives an unbiased ELBO, and a prediction depends on its
batch-mates. There are three ways out, and each makes the output a function of w and x alone.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from bnnlib.batchnorm import BatchNorm

__all__ = ["CHOICES", "apply_policy", "is_batchnorm", "looks_at_the_batch", "replaced"]

CHOICES = {
    "frozen": "the statistics stay as they were trained",
    "reestimate": "the statistics are those of `reestimate_on` at each w",
    "group": "a copy with GroupNorm in its place, to be trained anew",
}
_GROUP = 16  # channels in a group (Wu and He 2018)


def is_batchnorm(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm, ours or torch's."""
    return isinstance(module, BatchNorm | nn.modules.batchnorm._BatchNorm)


def looks_at_the_batch(module: Any) -> bool:
    """Whether a BatchNorm takes its statistics from the batch: in training mode, or where it stores none."""
    return is_batchnorm(module) and (module.training or module.running_mean is None)


def apply_policy(net: nn.Module, policy: str | None, reestimate_on: Tensor | None) -> nn.Module:
    """Return a copy of the net that follows the policy, or for None the net itself.

    Names and shapes of the parameters stay what they were, so a vector w means the same before and after.
    """
    if policy is not None and policy not in CHOICES:
        raise ValueError(f"batchnorm is None, {', '.join(map(repr, CHOICES))}; got {policy!r}")
    if (policy == "reestimate") != (reestimate_on is not None):
        raise ValueError(
            'batchnorm="reestimate" and reestimate_on go together: give the training inputs, as the network sees them, '
            "as a tensor (of Standardized data: data.x)"
        )
    if policy is None:
        return net
    net = copy.deepcopy(net)
    if policy == "frozen":
        for name, module in _layers(net):
            _check_trained(name, module)
            module.eval()
        return net
    for name, module in _layers(net):
        new = _group_norm(name, module) if policy == "group" else _ReferenceNorm(module)
        net = replaced(net, name, new)
    if reestimate_on is not None:
        _attach(net, reestimate_on)
    return net


def _layers(net: nn.Module) -> list[tuple[str, Any]]:
    # Any: torch declares some attributes as Tensor that may hold None.
    return [(name, module) for name, module in net.named_modules() if is_batchnorm(module)]


def replaced(net: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """Put `new` in the place of the module of that name, in place; of the net itself, return it."""
    if not name:
        return new
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, new)
    return net


def _check_trained(name: str, module: Any) -> None:
    kind = f"{name or 'the net'} ({type(module).__name__})"
    if module.running_mean is None:
        raise ValueError(f"{kind} stores no statistics (track_running_stats=False), so there is nothing to freeze")
    if bool((module.running_mean == 0).all()) and bool((module.running_var == 1).all()):
        raise ValueError(
            f"{kind} has never seen a batch: its statistics are still mean 0 and variance 1. Train the net first, or "
            'use batchnorm="reestimate" or "group"'
        )


def _group_norm(name: str, module: Any) -> nn.GroupNorm:
    """GroupNorm of the same width: groups of 16 where that divides it, else one group, which is LayerNorm."""
    # A layer without scale and shift has no tensor to tell its width, dtype or device by, but the attribute.
    width = module.weight.shape[0] if module.weight is not None else module.num_features
    if width < 2 and not isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
        raise ValueError(f"{name or 'the net'} has {width} feature: a group of one number is always normalised to 0")
    groups = width // _GROUP if width % _GROUP == 0 else 1
    new = nn.GroupNorm(groups, width, eps=module.eps, affine=module.weight is not None)
    if module.weight is not None:
        new.weight, new.bias = module.weight, module.bias
    return new.train(module.training)


class _ReferenceNorm(nn.Module):
    """Normalise with the statistics that a reference batch has at this layer, for the present weights.

    `read` is None while the reference itself passes (normalised by its biased variance, as in training); then it holds
    mean and unbiased variance for everything that follows. Written in plain operations, because the gradient has to
    reach w through the statistics too.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.eps, self.weight, self.bias = module.eps, module.weight, module.bias
        self.reading = False
        self.read: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, scale and shift x, (N, C, ...)."""
        over = [d for d in range(x.dim()) if d != 1]
        if self.reading:
            if self.read is not None:
                raise ValueError("a BatchNorm is used twice in the net; give each place a BatchNorm of its own")
            count = x.numel() // x.shape[1]
            if count < 2:
                raise ValueError("reestimate_on gives a BatchNorm one value a feature; a variance needs two or more")
            var, mean = torch.var_mean(x, over, correction=0)
            self.read = mean, var * (count / (count - 1))
        elif self.read is None:
            raise RuntimeError("the layer runs outside its network, which hands it the statistics")
        else:
            mean, var = self.read
        shape = (1, -1, *[1] * (x.dim() - 2))
        out = (x - mean.reshape(shape)) * torch.rsqrt(var + self.eps).reshape(shape)
        return out if self.weight is None else out * self.weight.reshape(shape) + self.bias.reshape(shape)

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer."""
        return f"eps={self.eps}"


def _attach(net: nn.Module, reference: Tensor) -> None:
    """Let every call of the net read the statistics of the reference first.

    Hooks on the net itself, and not a wrapper around it, keep the names of its parameters. They run under
    `functional_call` with the same w as the call.
    """
    if not isinstance(reference, Tensor):
        raise TypeError(f"reestimate_on must be a tensor of inputs, got {type(reference).__name__}")
    if reference.is_floating_point() and not bool(torch.isfinite(reference).all()):
        raise ValueError("reestimate_on has NaN or infinite values")
    net.register_buffer("_reestimate_on", reference.detach().clone(), persistent=False)
    net.register_forward_pre_hook(_read_reference)
    net.register_forward_hook(_forget, always_call=True)
    with torch.no_grad():
        net(net._reestimate_on)  # a reference that does not fit is told here, not in the first fit


def _read_reference(net: Any, args: Any) -> None:
    layers = [module for module in net.modules() if isinstance(module, _ReferenceNorm)]
    try:
        for layer in layers:
            layer.reading, layer.read = True, None
        net.forward(net._reestimate_on)
    finally:
        for layer in layers:
            layer.reading = False


def _forget(net: nn.Module, args: Any, out: Any) -> None:
    # Kept, the statistics would hold the graph of this call, and a copy of the net would fail on them.
    for module in net.modules():
        if isinstance(module, _ReferenceNorm):
            module.read = None
