"""Likelihoods p(y | f, noise): how an observation y scatters around what the network says, f = f(x; w).

Each has the same four answers: how many network outputs an observation of K numbers needs, the
log density, the predictive components, and the square root of the Fisher information that the
generalised Gauss-Newton matrix is made of. What is unknown about the noise is part of the flat
vector w, in an unconstrained coordinate u; `biject_to` maps u to the noise and gives the Jacobian.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli as BernoulliDistribution,
)
from torch.distributions import (
    Categorical as CategoricalDistribution,
)
from torch.distributions import (
    Distribution,
    Normal,
    biject_to,
)
from torch.distributions import (
    StudentT as StudentTDistribution,
)
from torch.nn.functional import softplus

from bnnlib.nets.priors import describe
from bnnlib.predictive import Predictive

__all__ = ["Bernoulli", "Categorical", "Gaussian", "HeteroscedasticGaussian", "Likelihood", "StudentT"]


class Likelihood(ABC):
    """Base of all likelihoods. `unknown` is the prior of the noise parameter, or None where nothing is unknown."""

    unknown: Distribution | None = None
    continuous = True

    @property
    def unknown_size(self) -> int:
        """How many unconstrained numbers the noise adds to w."""
        return 0 if self.unknown is None else self.unknown.batch_shape.numel()

    def unknown_log_prior(self, u: Tensor) -> Tensor:
        """Log prior density of the unconstrained coordinate u, Jacobian included; (..., M) -> (...)."""
        if self.unknown is None:
            return u.new_zeros(u.shape[:-1])
        unknown = self._unknown_like(u)
        transform = biject_to(unknown.support)
        v = transform(u)
        log_p = unknown.log_prob(v.reshape((*u.shape[:-1], *unknown.batch_shape))).reshape(v.shape)
        density: Tensor = (log_p + transform.log_abs_det_jacobian(u, v)).sum(-1)
        return density

    def _unknown_like(self, u: Tensor) -> Distribution:
        """`unknown` in the dtype and on the device of u: torch's Gamma, for one, would bring u to its own."""
        assert self.unknown is not None
        source, moved = self.__dict__.get("_moved", (None, None))
        if source is not self.unknown or self.__dict__["_place"] != (u.dtype, u.device):
            values = {name: getattr(self.unknown, name, None) for name in self.unknown.arg_constraints}
            there = {k: v.to(u.device, u.dtype) for k, v in values.items() if isinstance(v, Tensor)}
            kind, checked = cast(Any, type(self.unknown)), self.unknown._validate_args
            moved = kind(**there, validate_args=checked) if len(there) == len(values) else self.unknown
            self._moved, self._place = (self.unknown, moved), (u.dtype, u.device)
        return cast(Distribution, moved)

    def unknown_start(self) -> Tensor:
        """Where inference starts: the prior mean of the noise, or 1 above its smallest value where there is no mean."""
        if self.unknown is None:
            return torch.zeros(0)
        mean, support = self.unknown.mean, cast(Any, self.unknown.support)
        start = torch.where(torch.isfinite(mean), mean, torch.as_tensor(support.lower_bound).to(mean) + 1)
        start_u: Tensor = biject_to(self.unknown.support).inv(start).reshape(-1)
        return start_u

    @abstractmethod
    def log_prob(self, f: Tensor, y: Tensor, u: Tensor) -> Tensor:
        """log p(y | f, u) for each point: f (..., N, outputs), y (N, K) or (N,), u (..., M) -> (..., N)."""

    def log_likelihood(self, f: Tensor, y: Tensor, u: Tensor) -> Tensor:
        """log p(y | f, u) summed over all points: `log_prob(...).sum(-1)`, where possible in fewer passes."""
        return self.log_prob(f, y, u).sum(-1)

    @abstractmethod
    def predictive(self, f: Tensor, u: Tensor, y_loc: Tensor | None, y_scale: Tensor | None) -> Predictive:
        """Mixture over S draws: f (S, N, outputs), u (S, M); y_loc and y_scale (K,) undo a standardisation."""

    @abstractmethod
    def fisher_sqrt(self, f: Tensor, u: Tensor) -> Tensor:
        """A with A A^T = Fisher information of f in one observation: f (N, outputs) -> (N, outputs, outputs)."""

    def log_scale(self, u: Tensor) -> Tensor:
        """Log of the noise's scale as a function of u; only where the Fisher information goes as 1/scale^2."""
        raise TypeError(f"{type(self).__name__} has no noise scale")

    @abstractmethod
    def check(self, f: Tensor, y: Tensor) -> None:
        """Raise a clear error if observations y do not fit network outputs f (N, outputs)."""


