"""Several copies of a network, each at its own w, run and differentiated as one batched network."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.func import vmap

from bnnlib.nets.model import Model

__all__ = ["Members"]

_LARGEST = 2**21  # members times weights times points of a batch: more no longer fits a CPU's cache


class Members:
    """-log p(w_m) - ratio * log p(y | x, w_m) for each of M members, with the gradient in `w.grad`.

    On the CPU a batched network is two to six times as fast as a loop over the members where these are small (20 to
    50 hidden units), and slower where they are large; those, and modules that cannot be batched, are looped over.

    Parameters
    ----------
    start
        Where the members are, (M, P).
    anchors
        Means of each member's normal prior, (M, network parameters); None: the model's own.
    """

    def __init__(self, model: Model, start: Tensor, anchors: Tensor | None = None) -> None:
        self.model = model
        self.w = start.detach().clone()
        self.w.grad = torch.zeros_like(self.w)
        self.batched: bool | None = None
        self.normal = model.prior.normal
        if self.normal:
            self.loc = model.prior.loc.to(start) if anchors is None else anchors
            scale = model.prior.scale.to(start)
            self.precision = scale**-2
            self.constant = float(scale.log().sum()) + 0.5 * model.net_size * math.log(2 * math.pi)

    @torch.no_grad()
    def __call__(
        self, x: Tensor, y: Tensor, ratio: float, weights: Tensor | None = None, moves: Tensor | None = None
    ) -> Tensor:
        """Values in nats, (M,), without gradient.

        Parameters
        ----------
        weights
            How often each member has each point, (M, B).
        moves
            Draws from N(0, 1) by which each member's targets are moved, in noise standard deviations, (M, B, K).
        """
        leaf = self.w.detach().requires_grad_()
        with torch.enable_grad():
            log_p = self._fit(self._outputs(leaf, x), y, self.model.noise(leaf), moves)
            if weights is not None:
                log_p = log_p * weights
            value = -ratio * log_p.sum(-1) + self._prior(leaf)
            (slope,) = torch.autograd.grad(value.sum(), leaf)
        assert self.w.grad is not None
        self.w.grad.copy_(slope)
        size = self.model.net_size
        if self.normal:
            pull = (self.w[:, :size] - self.loc) * self.precision
            self.w.grad[:, :size] += pull
            value = value + 0.5 * ((self.w[:, :size] - self.loc) * pull).sum(-1) + self.constant
        return value.detach()

    def _outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """Network outputs, (M, B, outputs)."""
        if self.batched is None:
            self.batched = w.is_cuda or w.numel() * len(x) < _LARGEST
            if self.batched:
                try:
                    return self._batch(w, x)
                except RuntimeError:  # a module without a batching rule, such as an LSTM
                    self.batched = False
        return self._batch(w, x) if self.batched else self.model(w, x)

    def _batch(self, w: Tensor, x: Tensor) -> Tensor:
        out: Tensor = vmap(lambda row: self.model(row, x))(w)
        return out

    def _fit(self, f: Tensor, y: Tensor, u: Tensor, moves: Tensor | None) -> Tensor:
        """log p(y | f, u) by member and point. Moved targets teach w alone; the noise is learned on those given."""
        likelihood = self.model.likelihood
        if moves is None:
            return likelihood.log_prob(f, y, u)
        fixed = u.detach()
        scale = likelihood.log_scale(fixed).exp()
        scale = scale.unsqueeze(-2) if likelihood.unknown is not None else scale
        moved = likelihood.log_prob(f, y + scale * moves, fixed)
        if likelihood.unknown is None:
            return moved
        given = likelihood.log_prob(f.detach(), y, u)
        return moved + given - given.detach()

    def _prior(self, w: Tensor) -> Tensor:
        """-log p of what has no normal prior: the noise, and weights with other priors, (M,)."""
        rest: Tensor = -self.model.likelihood.unknown_log_prior(self.model.noise(w))
        return rest if self.normal else rest - self.model.prior.log_prob(w[:, : self.model.net_size])
