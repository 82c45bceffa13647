"""What to do with the statistics once the weights are trained: fold them in, estimate them anew, draw them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bnnlib.batchnorm._checks import moments
from bnnlib.batchnorm.layer import BatchNorm

_Torch = nn.modules.batchnorm._BatchNorm


def fold(
    layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d, batchnorm: nn.Module
) -> nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d:
    """Merge a BatchNorm in evaluation mode into the linear or convolutional layer before it.

        scale = gamma / sqrt(running_var + eps)
        W'    = scale * W
        b'    = scale * (b - running_mean) + beta

    Parameters
    ----------
    layer
        The layer whose output the BatchNorm takes, with nothing between the two.
    batchnorm
        `BatchNorm`, or one of torch's, in evaluation mode.

    Returns
    -------
    nn.Linear, nn.Conv1d, nn.Conv2d or nn.Conv3d
        A new layer of the kind given, which does the work of both. The two given stay as they are.

    Raises
    ------
    TypeError
        For a layer of another kind.
    ValueError
        For a BatchNorm in training mode, one without stored statistics, or one of another width.

    Source: Jacob et al. (2018), section 3.2.
    """
    if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        raise TypeError(f"fold takes a linear or convolutional layer, got {type(layer).__name__}")
    if not isinstance(batchnorm, BatchNorm | _Torch):
        raise TypeError(f"fold takes a BatchNorm second, got {type(batchnorm).__name__}")
    if batchnorm.training:
        raise ValueError(
            "the BatchNorm is in training mode, in which it is no affine map: its statistics are of each batch; "
            "call .eval() first"
        )
    if batchnorm.running_mean is None or batchnorm.running_var is None:
        raise ValueError("the BatchNorm stores no statistics (track_running_stats=False), so there is nothing to fold")
    if len(batchnorm.running_mean) != layer.weight.shape[0]:
        raise ValueError(
            f"the layer has {layer.weight.shape[0]} outputs, the BatchNorm {len(batchnorm.running_mean)} features"
        )
    with torch.no_grad():
        scale = torch.rsqrt(batchnorm.running_var + batchnorm.eps)
        if batchnorm.weight is not None:
            scale = scale * batchnorm.weight
        bias = -batchnorm.running_mean if layer.bias is None else layer.bias - batchnorm.running_mean
        bias = bias * scale if batchnorm.bias is None else bias * scale + batchnorm.bias
        folded = copy.deepcopy(layer)
        folded.weight.mul_(scale.reshape(-1, *[1] * (layer.weight.dim() - 1)))
        folded.bias = nn.Parameter(bias)
    return folded


def reestimate(net: nn.Module, loader: Iterable[Any]) -> None:
    """Estimate the stored statistics of every BatchNorm in `net` anew, for its present weights.

    What is stored is forgotten. Each batch then counts the same: means are averaged, variances are averaged times
    m / (m - 1). Other layers run as in evaluation (no dropout). Weights and modes are left as they were.

    Parameters
    ----------
    net
        Any net with `BatchNorm` or torch's own.
    loader
        Batches of inputs, or of tuples whose first entry is the inputs. Their size should be that of training, since
        layers above see activations that were normalised over such batches.

    Raises
    ------
    ValueError
        For a net without BatchNorm that stores statistics, or an empty loader.

    Source: Ioffe and Szegedy (2015), algorithm 2.
    """
    layers = [layer for layer in _layers(net) if layer.running_mean is not None]
    if not layers:
        raise ValueError("no BatchNorm in this net stores statistics, so there is nothing to estimate")
    kept = [(layer, layer.momentum) for layer in layers]
    batches = 0
    with _modes_kept(net), torch.no_grad():
        net.eval()
        try:
            for i, batch in enumerate(loader):
                batches = i + 1
                for layer in layers:
                    # Only once there is a batch: an empty loader leaves what is stored. All three: 0 * NaN is NaN.
                    if i == 0:
                        layer.running_mean.zero_()
                        layer.running_var.fill_(1)
                        layer.num_batches_tracked.zero_()
                        layer.momentum = None
                        layer.train()
                net(batch[0] if isinstance(batch, list | tuple) else batch)
        finally:
            for layer, momentum in kept:
                layer.momentum = momentum
    if not batches:
        raise ValueError("the loader is empty, so there is nothing to estimate the statistics from")


def sample_statistics(
    net: nn.Module,
    x: Tensor,
    inputs: Tensor,
    *,
    batch_size: int,
    n: int = 100,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Outputs at x, each time with the statistics of another random training batch: BatchNorm as noise.

    The batch is normalised layer by layer, as in training (biased variance). Then x goes through the net with the
    statistics that the batch had. Rows of x never influence each other. Dropout is off, and `net` is left as it was.

    Parameters
    ----------
    net
        A trained net with `BatchNorm` or torch's own.
    x
        Where to predict, (N, ...).
    inputs
        Training inputs to draw batches from, (number of data, ...).
    batch_size
        Rows of each batch, drawn without replacement: use that of training.
    n
        How many batches.
    generator
        Source of randomness.

    Returns
    -------
    Tensor
        Outputs, (n, N, ...), without gradient.

    Raises
    ------
    ValueError
        For a net without BatchNorm, or a batch size that is below two or above the number of training inputs.

    Source: Teye, Azizpour and Smith (2018).
    """
    if not _layers(net):
        raise ValueError("this net has no BatchNorm, so the batch adds no noise to its output")
    if not 2 <= batch_size <= len(inputs):
        raise ValueError(f"batch_size must lie between 2 and the {len(inputs)} training inputs, got {batch_size}")
    if n < 1:
        raise ValueError(f"n, the number of batches, must be 1 or more, got {n}")
    device = generator.device if generator is not None else "cpu"
    drawn = copy.deepcopy(net).eval()
    layers = _layers(drawn)
    for layer in layers:
        layer.register_forward_pre_hook(_use_own_batch)
    outputs = []
    with torch.no_grad():
        for _ in range(n):
            rows = torch.randperm(len(inputs), generator=generator, device=device)[:batch_size]
            for layer in layers:
                layer._take_batch = True
            drawn(inputs[rows.to(inputs.device)])
            for layer in layers:
                layer._take_batch = False
            outputs.append(drawn(x))
    return torch.stack(outputs)


def _use_own_batch(layer: Any, args: tuple[Tensor, ...]) -> None:
    if layer._take_batch:
        layer.running_mean, layer.running_var, _ = moments(args[0])


def _layers(net: nn.Module) -> list[Any]:
    # Any: torch's layers hold None where ours always hold tensors.
    return [module for module in net.modules() if isinstance(module, BatchNorm | _Torch)]


@contextmanager
def _modes_kept(net: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in net.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