class _ScaleFamily(Likelihood):
    """Location-scale noise whose scale is given by exactly one of scale, var or precision."""

    def __init__(self, *, scale: object = None, var: object = None, precision: object = None) -> None:
        given = {k: v for k, v in (("scale", scale), ("var", var), ("precision", precision)) if v is not None}
        if len(given) != 1:
            raise ValueError(
                f"{type(self).__name__} needs exactly one of scale, var, precision; got {', '.join(given) or 'none'}. "
                "scale is a standard deviation, var its square, precision one over var."
            )
        ((self.kind, value),) = given.items()
        if isinstance(value, Distribution):
            if value.event_shape or len(value.batch_shape) > 1:
                raise ValueError(
                    f"the prior on {self.kind} must be univariate, one or one per output; "
                    f"got batch shape {tuple(value.batch_shape)} and event shape {tuple(value.event_shape)}"
                )
            low = getattr(value.support, "lower_bound", -math.inf)
            if cast(Any, value.support).is_discrete or not bool((torch.as_tensor(low) >= 0).all()):
                raise ValueError(f"a prior on {self.kind} must be a density on positive numbers; {value} is not")
            self.unknown = value
            self.fixed = None
            return
        if not isinstance(value, float | int | Tensor):
            raise TypeError(f"{self.kind} is a number, a tensor or a prior distribution, not {type(value).__name__}")
        fixed = torch.as_tensor(value, dtype=torch.float64)
        if not bool((torch.isfinite(fixed) & (fixed > 0)).all()):
            raise ValueError(f"{self.kind} must be positive and finite, got {value}")
        self.fixed = {"scale": fixed, "var": fixed.sqrt(), "precision": fixed.rsqrt()}[self.kind]

    def __repr__(self) -> str:
        if self.fixed is not None:
            return f"{type(self).__name__}(scale={self.fixed.tolist()})"
        assert self.unknown is not None
        return f"{type(self).__name__}({self.kind}={describe(self.unknown)})"

    def log_scale(self, u: Tensor) -> Tensor:
        if self.fixed is not None:
            return self.fixed.log().to(u)
        value: Tensor = biject_to(self.unknown.support)(u)  # type: ignore[union-attr]
        log_scale = value.log() * {"scale": 1.0, "var": 0.5, "precision": -0.5}[self.kind]
        return log_scale

    def scale(self, f: Tensor, u: Tensor) -> Tensor:
        """Noise standard deviation, broadcastable against f (..., N, K)."""
        scale = self.log_scale(u).exp()
        if self.fixed is not None:
            return scale.to(f)
        return scale.unsqueeze(-2)

    def fisher_sqrt(self, f: Tensor, u: Tensor) -> Tensor:
        return torch.diag_embed((self._unit_fisher() ** 0.5 / self.scale(f, u)).expand_as(f))

    def _unit_fisher(self) -> float:
        return 1.0

    def check(self, f: Tensor, y: Tensor) -> None:
        _check_continuous(y, f.shape[-1])
        width = self.fixed.numel() if self.fixed is not None else self.unknown_size
        if width not in (1, f.shape[-1]):
            raise ValueError(f"the noise has {width} values for {f.shape[-1]} outputs; give one, or one per output")


