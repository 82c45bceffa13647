"""Priors over the weights of a network, as one object over the flat vector.

Default: w ~ N(0, 1/fan_in) for weights and N(0, 1) for biases, which keeps the variance of what a
unit receives at the order of one whatever the width (Neal 1996, MacKay 1992).
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal

from bnnlib._random import draw

__all__ = ["Prior", "fan_in"]

PriorSpec = float | Distribution | Mapping[str, "float | Distribution"] | None


def fan_in(shape: torch.Size) -> int:
    """Number of inputs that one unit sums over, from a weight's shape (out, in, *kernel)."""
    return shape[1:].numel()


class Prior:
    """Independent priors over a flat vector of named tensors.

    Parameters
    ----------
    shapes
        Name and shape of each tensor, in flat order.
    spec
        None for the default; a number, the standard deviation of a zero-mean normal for every
        entry; a univariate torch distribution for every entry; or a dict from parameter names or
        patterns (`"0.weight"`, `"*.bias"`) to numbers or distributions, the default for the rest.
        Where several patterns match, the first one counts.

    Raises
    ------
    ValueError
        A standard deviation that is not positive, a pattern that matches nothing, a distribution
        that does not broadcast to its tensor or does not live on all real numbers.
    """

    def __init__(self, shapes: Mapping[str, torch.Size], spec: PriorSpec = None) -> None:
        self.is_default = spec is None
        rules = dict(spec) if isinstance(spec, Mapping) else {} if spec is None else {"*": spec}
        for pattern in rules:
            if not any(fnmatchcase(name, pattern) for name in shapes):
                raise ValueError(f"prior: {pattern!r} matches no parameter; the net has {', '.join(shapes)}")
        self.distributions: dict[str, Distribution] = {}
        self.shapes = dict(shapes)
        for name, shape in shapes.items():
            rule = next((v for k, v in rules.items() if fnmatchcase(name, k)), None)
            self.distributions[name] = _distribution(name, shape, rule)
        self.normal = all(type(d) is Normal for d in self.distributions.values())

    def __repr__(self) -> str:
        if self.is_default:
            return "N(0, 1/fan_in)"
        return ", ".join(f"{k}: {describe(d)}" for k, d in self.distributions.items())

    def _flat(self, attribute: str) -> Tensor:
        parts = [getattr(d, attribute).expand(self.shapes[k]).reshape(-1) for k, d in self.distributions.items()]
        return torch.cat(parts)

    @property
    def loc(self) -> Tensor:
        """Means, flat (P,). Only where every prior is normal."""
        return self._flat("loc")

    @property
    def scale(self) -> Tensor:
        """Standard deviations, flat (P,). Only where every prior is normal."""
        return self._flat("scale")

    def log_prob(self, w: Tensor) -> Tensor:
        """Log density, (..., P) -> (...)."""
        if self.normal:
            every: Distribution = Normal(self.loc.to(w), self.scale.to(w), validate_args=False)
            return every.log_prob(w).sum(-1)
        total = w.new_zeros(w.shape[:-1])
        sizes = [s.numel() for s in self.shapes.values()]
        for part, (name, d) in zip(w.split(sizes, -1), self.distributions.items(), strict=True):
            shaped = part.reshape((*w.shape[:-1], *self.shapes[name]))
            total = total + d.log_prob(shaped).reshape(*w.shape[:-1], -1).sum(-1)
        return total

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n flat vectors, shape (n, P)."""
        parts = [draw(d.expand(self.shapes[k]), n, generator).reshape(n, -1) for k, d in self.distributions.items()]
        return torch.cat(parts, -1)


def _distribution(name: str, shape: torch.Size, rule: float | Distribution | None) -> Distribution:
    if rule is None:
        rule = fan_in(shape) ** -0.5 if len(shape) > 1 else 1.0
    if isinstance(rule, Distribution):
        if rule.event_shape:
            raise ValueError(f"prior of {name}: give a univariate distribution, not one over vectors: {rule}")
        try:
            rule.expand(shape)
        except RuntimeError as error:
            raise ValueError(
                f"prior of {name}: batch shape {tuple(rule.batch_shape)} does not fit the parameter's {tuple(shape)}"
            ) from error
        support = getattr(rule.support, "base_constraint", rule.support)  # a mixture's components
        if support is not torch.distributions.constraints.real:
            raise ValueError(f"prior of {name}: weights can have either sign, but {rule} lives on {rule.support}")
        return rule
    if isinstance(rule, bool) or not isinstance(rule, float | int):
        raise TypeError(f"prior of {name}: a number (standard deviation) or a distribution, not {type(rule).__name__}")
    if not 0 < rule < float("inf"):
        raise ValueError(f"prior of {name}: a standard deviation must be positive and finite, got {rule}")
    # float64 scalars: they do not promote a float32 net, and cost a float64 one no digits.
    return Normal(*torch.tensor([0.0, float(rule)], dtype=torch.float64))


def describe(distribution: Distribution) -> str:
    """Name and parameters in one line: equal for equal distributions, short for large tensors."""
    parts = []
    for name in distribution.arg_constraints:
        value = getattr(distribution, name, None)
        if isinstance(value, Distribution):
            parts.append(f"{name}={describe(value)}")
        elif isinstance(value, Tensor):
            flat = value.detach().double().reshape(-1)
            same = bool((flat == flat[0]).all())
            text = f"{flat[0]:.9g}" if same else f"mean {flat.mean():.9g} sd {flat.std():.9g}"
            parts.append(f"{name}={text}" + (f" of shape {tuple(value.shape)}" if value.dim() else ""))
    return f"{type(distribution).__name__}({', '.join(parts)})"


def check_parameters(net: nn.Module) -> None:
    """Raise if `net` has no parameters, shares one between layers, or mixes dtypes."""
    named = list(net.named_parameters(remove_duplicate=False))
    if not named:
        raise ValueError(f"{type(net).__name__} has no parameters: there is nothing to be uncertain about")
    first: dict[int, str] = {}
    for name, p in named:
        if id(p) in first:
            raise ValueError(
                f"{first[id(p)]} and {name} are one shared parameter; a flat vector w holds each entry once. "
                "Give the layers parameters of their own."
            )
        first[id(p)] = name
    dtypes = {p.dtype for _, p in named}
    if len(dtypes) > 1 or not named[0][1].is_floating_point():
        raise ValueError(f"parameters must share one floating-point dtype, got {sorted(map(str, dtypes))}")
