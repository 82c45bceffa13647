"""Posteriors side by side: the mixture of what several runs found, with equal weights.

    q(w) = 1/M sum_m q_m(w),     p(y | x) = 1/M sum_m p_m(y | x)

Each member predicts in its own way, linearised or by draws; the prediction is the mixture of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from bnnlib._random import draw
from bnnlib._settings import check_whole
from bnnlib.nets.model import Model
from bnnlib.nets.posterior import READERS, Posterior, about, from_content, read
from bnnlib.predictive import Moments, Predictive

__all__ = ["Mixture", "MixturePosterior", "mixture"]


class Mixture(Distribution):
    """Distributions over the same w with equal weights."""

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = False

    def __init__(self, components: Sequence[Distribution]) -> None:
        self.components = tuple(components)
        super().__init__(event_shape=self.components[0].event_shape, validate_args=False)

    def __repr__(self) -> str:
        return f"Mixture({len(self.components)} components)"

    @property
    def mean(self) -> Tensor:
        """Mean of w, (P,)."""
        return torch.stack([c.mean for c in self.components]).mean(0)

    @property
    def variance(self) -> Tensor:
        """Variance of each entry by the law of total variance, (P,)."""
        means = torch.stack([c.mean for c in self.components])
        return torch.stack([c.variance for c in self.components]).mean(0) + means.var(0, correction=0)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, where every component has one."""
        parts = torch.stack([c.log_prob(value) for c in self.components])
        return parts.logsumexp(0) - math.log(len(parts))

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Each draw from a component picked at random."""
        shape = torch.Size(sample_shape)
        pick = torch.randint(len(self.components), (shape.numel(),))
        drawn = torch.stack([self.components[int(i)].sample() for i in pick])
        return drawn.reshape(*shape, *self.event_shape)

    def spread(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n values, from each component as often as from the others, the remainder at random, (n, P)."""
        counts = shares(n, len(self.components), generator)
        drawn = [draw(c, k, generator) for c, k in zip(self.components, counts, strict=True) if k]
        return torch.cat(drawn)