class Gaussian(_ScaleFamily):
    """Normal noise: y_k ~ N(f_k, scale^2), independent over the K outputs.

    Parameters
    ----------
    scale, var, precision
        Exactly one. A number or a tensor of K numbers: the noise is known. A torch distribution on
        positive numbers: its prior, and the noise becomes part of w.

    Examples
    --------
    >>> from torch.distributions import Gamma, HalfNormal
    >>> Gaussian(scale=HalfNormal(1.0)), Gaussian(precision=Gamma(2.0, 0.5))
    (Gaussian(scale=HalfNormal(scale=1)), Gaussian(precision=Gamma(concentration=2, rate=0.5)))
    """

    def log_prob(self, f: Tensor, y: Tensor, u: Tensor) -> Tensor:
        # torch's Normal checks its arguments at every call; this is the same three terms without that.
        log_scale = self.log_scale(u)
        if self.fixed is None:
            log_scale = log_scale.unsqueeze(-2)
        z = (y - f) * torch.exp(-log_scale)
        return (-0.5 * z * z - log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)

    def log_likelihood(self, f: Tensor, y: Tensor, u: Tensor) -> Tensor:
        log_scale = self.log_scale(u)
        if f.dim() != 2 or log_scale.numel() != 1:
            return self.log_prob(f, y, u).sum(-1)
        squares = torch.nn.functional.mse_loss(f, y, reduction="sum")
        half_precision = 0.5 * torch.exp(-2 * log_scale.squeeze())
        return -half_precision * squares - f.numel() * (log_scale.squeeze() + 0.5 * math.log(2 * math.pi))

    def predictive(self, f: Tensor, u: Tensor, y_loc: Tensor | None, y_scale: Tensor | None) -> Predictive:
        loc, scale = _original_units(f, self.scale(f, u).expand_as(f), y_loc, y_scale)
        return Predictive(Normal(loc, scale, validate_args=False))


class StudentT(_ScaleFamily):
    """Student-t noise with `df` degrees of freedom: y_k = f_k + scale * t_df. Heavier tails than normal noise.

    `scale` is the t's scale, not its standard deviation, which is scale * sqrt(df / (df - 2)).
    """

    def __init__(self, df: float, *, scale: object = None, var: object = None, precision: object = None) -> None:
        if not (isinstance(df, float | int) and df > 0 and math.isfinite(df)):
            raise ValueError(f"df must be a positive number, got {df}")
        super().__init__(scale=scale, var=var, precision=precision)
        self.df = float(df)

    def __repr__(self) -> str:
        return super().__repr__().replace("(", f"(df={self.df}, ", 1)

    def log_prob(self, f: Tensor, y: Tensor, u: Tensor) -> Tensor:
        noise: Distribution = StudentTDistribution(self.df, f, self.scale(f, u).expand_as(f), validate_args=False)
        return noise.log_prob(y).sum(-1)

    def predictive(self, f: Tensor, u: Tensor, y_loc: Tensor | None, y_scale: Tensor | None) -> Predictive:
        loc, scale = _original_units(f, self.scale(f, u).expand_as(f), y_loc, y_scale)
        df = torch.full((1, 1, 1), self.df, dtype=f.dtype, device=f.device)
        return Predictive(StudentTDistribution(df.expand_as(loc), loc, scale, validate_args=False))

    def _unit_fisher(self) -> float:
        return (self.df + 1) / (self.df + 3)  # Lange, Little and Taylor (1989)


