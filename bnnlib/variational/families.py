"""Families of normals that q is looked for in: factorised, low rank, full covariance.

Each has flat parameters and a scale for each entry, so that a step of the optimiser means the same
for an entry of any size:

    mean field    z = loc + s * e                        e ~ N(0, I),  s = exp(log_scale)
    full rank     z = loc + s * (e + u C e)              C strictly lower triangular,  u = min(1, 10 / D)
    low rank      z = loc + s * (e + C h)                h ~ N(0, I) of length rank

The gradients are written by hand beside the formulas, for steps that must be fast; `distribution()`
gives the torch distribution, whose gradients are autograd's.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, LowRankMultivariateNormal, MultivariateNormal, Normal

from bnnlib._random import fill_normal
from bnnlib._settings import check_whole

__all__ = ["Family", "FullRank", "LowRank", "MeanField"]

_LARGEST_FULL = 10_000


class Family(ABC):
    """What `fit` needs: parameters that an optimiser can move, and the distribution that they stand for.

    Attributes
    ----------
    size : int
        D, the length of z.
    parameters : list of Tensor
        Leaves with `requires_grad`.
    """

    size: int
    parameters: list[Tensor]

    @abstractmethod
    def distribution(self, *, validate_args: bool = False) -> Distribution:
        """The torch distribution at the present parameters, with their gradient; event shape (D,)."""

    def settled(self, device: torch.device | None = None) -> Distribution:
        """The same distribution without gradient, on `device`; later steps do not change it."""
        fixed = copy.deepcopy(self)
        for p in fixed.parameters:
            p.grad = None
            p.requires_grad_(False)
            p.data = p.data.to(device)
        return fixed.distribution(validate_args=True)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.size})"


class NormalFamily(Family):
    """A normal whose gradients are written by hand.

    One step is `begin` (gradient of minus the entropy), then for each draw `draw_into` and `pull`,
    then perhaps `spread`, then `end`. The gradient in loc is the sum of what `pull` was given: the
    caller, who has it already, puts it into `loc.grad`.
    """

    def __init__(
        self, size: int, loc: float | Tensor = 0.0, scale: float | Tensor = 1.0, *, dtype: torch.dtype | None = None
    ) -> None:
        check_whole(size=size)
        self.size = size
        self.loc, self.log_scale = start(size, loc, scale, dtype)
        self.parameters = [self.loc, self.log_scale]

    @property
    def scale(self) -> Tensor:
        """s = exp(log_scale), (D,). A scale that underflowed to zero would have no density."""
        return self.log_scale.exp().clamp_min(torch.finfo(self.log_scale.dtype).tiny)

    def prepare(self) -> None:
        """Allocate the buffers once; what follows runs without autograd."""
        for p in self.parameters:
            p.grad = torch.zeros_like(p)
        self._s, self._move = torch.empty_like(self.loc), torch.empty_like(self.loc)

    def begin(self, weight: float = 1.0) -> Tensor:
        """Set the gradients to those of -weight * entropy; returns the entropy."""
        torch.exp(self.log_scale, out=self._s).clamp_min_(torch.finfo(self._s.dtype).tiny)
        _grad(self.log_scale).fill_(-weight)
        return self.log_scale.sum() + 0.5 * self.size * (1 + math.log(2 * math.pi))

    @abstractmethod
    def draw_into(self, out: Tensor, generator: torch.Generator | None) -> None:
        """Write one draw of z into `out`."""

    def pull(self, slope: Tensor) -> None:
        """Add the gradient of slope . z at the last draw, but for its part in loc."""
        _grad(self.log_scale).addcmul_(slope, self._move)

    @abstractmethod
    def spread(self, precision: Tensor, weight: float = 1.0) -> Tensor:
        """E_q[1/2 sum_i precision_i (z_i - loc_i)^2] over the first entries; adds `weight` times its gradient."""

    def end(self) -> None:
        """Finish the gradients, after the last draw."""


class MeanField(NormalFamily):
    """Independent normals: q(z) = prod_i N(z_i | loc_i, scale_i^2). 2 D parameters.

    Parameters
    ----------
    size
        D, the length of z.
    loc, scale
        Where to start: a number, or a tensor of shape (D,).
    dtype
        Of the parameters; that of `loc` or `scale` if one is a tensor, else torch's default.
    """

    def distribution(self, *, validate_args: bool = False) -> Distribution:
        return Independent(Normal(self.loc, self.scale, validate_args=validate_args), 1, validate_args=validate_args)

    def draw_into(self, out: Tensor, generator: torch.Generator | None) -> None:
        fill_normal(self._move, generator).mul_(self._s)
        torch.add(self.loc, self._move, out=out)

    def spread(self, precision: Tensor, weight: float = 1.0) -> Tensor:
        c = len(precision)
        ratio = (self._s[:c] * self._s[:c]).mul_(precision)
        _grad(self.log_scale)[:c].add_(ratio, alpha=weight)
        return 0.5 * ratio.sum()


class _Correlated(NormalFamily):
    """z = loc + s * (e + u C h), with h = e for the full covariance."""

    mix: Tensor
    pace = 1.0  # u

    def prepare(self) -> None:
        super().prepare()
        self._unit, self._h = torch.empty_like(self.loc), self.loc.new_empty(self.mix.shape[1])

    def pull(self, slope: Tensor) -> None:
        super().pull(slope)
        _grad(self.mix).addr_(slope * self._s, self._h, alpha=self.pace)

    def spread(self, precision: Tensor, weight: float = 1.0) -> Tensor:
        c = len(precision)
        own = (self._s[:c] * self._s[:c]).mul_(precision)
        ratio = own * (1 + self.pace**2 * self.mix[:c].square().sum(-1))  # variance * precision
        _grad(self.log_scale)[:c].add_(ratio, alpha=weight)
        _grad(self.mix)[:c].add_(own[:, None] * self.mix[:c], alpha=self.pace**2 * weight)
        return 0.5 * ratio.sum()


class FullRank(_Correlated):
    """A normal with any covariance S (I + u C)(I + u C)^T S, S = diag(s). D (D + 3) / 2 parameters.

    Parameters are those of `MeanField`; C starts at zero. The pace u = min(1, 10 / D) makes Adam's steps in u C short:
    under its noise each entry gets a variance in proportion to its step, and a variance of z has up to D of them.

    Raises
    ------
    ValueError
        More entries than a D x D matrix has room for (10,000).
    """

    def __init__(
        self, size: int, loc: float | Tensor = 0.0, scale: float | Tensor = 1.0, *, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(size, loc, scale, dtype=dtype)
        if size > _LARGEST_FULL:
            raise ValueError(
                f"a full covariance of {size} unknowns has {size * (size + 1) // 2:,} numbers; above {_LARGEST_FULL:,} "
                "unknowns take a low rank"
            )
        self.pace = min(1.0, 10 / size)
        self.mix = self.loc.new_zeros((size, size)).requires_grad_()
        self.parameters.append(self.mix)

    def distribution(self, *, validate_args: bool = False) -> Distribution:
        unit = self.pace * self.mix.tril(-1) + torch.eye(self.size, dtype=self.loc.dtype, device=self.loc.device)
        return MultivariateNormal(self.loc, scale_tril=self.scale[:, None] * unit, validate_args=validate_args)

    def begin(self, weight: float = 1.0) -> Tensor:
        entropy = super().begin(weight)
        _grad(self.mix).zero_()
        return entropy

    def draw_into(self, out: Tensor, generator: torch.Generator | None) -> None:
        fill_normal(self._h, generator)
        torch.addmv(self._h, self.mix, self._h, alpha=self.pace, out=self._unit)
        torch.mul(self._s, self._unit, out=self._move)
        torch.add(self.loc, self._move, out=out)

    def end(self) -> None:
        _grad(self.mix).tril_(-1)


class LowRank(_Correlated):
    """A normal with covariance S (I + C C^T) S, C of shape (D, rank). (2 + rank) D parameters.

    Parameters
    ----------
    size
        D, the length of z.
    rank
        Number of directions beside the axes, 1 to D.
    loc, scale, dtype
        As for `MeanField`. C starts at small cosines: at zero its gradient has no mean and never would.
    """

    def __init__(
        self,
        size: int,
        rank: int,
        loc: float | Tensor = 0.0,
        scale: float | Tensor = 1.0,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(size, loc, scale, dtype=dtype)
        check_whole(rank=rank)
        if rank > size:
            raise ValueError(f"rank is {rank}, more than the {size} unknowns; take FullRank({size})")
        self.rank = rank
        place = torch.arange(size, dtype=torch.float64)[:, None] + 0.5
        cosines = 0.1 * torch.cos(math.pi * place * torch.arange(rank) / size)
        self.mix = cosines.to(self.loc).requires_grad_()
        self.parameters.append(self.mix)

    def __repr__(self) -> str:
        return f"LowRank({self.size}, rank={self.rank})"

    def distribution(self, *, validate_args: bool = False) -> Distribution:
        s = self.scale
        return LowRankMultivariateNormal(self.loc, s[:, None] * self.mix, s * s, validate_args=validate_args)

    def begin(self, weight: float = 1.0) -> Tensor:
        entropy = super().begin(weight)
        # cholesky_ex: a fit that broke shall show as a NaN in the loss, which the loop names, not as an error here
        factor = torch.linalg.cholesky_ex(self.mix.T @ self.mix + torch.eye(self.rank).to(self.mix))[0]
        factor = torch.where(torch.isfinite(self.mix).all(), factor, torch.nan)
        # 1/2 log det(I + C C^T) and its gradient C (I + C^T C)^-1
        _grad(self.mix).copy_(torch.cholesky_solve(self.mix.T, factor).T).mul_(-weight)
        half_log_det: Tensor = factor.diagonal().log().sum()
        return entropy + half_log_det

    def draw_into(self, out: Tensor, generator: torch.Generator | None) -> None:
        fill_normal(self._unit, generator)
        fill_normal(self._h, generator)
        self._unit.addmv_(self.mix, self._h)
        torch.mul(self._s, self._unit, out=self._move)
        torch.add(self.loc, self._move, out=out)


def start(size: int, loc: float | Tensor, scale: float | Tensor, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """loc and log_scale as new leaves of shape (size,)."""
    given = [v for v in (loc, scale) if isinstance(v, Tensor)]
    kind = dtype or (given[0].dtype if given else torch.get_default_dtype())
    made = []
    for name, value in (("loc", loc), ("scale", scale)):
        v = torch.as_tensor(value, dtype=kind, device=given[0].device if given else None).detach()
        if v.dim() and v.shape != (size,):
            raise ValueError(f"{name} has shape {tuple(v.shape)}; expected a number or ({size},)")
        if not bool(torch.isfinite(v).all()) or (name == "scale" and not bool((v > 0).all())):
            raise ValueError(f"{name} must be finite{' and positive' if name == 'scale' else ''}, got {value}")
        made.append(v.expand(size).clone())
    return made[0].requires_grad_(), made[1].log().requires_grad_()


def _grad(p: Tensor) -> Tensor:
    assert p.grad is not None, "call prepare() first"
    return p.grad
