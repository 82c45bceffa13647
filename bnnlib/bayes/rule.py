"""Bayes' rule for a list, a table or a grid of hypotheses.

P(h | d) = p(d | h) P(h) / p(d),     p(d) = sum_h p(d | h) P(h)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Update", "bayes_rule"]


@dataclass(frozen=True)
class Update:
    """What Bayes' rule gives: the posterior's logarithms and the logarithm of the evidence, in nats."""

    log_posterior: Tensor
    log_evidence: Tensor

    @property
    def posterior(self) -> Tensor:
        """Probability of each hypothesis after the data; sums to one over the hypotheses."""
        return self.log_posterior.exp()

    @property
    def evidence(self) -> Tensor:
        """p(d), the probability or density of the data under the prior. May underflow: then use `log_evidence`."""
        return self.log_evidence.exp()


def bayes_rule(
    prior: Tensor, likelihood: Tensor, *, log: bool = False, dim: int | tuple[int, ...] | None = None
) -> Update:
    """Posterior and evidence of discrete hypotheses, by Bayes' rule in log space.

        P(h | d) = p(d | h) P(h) / sum_h' p(d | h') P(h')

    Parameters
    ----------
    prior
        Weight of each hypothesis, not negative, of any shape. The weights are divided by their sum, so an
        evenly spaced grid may carry density values; an uneven one needs density times cell size.
    likelihood
        p(d | h) for the data that were seen, one value a hypothesis, of a shape that broadcasts with
        `prior`. Not a distribution over h: it need not sum to one, and a common factor cancels.
    log
        Whether both are given as natural logarithms (-inf for an impossible one).
    dim
        The dimensions along which hypotheses run; all if None. The others are separate problems, each
        with its own evidence.

    Returns
    -------
    Update
        `posterior` of the broadcast shape, and `evidence` without the dimensions `dim`. On a grid the
        posterior is the mass of a cell: divide by the cell's size for a density.

    Raises
    ------
    TypeError
        Not a floating-point tensor.
    ValueError
        Empty, NaN, negative, infinite, shapes that do not fit, a prior of zeros, or data that are
        impossible under every hypothesis that the prior allows.

    Examples
    --------
    A test with a hit rate of 0.9 and a false-alarm rate of 0.09; one in a hundred is ill.

    >>> import torch
    >>> from bnnlib.bayes import bayes_rule
    >>> bayes_rule(torch.tensor([0.01, 0.99]), torch.tensor([0.9, 0.09])).posterior
    tensor([0.0917, 0.9083])
    """
    log_prior, log_likelihood = _logs("prior", prior, log), _logs("likelihood", likelihood, log)
    try:
        log_prior, log_likelihood = torch.broadcast_tensors(log_prior, log_likelihood)
    except RuntimeError:
        raise ValueError(
            f"prior has shape {tuple(prior.shape)}, likelihood {tuple(likelihood.shape)}: these do not broadcast; "
            "give one likelihood value a hypothesis"
        ) from None
    dims = tuple(range(log_prior.dim())) if dim is None else dim
    prior_weight = log_prior.logsumexp(dims, keepdim=True)
    if bool((prior_weight == -torch.inf).any()):
        raise ValueError("the prior is zero for every hypothesis; give at least one of them a positive weight")
    log_joint = log_prior - prior_weight + log_likelihood
    log_evidence = log_joint.logsumexp(dims, keepdim=True)
    if bool((log_evidence == -torch.inf).any()):
        hint = "" if log else "; if the values underflowed, pass logarithms with log=True"
        raise ValueError(f"the data are impossible under every hypothesis that the prior allows{hint}")
    return Update(log_joint - log_evidence, log_evidence.squeeze(dims))


def _logs(name: str, values: Tensor, log: bool) -> Tensor:
    if not isinstance(values, Tensor) or not values.is_floating_point():
        given = str(values.dtype) if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {given}")
    if values.numel() == 0:
        raise ValueError(f"{name} is empty (shape {tuple(values.shape)}); Bayes' rule needs at least one hypothesis")
    if bool(values.isnan().any() | (values == torch.inf).any()):
        raise ValueError(f"{name} has NaN or +infinity in it")
    if log:
        return values
    if bool((values < 0).any()):
        raise ValueError(
            f"{name} is {values.min().item():.4g} somewhere, and cannot be negative; for logarithms pass log=True"
        )
    return values.log()