class HeteroscedasticGaussian(Likelihood):
    """Normal noise whose standard deviation depends on x: the net gives 2 K outputs, K means and K raw scales.

    scale = softplus(raw) + min_scale.
    """

    def __init__(self, min_scale: float = 1e-3) -> None:
        if not min_scale > 0:
            raise ValueError(f"min_scale must be positive, got {min_scale}")
        self.min_scale = min_scale

    def __repr__(self) -> str:
        return f"HeteroscedasticGaussian(min_scale={self.min_scale})"

    def split(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, each (..., N, K)."""
        loc, raw = f.chunk(2, -1)
        return loc, softplus(raw) + self.min_scale

    def log_prob(self, f: Tensor, y: Tensor, u: Tensor) -> Tensor:
        noise: Distribution = Normal(*self.split(f), validate_args=False)
        return noise.log_prob(y).sum(-1)

    def predictive(self, f: Tensor, u: Tensor, y_loc: Tensor | None, y_scale: Tensor | None) -> Predictive:
        loc, scale = _original_units(*self.split(f), y_loc, y_scale)
        return Predictive(Normal(loc, scale, validate_args=False))

    def fisher_sqrt(self, f: Tensor, u: Tensor) -> Tensor:
        _, scale = self.split(f)
        slope = torch.sigmoid(f.chunk(2, -1)[1])  # d softplus / d raw
        return torch.diag_embed(torch.cat([1 / scale, math.sqrt(2) * slope / scale], -1))

    def check(self, f: Tensor, y: Tensor) -> None:
        if f.shape[-1] % 2:
            raise ValueError(
                f"HeteroscedasticGaussian needs two outputs a target (mean, raw scale); the net has {f.shape[-1]}"
            )
        _check_continuous(y, f.shape[-1] // 2)


class Categorical(Likelihood):
    """Classes: y in 0 ... C-1 with probabilities softmax(f); f are C logits."""

    continuous = False

    def __repr__(self) -> str:
        return "Categorical()"

    def log_prob(self, f: Tensor, y: Tensor, u: Tensor) -> Tensor:
        log_p = f.log_softmax(-1)
        return log_p.gather(-1, y.long().expand(log_p.shape[:-1]).unsqueeze(-1)).squeeze(-1)

    def predictive(self, f: Tensor, u: Tensor, y_loc: Tensor | None, y_scale: Tensor | None) -> Predictive:
        return Predictive(CategoricalDistribution(logits=f, validate_args=False))

    def fisher_sqrt(self, f: Tensor, u: Tensor) -> Tensor:
        # diag(p) - p p^T = S S^T with S = diag(sqrt p) - p sqrt(p)^T, because the p add up to one.
        p = f.softmax(-1)
        return torch.diag_embed(p.sqrt()) - p.unsqueeze(-1) * p.sqrt().unsqueeze(-2)

    def check(self, f: Tensor, y: Tensor) -> None:
        if y.is_floating_point() or y.dim() != 1:
            raise ValueError(
                f"Categorical needs integer labels of shape (n,), got {y.dtype} of shape {tuple(y.shape)}; "
                "use y.long() and y.squeeze(-1), not one-hot rows"
            )
        if bool((y < 0).any()) or bool((y >= f.shape[-1]).any()):
            raise ValueError(
                f"class labels must be 0 ... {f.shape[-1] - 1} for a net with {f.shape[-1]} outputs; "
                f"got {int(y.min())} ... {int(y.max())}"
            )


class Bernoulli(Likelihood):
    """K independent yes-or-no answers: P(y_k = 1) = sigmoid(f_k); y holds zeros and ones, shape (n, K)."""

    continuous = False

    def __repr__(self) -> str:
        return "Bernoulli()"

    def log_prob(self, f: Tensor, y: Tensor, u: Tensor) -> Tensor:
        return (y * f - softplus(f)).sum(-1)

    def predictive(self, f: Tensor, u: Tensor, y_loc: Tensor | None, y_scale: Tensor | None) -> Predictive:
        return Predictive(BernoulliDistribution(logits=f, validate_args=False))

    def fisher_sqrt(self, f: Tensor, u: Tensor) -> Tensor:
        p = torch.sigmoid(f)
        return torch.diag_embed((p * (1 - p)).sqrt())

    def check(self, f: Tensor, y: Tensor) -> None:
        _check_continuous(y.to(f), f.shape[-1])
        if not bool(((y == 0) | (y == 1)).all()):
            raise ValueError("Bernoulli needs targets 0 or 1; Standardized leaves them alone if they are integers")


def _check_continuous(y: Tensor, outputs: int) -> None:
    if not y.is_floating_point():
        raise ValueError(f"targets must be floating point, got {y.dtype}; use y.float()")
    if y.dim() == 1:
        raise ValueError(f"y has shape ({len(y)},), the net gives ({len(y)}, {outputs}); use y.unsqueeze(-1)")
    if y.shape[-1] != outputs or y.dim() != 2:
        raise ValueError(f"y has shape {tuple(y.shape)}, the net and its likelihood need (n, {outputs})")


def _original_units(loc: Tensor, scale: Tensor, y_loc: Tensor | None, y_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    if y_loc is None or y_scale is None:
        return loc, scale
    return loc * y_scale + y_loc, scale * y_scale
