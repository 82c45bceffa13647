"""Forward passes of a network under q(w) = prod_p N(loc_p, scale_p^2) whose gradients scatter less.

One draw of w moves all examples of a batch together. Two ways to move each one by itself:

    local     f = x loc^T + sqrt(x^2 (scale^2)^T) * eps,   eps ~ N(0, 1) for each example and output
    flipout   f = x loc^T + s * ((x * r) d^T),             d = scale * eps one draw, r, s random signs of each example

Seen from one example both have the distribution of a layer with drawn weights. So the expected log
likelihood, a sum over examples, and its gradient are the same; only their scatter is not
(Kingma, Salimans and Welling 2015; Wen, Vicol, Ba, Tran and Grosse 2018).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from bnnlib._random import fill_normal, place
from bnnlib.nets.model import Model

__all__ = ["KINDS", "SampledOutputs", "noisy_forward"]

KINDS = ("reparameterised", "local", "flipout")

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SAMPLED = (nn.Linear, *_CONVOLUTIONS)


class SampledOutputs:
    """The network of `model` as a function of loc and scale, with fresh noise at every call.

    Dense layers and convolutions get the noise of `kind`; parameters of other modules are drawn once a
    call, as `"reparameterised"` does with all of them. Where a weight meets one example at many
    positions (a kernel, a dense layer over a sequence), noise at each position would forget that the
    weight is the same everywhere, and pooling would average it away. There `"local"` uses Flipout's
    signs, which are one for all positions.

    Parameters
    ----------
    model
        Its net is copied; the layer types count, not the parameters' present values.
    kind
        "reparameterised", "local" or "flipout".

    Raises
    ------
    ValueError
        An unknown kind; in a call: loc, scale or x that do not fit; a dense layer or convolution that runs
        twice or not at all in one pass, or whose rows are not the examples of x. The message names the layer.
    """

    def __init__(self, model: Model, kind: str = "local") -> None:
        if not isinstance(model, Model):
            raise TypeError(f"model must be a bnnlib.nets.Model, got {type(model).__name__}")
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; choose one of {', '.join(KINDS)}")
        self.model, self.kind = model, kind
        self.net = copy.deepcopy(model.net).requires_grad_(False)
        self.layers: dict[str, nn.Module] = {}
        if kind != "reparameterised":
            self.layers = {name: m for name, m in self.net.named_modules() if _plain(m)}
        for name, layer in self.layers.items():
            layer.forward = partial(self._layer, name, layer)
        prefixes = tuple(f"{name}." if name else "" for name in self.layers)
        # An empty prefix is the net that is itself one layer: it owns everything.
        self.others = [name for name in model.shapes if not (prefixes and name.startswith(prefixes))]
        self._pass = _Pass({}, {}, 0, None)

    def __call__(self, loc: Tensor, scale: Tensor, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Output of the network for one draw of noise, (N, outputs), differentiable in loc and scale.

        Parameters
        ----------
        loc, scale
            Mean and standard deviation of each unknown, shape (P,); entries after the network's own are not used.
        x
            Inputs, (N, ...).
        generator
            Source of the noise; torch's default generator if None.
        """
        self._check(loc, scale)
        self._pass = now = _Pass(self._named(loc), self._named(scale), len(x), generator)
        drawn = {name: _drawn(now.loc[name], now.scale[name], generator) for name in self.others}
        f: Tensor = functional_call(self.net, drawn, (x,))
        idle = [name for name in self.layers if name not in now.done]
        if idle:
            raise ValueError(
                f"{', '.join(idle)} did not run in the forward pass, so outputs cannot be sampled there; "
                'if another module reads its weights, use kind="reparameterised"'
            )
        return f

    def _layer(self, name: str, layer: nn.Module, h: Tensor) -> Tensor:
        """Sampled output of one dense layer or convolution."""
        now, where = self._pass, f"{name or 'the net'} ({type(layer).__name__})"
        if name in now.done:
            raise ValueError(
                f"{where} runs twice in one pass; its outputs share their weights, which separate noise would not. "
                'Use kind="reparameterised"'
            )
        if len(h) != now.n or h.dim() < 2 or (isinstance(layer, _CONVOLUTIONS) and h.dim() != layer.weight.dim()):
            raise ValueError(
                f"{where} sees an input of shape {tuple(h.shape)} for {now.n} examples; sampled outputs need "
                'one example a row. Use kind="reparameterised"'
            )
        now.done.add(name)
        (weight, bias), (weight_sd, bias_sd) = now.of(name, now.loc), now.of(name, now.scale)
        apply = _map(layer)
        mean = apply(h, weight, bias)
        channels = 1 if isinstance(layer, _CONVOLUTIONS) else -1
        if self.kind == "local" and mean.numel() == len(mean) * mean.shape[channels]:
            variance = apply(h.square(), weight_sd.square(), None if bias_sd is None else bias_sd.square())
            return mean + _sqrt(variance) * _normal(mean, now.generator)
        move = weight_sd * _normal(weight_sd, now.generator)
        bias_move = None if bias_sd is None else bias_sd * _normal(bias_sd, now.generator)
        sign_in, sign_out = _signs(h, channels, now.generator), _signs(mean, channels, now.generator)
        return mean + sign_out * apply(h * sign_in, move, bias_move)

    def _named(self, values: Tensor) -> dict[str, Tensor]:
        shapes = self.model.shapes
        parts = values[: self.model.net_size].split([s.numel() for s in shapes.values()])
        return {name: part.view(shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)}

    def _check(self, loc: Tensor, scale: Tensor) -> None:
        sizes = sorted({self.model.net_size, self.model.size})
        for name, value in (("loc", loc), ("scale", scale)):
            if value.dim() != 1 or len(value) not in sizes:
                expected = " or ".join(f"({s},)" for s in sizes)
                raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {expected}")
        if bool((scale.detach() < 0).any()):
            raise ValueError("scale has negative entries; it is a standard deviation, not its logarithm or rho")


