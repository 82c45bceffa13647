"""A copy of a network whose parameters are views of one flat buffer.

Writing w into the buffer sets the whole network, and backward leaves the whole gradient in one
vector. On the book's net this costs 3 % over the plain network; passing parameters through
`functional_call` costs 60 %.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from bnnlib._random import by_rows, draw
from bnnlib.nets.model import Model

__all__ = ["Workspace", "stream"]

_IN_PLACE = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Hardtanh, nn.ReLU6)
_ACTIVATIONS: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.ReLU: torch.relu_,
    nn.Tanh: torch.tanh_,
    nn.Sigmoid: torch.sigmoid_,
}


class Workspace:
    """Network of `model` over a flat buffer.

    Attributes
    ----------
    w
        The buffer, shape (P,): network parameters, then the noise.
    grad
        Gradient of what was last differentiated with respect to w, shape (P,); zero it before each backward.
    """

    def __init__(self, model: Model, *, gradient: bool = False) -> None:
        _steady_heap()
        self.model = model
        self.net = copy.deepcopy(model.net).requires_grad_(gradient)
        self.w = model.start()
        self.grad = torch.zeros_like(self.w)
        sizes = [s.numel() for s in model.shapes.values()]
        views = self.w[: model.net_size].split(sizes), self.grad[: model.net_size].split(sizes)
        for p, v, g in zip(self.net.parameters(), *views, strict=True):
            p.data = v.view(p.shape)
            p.grad = g.view(p.shape) if gradient else None
        self.u = self.w[model.net_size :]
        if gradient and len(self.u):
            self.u = self.u.detach().requires_grad_()
            self.u.grad = self.grad[model.net_size :]
        if not gradient:
            _overwrite_inputs(self.net)

        self._dense = None if gradient else _dense_layers(self.net)
        self._buffers: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        """Output of the network at the buffer's present content, (N, outputs).

        Without a gradient the result may be a buffer that the next call overwrites.
        """
        if self._dense is None or x.dim() != 2:
            out: Tensor = self.net(x)
            return out
        if not self._buffers or len(self._buffers[0]) != len(x):
            self._buffers = [x.new_empty(len(x), linear.out_features) for linear, _ in self._dense]
        h = x
        for (linear, activation), buffer in zip(self._dense, self._buffers, strict=True):
            if linear.in_features == 1:
                torch.addcmul(linear.bias, h, linear.weight.T, out=buffer)  # outer product: half of a gemm
            else:
                torch.addmm(linear.bias, h, linear.weight.T, out=buffer)
            h = buffer if activation is None else activation(buffer)
        return h


def _steady_heap() -> None:
    """Free one block of 32 MiB that was never touched: from then on glibc keeps freed activations instead of
    returning their pages to the system and faulting them in again at every step (up to half of a step's time)."""
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def _dense_layers(net: nn.Module) -> list[tuple[nn.Linear, Callable[[Tensor], Tensor] | None]] | None:
    """Pairs (Linear, in-place activation or None) if `net` is nothing but these in a row, else None."""
    if type(net) is not nn.Sequential:
        return None
    pairs: list[tuple[nn.Linear, Callable[[Tensor], Tensor] | None]] = []
    for layer in net:
        hooked = layer._forward_hooks or layer._forward_pre_hooks
        if type(layer) is nn.Linear and layer.bias is not None and not hooked:
            pairs.append((layer, None))
        elif type(layer) in _ACTIVATIONS and pairs and pairs[-1][1] is None and not hooked:
            pairs[-1] = (pairs[-1][0], _ACTIVATIONS[type(layer)])
        else:
            return None
    return pairs


def _overwrite_inputs(net: nn.Module) -> None:
    """Let an activation overwrite its input where nothing else can need it: no backward pass, used in one place."""
    for block in net.modules():
        if isinstance(block, nn.Sequential):
            layers = list(block)
            for before, after in pairwise(layers):
                fresh = isinstance(before, nn.Linear | nn.modules.conv._ConvNd) and not before._forward_hooks
                if fresh and isinstance(after, _IN_PLACE) and sum(m is after for m in net.modules()) == 1:
                    once = sum(layer is after for layer in layers) == 1
                    after.inplace = once


def stream(distribution: Distribution, draws: int, out: Tensor, generator: torch.Generator | None) -> Iterator[Tensor]:
    """Yield `draws` times the buffer `out` with a new draw in it; the same numbers as one call of `draw`."""
    base = distribution.base_dist if isinstance(distribution, Independent) else distribution
    if type(base) is Normal:
        noise = torch.empty_like(out)
        for _ in range(draws):
            noise.normal_(generator=generator)
            yield torch.addcmul(base.loc, base.scale, noise, out=out)
        return
    # Chunks bound the memory: about 16 MiB of weights at a time, where that does not change the numbers.
    chunk = max(1, 2**22 // len(out)) if by_rows(distribution) else draws
    for start in range(0, draws, chunk):
        for w in draw(distribution, min(chunk, draws - start), generator):
            yield out.copy_(w)
