"""A distribution over w whose entries are there or not: the weights of a network under dropout.

    w_i = loc_i * keep_g(i) / (1 - p_g(i)),     keep_g ~ Bernoulli(1 - p_g)

All weights that read one unit share its mask g, so that one draw of w is one thinned network.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

__all__ = ["Masked"]


class Masked(Distribution):
    """Entries of w switched off together, in groups. It has no density: no `log_prob`, no entropy, no KL.

    Parameters
    ----------
    loc
        Mean of w, shape (P,).
    group
        Which mask an entry has, whole numbers of shape (P,); -1 for an entry that is always there.
    p
        Probability that a mask switches its entries off, shape (G,), each in [0, 1).

    Raises
    ------
    ValueError
        Shapes or groups that do not fit, or a probability outside [0, 1).
    """

    arg_constraints = {"loc": constraints.real_vector}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = False

    def __init__(self, loc: Tensor, group: Tensor, p: Tensor, validate_args: bool | None = None) -> None:
        if loc.dim() != 1 or group.shape != loc.shape or p.dim() != 1 or len(p) < 1:
            raise ValueError(
                f"expected loc (P,), group (P,), p (G,); got {tuple(loc.shape)}, {tuple(group.shape)}, {tuple(p.shape)}"
            )
        if not bool(((p >= 0) & (p < 1)).all()):
            raise ValueError("p holds probabilities of switching off, each in [0, 1)")
        if group.is_floating_point() or int(group.min()) < -1 or int(group.max()) >= len(p):
            raise ValueError(f"group holds whole numbers from -1 to {len(p) - 1}, the masks in p")
        self.loc, self.group, self.p = loc, group, p
        self.noise_size = len(p)
        super().__init__(event_shape=loc.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Mean of w, (P,): the network without dropout."""
        return self.loc

    @property
    def excess(self) -> Tensor:
        """Variance of each entry as a multiple of its squared mean, p / (1 - p), (P,)."""
        odds = (self.p / (1 - self.p)).to(self.loc)
        return torch.cat([odds, odds.new_zeros(1)])[self.group]  # -1 reads the zero at the end

    @property
    def variance(self) -> Tensor:
        """Variance of each entry, (P,)."""
        return self.loc.square() * self.excess

    def from_noise(self, noise: Tensor) -> Tensor:
        """Map (..., G) standard normals to draws (..., P): a mask keeps with probability 1 - p."""
        p = self.p.to(self.loc)
        factor = (noise >= torch.special.ndtri(p)) / (1 - p)
        return self.loc * torch.cat([factor, torch.ones_like(factor[..., :1])], -1)[..., self.group]

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Draws from torch's global generator."""
        noise = torch.randn((*sample_shape, self.noise_size), dtype=self.loc.dtype, device=self.loc.device)
        return self.from_noise(noise)
