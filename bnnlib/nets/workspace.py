"""A copy of a network whose parameters are views of one flat buffer.

Writing w into the buffer sets the whole network, and one pass backwards leaves the whole gradient in
one vector. On the book's net this costs 3 % over the plain network; passing parameters through
`functional_call` costs 60 %.

Dense networks, Linear layers with activations in a row, are run by hand into buffers that are kept:

    forward     a_l = h_{l-1} W_l^T + b_l,    h_l = g(a_l),    h_0 = x
    backward    d_l = dL/da_l:    dL/dW_l = d_l^T h_{l-1},    dL/db_l = sum_n d_l,    dL/dh_{l-1} = d_l W_l

Autograd does the same, but allocates every result anew and adds gradients to zeros.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from bnnlib._random import by_rows, draw, fill_normal
from bnnlib.nets.model import Model

__all__ = ["Workspace", "stream"]

_IN_PLACE = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Hardtanh, nn.ReLU6)
_ACTIVATIONS: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.ReLU: torch.relu_,
    nn.Tanh: torch.tanh_,
    nn.Sigmoid: torch.sigmoid_,
}
_aten = torch.ops.aten
# g'(a) is a function of h = g(a). These turn dL/dh into dL/da in place, as autograd's own kernels do.
_SLOPES: dict[type[nn.Module], Callable[[Tensor, Tensor], Tensor]] = {
    nn.ReLU: lambda d, h: _aten.threshold_backward.grad_input(d, h, 0, grad_input=d),
    nn.Tanh: lambda d, h: _aten.tanh_backward.grad_input(d, h, grad_input=d),
    nn.Sigmoid: lambda d, h: _aten.sigmoid_backward.grad_input(d, h, grad_input=d),
}


class Workspace:
    """Network of `model` over a flat buffer.

    Attributes
    ----------
    w
        The buffer, shape (P,): network parameters, then the noise.
    grad
        Gradient of what was last differentiated with respect to w, shape (P,). `misfit` overwrites it; zero it
        before any other backward.
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
        self.gradient, self._dense = gradient, _dense_layers(self.net)
        self._outputs: list[Tensor] = []
        self._slopes: list[Tensor] = []
        if not gradient:
            _overwrite_inputs(self.net)

    def __call__(self, x: Tensor) -> Tensor:
        """Output of the network at the buffer's present content, (N, outputs).

        Without a gradient the result may be a buffer that the next call overwrites.
        """
        if self.gradient or self._dense is None or x.dim() != 2:
            out: Tensor = self.net(x)
            return out
        return self._forward(self._dense, x)

    def misfit(self, x: Tensor, y: Tensor, ratio: float) -> Tensor:
        """-ratio * log p(y | x, w) at the buffer's present content, in nats; `grad` then holds its gradient."""
        layers = self._dense if x.dim() == 2 else None
        self.grad.zero_()
        with torch.enable_grad():
            f = self.net(x) if layers is None else self._forward(layers, x).detach().requires_grad_()
            value = self.model.likelihood.log_likelihood(f, y, self.u) * -ratio
            value.backward()
        if layers is not None:
            assert f.grad is not None
            self._backward(layers, x, f.grad)
        return value.detach()

    def _forward(self, layers: list[_Layer], x: Tensor) -> Tensor:
        if not self._outputs or len(self._outputs[0]) != len(x):
            self._outputs = [x.new_empty(len(x), len(layer.bias)) for layer in layers]
            self._slopes = [torch.empty_like(h) for h in self._outputs[:-1]] if self.gradient else []
        h = x
        for layer, out in zip(layers, self._outputs, strict=True):
            # One input makes an outer product: half of the time of a general matrix product.
            product = torch.addcmul if len(layer.weight_t) == 1 else torch.addmm
            h = product(layer.bias, h, layer.weight_t, out=out)
            if layer.activation is not None:
                _ACTIVATIONS[layer.activation](h)
        return h

    def _backward(self, layers: list[_Layer], x: Tensor, d: Tensor) -> None:
        """From d = dL/df, which is overwritten, to the gradients of all layers."""
        h = [x, *self._outputs]
        for i in reversed(range(len(layers))):
            layer = layers[i]
            if layer.activation is not None:
                _SLOPES[layer.activation](d, h[i + 1])
            torch.mm(d.T, h[i], out=layer.weight_grad)
            torch.sum(d, 0, out=layer.bias_grad)
            if i:
                product = torch.mul if d.shape[1] == 1 else torch.mm
                d = product(d, layer.weight_t.T, out=self._slopes[i - 1])


class _Layer(NamedTuple):
    """A dense layer as views of the buffers: weight^T (in, out), bias (out,), their gradients; its activation."""

    weight_t: Tensor
    bias: Tensor
    weight_grad: Tensor | None
    bias_grad: Tensor | None
    activation: type[nn.Module] | None = None


def _dense_layers(net: nn.Module) -> list[_Layer] | None:
    """The layers if `net` is nothing but Linear layers in a row, each perhaps followed by an activation, else None."""
    if type(net) is not nn.Sequential:
        return None
    layers: list[_Layer] = []
    for module in net:
        kind = type(module)
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            return None
        if type(module) is nn.Linear and module.bias is not None:
            weight, bias = module.weight, module.bias
            layers.append(_Layer(weight.detach().T, bias.detach(), weight.grad, bias.grad))
        elif kind in _ACTIVATIONS and layers and layers[-1].activation is None:
            layers[-1] = layers[-1]._replace(activation=kind)
        else:
            return None
    return layers


def _steady_heap() -> None:
    """Free one block of 32 MiB that was never touched: from then on glibc keeps freed activations instead of
    returning their pages to the system and faulting them in again at every step (up to half of a step's time)."""
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


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
            fill_normal(noise, generator)
            yield torch.addcmul(base.loc, base.scale, noise, out=out)
        return
    # Chunks bound the memory: about 16 MiB of weights at a time, where that does not change the numbers.
    chunk = max(1, 2**22 // len(out)) if by_rows(distribution) else draws
    for start in range(0, draws, chunk):
        for w in draw(distribution, min(chunk, draws - start), generator):
            yield out.copy_(w)