def noisy_forward(
    model: Model,
    loc: Tensor,
    scale: Tensor,
    x: Tensor,
    kind: str = "local",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Network output under N(loc, scale^2) with the noise of `kind`: one call of `SampledOutputs(model, kind)`.

    Returns
    -------
    Tensor
        Shape (N, outputs). Under "reparameterised" all rows belong to one draw of w. Under "local" and
        "flipout" each row has the right distribution, but the rows do not belong to one function.

    Examples
    --------
    >>> from bnnlib.nets import Gaussian
    >>> model = Model(nn.Linear(3, 1), Gaussian(scale=1.0))
    >>> noisy_forward(model, model.start(), torch.full((4,), 0.1), torch.ones(5, 3)).shape
    torch.Size([5, 1])
    """
    return SampledOutputs(model, kind)(loc, scale, x, generator)


class _Pass:
    """What the layers need to know about the call that is under way."""

    def __init__(
        self, loc: dict[str, Tensor], scale: dict[str, Tensor], n: int, generator: torch.Generator | None
    ) -> None:
        self.loc, self.scale, self.n, self.generator = loc, scale, n, generator
        self.done: set[str] = set()

    @staticmethod
    def of(layer: str, values: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The layer's weight and bias, or None, among the values of all parameters."""
        prefix = f"{layer}." if layer else ""
        return values[f"{prefix}weight"], values.get(f"{prefix}bias")


def _plain(layer: nn.Module) -> bool:
    """A dense layer or convolution whose parameters are its weight and bias (not, say, a weight-normed one).

    One with a constant weight or bias is not: `now.of` would look for it among what is unknown.
    """
    own = {name for name, _ in layer.named_parameters()}
    return type(layer) in _SAMPLED and "weight" in own and own <= {"weight", "bias"} and not layer._buffers


def _map(layer: nn.Module) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The layer as a function of input, weight and bias, with its own stride, padding, dilation and groups."""
    if isinstance(layer, _CONVOLUTIONS):
        return layer._conv_forward
    return F.linear


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return fill_normal(torch.empty_like(like, requires_grad=False), generator)


def _drawn(loc: Tensor, scale: Tensor, generator: torch.Generator | None) -> Tensor:
    return loc + scale * _normal(loc, generator)


def _signs(like: Tensor, channels: int, generator: torch.Generator | None) -> Tensor:
    """Plus or minus one for each example and channel, the same at all positions."""
    shape = [1] * like.dim()
    shape[0], shape[channels] = like.shape[0], like.shape[channels]
    coin = torch.empty(shape, dtype=like.dtype, device=place(generator, like)).bernoulli_(0.5, generator=generator)
    return coin.mul_(2).sub_(1).to(like.device)


def _sqrt(variance: Tensor) -> Tensor:
    # The root's slope at zero is infinite; where there is no variance there is nothing to move.
    positive = variance > 0
    return torch.where(positive, variance, 1).sqrt() * positive
