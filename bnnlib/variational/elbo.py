"""The evidence lower bound: what can be computed of the distance between q and a posterior that cannot.

ELBO(q) = E_q[log p(x, z) - log q(z)] = log p(x) - KL(q || p(z | x)) <= log p(x)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from bnnlib._random import draw
from bnnlib._settings import check_whole
from bnnlib.variational._checks import LogJoint, check_estimator, check_gradient, check_single, evaluate
from bnnlib.variational._draws import reparameterised
from bnnlib.variational.families import Family

__all__ = ["elbo"]


def elbo(
    log_joint: LogJoint,
    q: Distribution | Family,
    draws: int = 1,
    *,
    estimator: str = "reparameterised",
    baseline: float | str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One unbiased estimate of the ELBO a draw z ~ q, in nats; higher is better.

        reparameterised    log p(x, z) - log q(z), gradient through z = g(noise, parameters)
        score              the same values, gradient (f - baseline) * grad log q(z), f the value
        analytic_entropy   log p(x, z) + entropy(q), gradient through z

    At q = posterior the first two are log p(x) for every single draw.

    Parameters
    ----------
    log_joint
        z of shape (S, D) to log p(x, z) of shape (S,): prior and likelihood in one sum. For q over
        single numbers z has shape (S,).
    q
        A torch distribution without batch shape, or a family of this room.
    draws
        Number S of draws.
    estimator
        Which of the three; they have the same expectation, and the same expected gradient.
    baseline
        For "score" only: a number, or "leave_one_out" (the mean of the other draws' values).
    generator
        Source of the draws.

    Returns
    -------
    Tensor
        Shape (draws,); `-elbo(...).mean().backward()` leaves the gradient of the NELBO in q's parameters.

    Raises
    ------
    ValueError
        draws below 1, a log joint of the wrong shape or without gradient, q without reparameterised draws.
    FloatingPointError
        The log joint is NaN or +inf; the message names the values of z.

    Source: Jordan et al. (1999); Kingma and Welling (2014); Ranganath, Gerrish and Blei (2014).
    """
    check_whole(draws=draws)
    check_estimator(estimator)
    if isinstance(q, Family):
        q = q.distribution()
    check_single(q)
    if baseline is not None and estimator != "score":
        raise ValueError(f'a baseline goes with estimator="score" only, got estimator={estimator!r}')
    if estimator == "score":
        return _score(log_joint, q, draws, baseline, generator)
    z = reparameterised(q, draws, generator)
    log_p = evaluate(log_joint, z)
    check_gradient(log_p, z)
    return log_p + q.entropy() if estimator == "analytic_entropy" else log_p - q.log_prob(z)


def _score(
    log_joint: LogJoint, q: Distribution, draws: int, baseline: float | str | None, generator: torch.Generator | None
) -> Tensor:
    z = draw(q, draws, generator)
    log_p, log_q = evaluate(log_joint, z), q.log_prob(z)
    value = (log_p - log_q).detach()
    if baseline is None:
        level: Tensor | float = 0.0
    elif baseline == "leave_one_out":
        check_whole(2, **{"draws (for the leave-one-out baseline)": draws})
        level = (value.sum() - value) / (draws - 1)
    elif isinstance(baseline, str):
        raise ValueError(f'baseline is a number, "leave_one_out" or None, got {baseline!r}')
    else:
        level = baseline
    # The last factor is zero: it adds nothing to the value and (value - level) * grad log q to the gradient.
    return log_p - log_q.detach() + (value - level) * (log_q - log_q.detach())
