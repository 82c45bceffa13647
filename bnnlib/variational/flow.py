"""A normalising flow: a normal bent by functions that can be undone, for posteriors that no normal fits.

    z = loc + s * g_L(... g_1(e)),   log q(z) = log N(e | 0, I) - log |det dz/de|

Each g (Dinh, Sohl-Dickstein and Bengio 2017) keeps a part of its input and moves the rest by what a
small network says about the part that is kept:

    z_kept = e_kept,   z_rest = e_rest * exp(a(e_kept)) + b(e_kept),   log |det| = sum a.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Distribution,
    Independent,
    Normal,
    Transform,
    TransformedDistribution,
    constraints,
)

from bnnlib._random import standard_normal
from bnnlib._settings import check_whole
from bnnlib.variational.families import Family, start

__all__ = ["Flow"]


class Flow(Family):
    """A factorised normal bent by affine couplings. It starts as that normal, unbent.

    Parameters
    ----------
    size
        D, the length of z, at least 2.
    layers
        Number of couplings; each keeps what the one before it moved.
    hidden
        Hidden units of each coupling's network (tanh).
    loc, scale, dtype
        As for `MeanField`.
    generator
        Source of the networks' first weights.
    """

    def __init__(
        self,
        size: int,
        layers: int = 4,
        hidden: int = 16,
        loc: float | Tensor = 0.0,
        scale: float | Tensor = 1.0,
        *,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        check_whole(2, **{"size (of a flow, which moves one part by another)": size})
        check_whole(layers=layers)
        check_whole(hidden=hidden)
        self.size = size
        self.loc, self.log_scale = start(size, loc, scale, dtype)
        self.networks = []
        self.parameters = [self.loc, self.log_scale]
        even = torch.arange(size, device=self.loc.device) % 2 == 0
        self.masks = [even if i % 2 == 0 else ~even for i in range(layers)]
        for mask in self.masks:
            kept = int(mask.sum())
            inner = standard_normal((hidden, kept), self.loc, generator) / kept**0.5
            net = [inner, inner.new_zeros(hidden), inner.new_zeros(2 * (size - kept), hidden)]
            net.append(inner.new_zeros(2 * (size - kept)))
            self.networks.append([p.requires_grad_() for p in net])
            self.parameters += self.networks[-1]

    def __repr__(self) -> str:
        return f"Flow({self.size}, layers={len(self.masks)}, hidden={len(self.networks[0][1])})"

    def distribution(self, *, validate_args: bool = False) -> Distribution:
        base = Independent(Normal(torch.zeros_like(self.loc), 1.0, validate_args=False), 1, validate_args=False)
        couplings: list[Transform] = [_Coupling(m, n) for m, n in zip(self.masks, self.networks, strict=True)]
        # cache_size=1: log_prob of a draw just made remembers the way back
        outer = AffineTransform(self.loc, self.log_scale.exp(), event_dim=1, cache_size=1)
        return TransformedDistribution(base, [*couplings, outer], validate_args=validate_args)


class _Coupling(Transform):
    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, mask: Tensor, network: list[Tensor]) -> None:
        super().__init__(cache_size=1)
        self.mask, self.network = mask, network

    def _shift(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        inner, inner_bias, outer, outer_bias = self.network
        out = torch.tanh(kept @ inner.T + inner_bias) @ outer.T + outer_bias
        a, b = out.chunk(2, -1)
        return 2 * torch.tanh(a / 2), b  # a factor of at most e^2 a layer keeps the first steps sane

    def _call(self, x: Tensor) -> Tensor:
        a, b = self._shift(x[..., self.mask])
        z = x.clone()
        z[..., ~self.mask] = x[..., ~self.mask] * a.exp() + b
        return z

    def _inverse(self, y: Tensor) -> Tensor:
        a, b = self._shift(y[..., self.mask])
        x = y.clone()
        x[..., ~self.mask] = (y[..., ~self.mask] - b) * (-a).exp()
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        del y  # both have the same kept part
        return self._shift(x[..., self.mask])[0].sum(-1)
