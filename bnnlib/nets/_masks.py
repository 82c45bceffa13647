"""Where dropout sits in a network, in terms of w: which weights each of its masks switches off.

A unit that is missing is a column of the next layer's weights that is missing: W (mask * h) = (W diag(mask)) h.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from bnnlib.nets.masked import Masked
from bnnlib.nets.model import Model

__all__ = ["find_masks"]

_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# What keeps a missing unit missing and rescales the others: it may stand between Dropout and layer.
_BETWEEN = (nn.Flatten, nn.Identity, nn.ReLU, nn.LeakyReLU)
_POOLS: tuple[type[nn.Module], ...] = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)


def find_masks(model: Model, x: Tensor) -> Masked:
    """The network's present parameters with the masks that its Dropout layers stand for.

    Parameters
    ----------
    x
        A few inputs, which tell the shapes inside the network.

    Raises
    ------
    ValueError
        No Dropout, or one whose mask is not the mask of one layer's inputs; the message names it.
    """
    if not any(isinstance(m, nn.modules.dropout._DropoutNd) for m in model.net.modules()):
        raise ValueError("the net has no Dropout layer; put nn.Dropout(p) before the layers whose inputs to switch off")
    try:
        traced = fx.symbolic_trace(model.net)
        with torch.no_grad():
            ShapeProp(traced).propagate(x.to(model.device))
    except Exception as error:
        raise ValueError(
            f"cannot follow the data through the net's forward method ({error}): to tell what a Dropout switches off, "
            "it may not depend on values"
        ) from error
    modules = dict(traced.named_modules())
    group = {name: torch.full(shape, -1) for name, shape in model.shapes.items()}
    p: list[float] = []
    for node in traced.graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], nn.modules.dropout._DropoutNd):
            name, units = _reader(node, modules)
            weight = group[f"{name}.weight"]
            first = len(p)
            inputs = first + torch.arange(units)
            layer: Any = modules[name]
            if isinstance(layer, nn.Linear):
                # Flattened channels: every position of a channel has its mask.
                weight[:] = inputs.repeat_interleave(layer.in_features // units)
            else:
                # In a grouped convolution, an output channel reads the inputs of its own group.
                by_group = inputs.reshape(layer.groups, 1, -1).expand(-1, layer.out_channels // layer.groups, -1)
                weight[:] = by_group.reshape(weight.shape[:2]).reshape(*weight.shape[:2], *[1] * (weight.dim() - 2))
            p += [float(modules[node.target].p)] * units
    flat = torch.cat([g.reshape(-1) for g in group.values()])
    flat = torch.cat([flat, torch.full((model.likelihood.unknown_size,), -1)]).to(model.device)
    return Masked(model.start(), flat, torch.tensor(p, dtype=torch.float64, device=model.device))


def _reader(dropout: fx.Node, modules: dict[str, Any]) -> tuple[str, int]:
    """Name of the one layer that reads a Dropout's output, and how many masks there are."""
    kind = type(modules[str(dropout.target)])
    told = f"{dropout.target} ({kind.__name__})"
    if kind is not nn.Dropout and kind not in _CHANNELS:
        raise ValueError(f"{told} does not switch units off to zero; use nn.Dropout, or nn.Dropout2d for channels")
    shape = dropout.meta["tensor_meta"].shape
    units = shape[1] if kind in _CHANNELS else shape[1:].numel()
    passes = (*_BETWEEN, *_POOLS) if kind in _CHANNELS else _BETWEEN
    node = dropout
    while True:
        users = list(node.users)
        if len(users) != 1:
            raise ValueError(f"{told} goes into {len(users)} places; it must go into exactly one Linear or convolution")
        node = users[0]
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, passes) or node.target is torch.flatten:
            continue
        break
    if not isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
        what = type(module).__name__ if module is not None else f"{node.op} {node.target}"
        raise ValueError(
            f"{told} goes into {what}; for a distribution over w it must go into a Linear or convolution, at most past "
            "Flatten, ReLU, or for channels pooling"
        )
    calls = sum(n.op == "call_module" and modules[str(n.target)] is module for n in node.graph.nodes)
    if calls > 1:
        raise ValueError(f"{told} goes into {node.target}, which is used {calls} times and reads other inputs too")
    width = module.in_features if isinstance(module, nn.Linear) else module.in_channels
    flattened = isinstance(module, nn.Linear) and kind in _CHANNELS
    if width != units and not (flattened and width % units == 0):
        raise ValueError(
            f"{told} has {units} masks, {node.target} ({type(module).__name__}) reads {width} units: each unit must "
            "have one mask for all positions; before a convolution use nn.Dropout2d, which switches channels off"
        )
    return str(node.target), units