@dataclass(frozen=True, repr=False)
class MixturePosterior(Posterior):
    """A posterior made of others. What it draws and predicts is drawn and predicted by its members."""

    members: tuple[Posterior, ...] = ()

    def functions(self, x: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        counts = shares(n, len(self.members), generator)
        return torch.cat([m.functions(x, k, generator) for m, k in zip(self.members, counts, strict=True) if k])

    def predict(self, x: Tensor, *, draws: int = 1000, generator: torch.Generator | None = None) -> Predictive:
        each = self._each(draws)
        return joined([m.predict(x, draws=each, generator=generator) for m in self.members])

    def moments(self, x: Tensor, *, draws: int = 1000, generator: torch.Generator | None = None) -> Moments:
        parts = [m.moments(x, draws=self._each(draws), generator=generator) for m in self.members]
        mean, epistemic, aleatoric, error = (
            torch.stack([getattr(m, name) for m in parts]) for name in ("mean", "epistemic", "aleatoric", "mc_error")
        )
        return Moments(
            mean=mean.mean(0),
            epistemic=(epistemic.square().mean(0) + mean.var(0, correction=0)).sqrt(),
            aleatoric=aleatoric.square().mean(0).sqrt(),
            mc_error=error.square().sum(0).sqrt() / len(parts),
        )

    def with_model(self, model: Model) -> MixturePosterior:
        members = tuple(m.with_model(model) for m in self.members)
        return replace(self, model=model, members=members)

    def _each(self, draws: int) -> int:
        check_whole(draws=draws)
        return max(1, draws // len(self.members))

    def _content(self) -> dict[str, Any]:
        return {**about(self), "kind": "Mixture", "members": [m._content() for m in self.members]}


def mixture(posteriors: Sequence[Posterior], method: str | None = None) -> MixturePosterior:
    """Put posteriors of one model side by side with equal weights.

    Parameters
    ----------
    posteriors
        Results of any methods, for models that are equal but for where the network's parameters started.
    method
        What the result is called; by default made of the methods' names.

    Returns
    -------
    MixturePosterior
        Attached to the first one's model.

    Raises
    ------
    ValueError
        No posterior, or such that belong to different models or data in different units.
    """
    if not posteriors:
        raise ValueError("a mixture needs at least one posterior")
    for i, given in enumerate(posteriors):
        if not isinstance(given, Posterior):
            raise TypeError(f"number {i} is a {type(given).__name__}, not a Posterior")
    first = posteriors[0]
    signature = first.model.signature()
    for i, other in enumerate(posteriors):
        differs = [k for k, v in other.model.signature().items() if v != signature[k]]
        if differs:
            raise ValueError(f"number {i} belongs to another model: its {differs[0]} differs from the first one's")
        if not _same_units(first, other):
            raise ValueError(f"number {i} was trained on data in other units than the first; standardise them once")
    members = tuple(p.with_model(first.model) for p in posteriors)
    names = dict.fromkeys(p.method for p in members)
    tempers = {
        key: next((t for p in members if (t := float(p.diagnostics.get(key, 1.0))) != 1.0), 1.0)
        for key in ("kl_weight", "temperature")
    }
    return MixturePosterior(
        model=first.model,
        distribution=Mixture([p.distribution for p in members]),
        method=method or f"mixture of {' and '.join(names)}",
        diagnostics={
            "members": float(len(members)),
            **tempers,
            "interrupted": float(any(p.diagnostics.get("interrupted", 0.0) for p in members)),
        },
        scaling=first.scaling,
        members=members,
    )


def shares(n: int, parts: int, generator: torch.Generator | None) -> list[int]:
    """Split n draws over the parts as evenly as can be; who gets one more is left to chance."""
    whole, rest = divmod(n, parts)
    counts = torch.full((parts,), whole)
    if rest:
        device = generator.device if generator is not None else None
        counts[torch.randperm(parts, generator=generator, device=device)[:rest].cpu()] += 1
    return [int(c) for c in counts]


def joined(parts: Sequence[Predictive]) -> Predictive:
    """The mixture of predictions with equal weights.

    A prediction with fewer components (a closed form has one, or a few) has each of them counted as often as makes the
    weights equal.
    """
    counts = [p.draws for p in parts]
    most = math.lcm(*counts)
    if most > 10 * max(counts):  # equal weights to a tenth of a component are enough
        most = 10 * max(counts)
    picks = [torch.arange(most) * p.draws // most for p in parts]

    def every(value: Callable[[Predictive], Tensor]) -> Tensor:
        return torch.cat([value(p)[pick] for p, pick in zip(parts, picks, strict=True)])

    def parameter(name: str) -> Tensor:
        return every(lambda p: getattr(p.components, name))

    kind: Any = type(parts[0].components)
    names = [name for name in ("df", "loc", "scale", "logits") if hasattr(parts[0].components, name)]
    together: Distribution = kind(**{name: parameter(name) for name in names}, validate_args=False)
    if all(p.function_var is None for p in parts):
        return Predictive(together)

    def function_var(p: Predictive) -> Tensor:
        scale = p.components.stddev
        return torch.zeros_like(scale) if p.function_var is None else p.function_var.expand_as(scale)

    def noise_var(p: Predictive) -> Tensor:
        variance = p.components.variance
        return variance - function_var(p) if p.noise_var is None else p.noise_var.expand_as(variance)

    return Predictive(together, function_var=every(function_var), noise_var=every(noise_var))


def _same_units(a: Posterior, b: Posterior) -> bool:
    if a.scaling is None or b.scaling is None:
        return a.scaling is b.scaling
    ours, theirs = vars(a.scaling), vars(b.scaling)
    return all((v is None) == (theirs[k] is None) and (v is None or torch.equal(v, theirs[k])) for k, v in ours.items())


def _read(content: Mapping[str, Any], model: Model) -> MixturePosterior:
    members = tuple(READERS.get(c["kind"], read)(c, model) for c in content["members"])
    whole = from_content(content, model, Mixture([m.distribution for m in members]))
    return MixturePosterior(**vars(whole), members=members)


READERS["Mixture"] = _read
