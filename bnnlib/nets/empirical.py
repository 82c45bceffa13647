"""A distribution over w that is a set of values: members of an ensemble, states of a Markov chain.

q(w) = 1/M sum_m delta(w - w_m)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from bnnlib._random import place

__all__ = ["Empirical"]


class Empirical(Distribution):
    """M values of w with equal weight. It has no density: no `log_prob`, no entropy, no KL.

    Parameters
    ----------
    values
        Shape (M, P). Samplers keep the order of their chains.

    Raises
    ------
    ValueError
        If the values are not an (M, P) matrix with M >= 1, or not all finite.
    """

    arg_constraints = {"values": constraints.independent(constraints.real, 2)}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = False

    def __init__(self, values: Tensor, validate_args: bool | None = None) -> None:
        if values.dim() != 2 or len(values) < 1:
            raise ValueError(f"values must have shape (M, P) with M >= 1, got {tuple(values.shape)}")
        if not bool(torch.isfinite(values).all()):
            raise ValueError("values has NaN or infinite entries")
        self.values = values
        super().__init__(event_shape=values.shape[1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Mean of the values, (P,)."""
        return self.values.mean(0)

    @property
    def variance(self) -> Tensor:
        """Variance of the values with divisor M, (P,)."""
        return self.values.var(0, correction=0)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Values picked at random, with replacement."""
        pick = torch.randint(len(self.values), tuple(sample_shape), device=self.values.device)
        return self.values[pick]

    def spread(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Pick n values as evenly as can be, (n, P): all of them equally often, the remainder at random.

        With n = M it is every value once, in their order, so that a prediction with M draws has no
        Monte Carlo error beyond that of the values themselves.
        """
        whole, rest = divmod(n, len(self.values))
        index = torch.arange(len(self.values), device=self.values.device).repeat(whole)
        if rest:
            order = torch.randperm(len(self.values), generator=generator, device=place(generator, self.values))
            index = torch.cat([index, order[:rest].sort().values.to(index.device)])
        return self.values[index]
