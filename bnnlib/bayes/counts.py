"""Conjugate updates of proportions and rates: each adds counts to the prior's parameters.

    Beta(a, b)     with ones and zeros    -> Beta(a + ones, b + zeros)
    Dirichlet(a)   with counts of labels  -> Dirichlet(a + counts)
    Gamma(a, b)    with n event counts    -> Gamma(a + events, b + n)

Source: Gelman et al. (2013), chapters 2 and 3.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Beta, Dirichlet, Gamma
from torch.nn.functional import one_hot

from bnnlib.bayes._checks import check_data, check_prior, check_whole

__all__ = ["beta_bernoulli", "dirichlet_categorical", "gamma_poisson"]


def beta_bernoulli(prior: Beta, data: Tensor) -> Beta:
    """Posterior of a proportion after ones and zeros.

        theta ~ Beta(a, b),  x_i ~ Bernoulli(theta)   =>   theta | x ~ Beta(a + sum x_i, b + n - sum x_i)

    Parameters
    ----------
    prior
        Beta over the proportion, of any batch shape.
    data
        Ones and zeros (or booleans), shape (n, *batch).

    Returns
    -------
    Beta
        Posterior, in the prior's dtype.

    Raises
    ------
    TypeError
        The prior is no Beta.
    ValueError
        Empty data, or anything but ones and zeros.

    Examples
    --------
    >>> import torch
    >>> from bnnlib.bayes import beta_bernoulli
    >>> from torch.distributions import Beta
    >>> beta_bernoulli(Beta(1.0, 1.0), torch.tensor([1, 1, 0])).mean
    tensor(0.6000)
    """
    check_prior(prior, Beta)
    check_data(data, prior.batch_shape)
    check_whole(data, 0, 1, "each observation")
    ones = data.to(prior.concentration1).sum(0)
    return Beta(prior.concentration1 + ones, prior.concentration0 + (len(data) - ones))


def dirichlet_categorical(prior: Dirichlet, data: Tensor) -> Dirichlet:
    """Posterior of the probabilities of K classes after labels.

        pi ~ Dirichlet(a),  x_i ~ Categorical(pi)   =>   pi | x ~ Dirichlet(a + counts)

    Parameters
    ----------
    prior
        Dirichlet over K probabilities, concentration of shape (*batch, K).
    data
        Labels from 0 to K - 1, shape (n, *batch).

    Returns
    -------
    Dirichlet
        Posterior, in the prior's dtype.

    Raises
    ------
    TypeError
        The prior is no Dirichlet.
    ValueError
        Empty data, or a label that is not a whole number from 0 to K - 1.

    Examples
    --------
    >>> import torch
    >>> from bnnlib.bayes import dirichlet_categorical
    >>> from torch.distributions import Dirichlet
    >>> dirichlet_categorical(Dirichlet(torch.ones(3)), torch.tensor([0, 2, 2])).concentration
    tensor([2., 1., 3.])
    """
    check_prior(prior, Dirichlet)
    check_data(data, prior.batch_shape)
    classes = prior.concentration.shape[-1]
    check_whole(data, 0, classes - 1, "each label")
    counts = one_hot(data.long(), classes).sum(0).to(prior.concentration)
    return Dirichlet(prior.concentration + counts)


def gamma_poisson(prior: Gamma, data: Tensor) -> Gamma:
    """Posterior of a rate of events after counts, one a unit of time.

        rate ~ Gamma(a, b),  x_i ~ Poisson(rate)   =>   rate | x ~ Gamma(a + sum x_i, b + n)

    b is a rate, not a scale: the prior mean is a / b.

    Parameters
    ----------
    prior
        Gamma(concentration, rate) over the number of events a unit, of any batch shape.
    data
        Counts, shape (n, *batch).

    Returns
    -------
    Gamma
        Posterior, in the prior's dtype.

    Raises
    ------
    TypeError
        The prior is no Gamma.
    ValueError
        Empty data, or a count that is negative or not whole.

    Examples
    --------
    >>> import torch
    >>> from bnnlib.bayes import gamma_poisson
    >>> from torch.distributions import Gamma
    >>> gamma_poisson(Gamma(1.0, 1.0), torch.tensor([2, 4])).mean
    tensor(2.3333)
    """
    check_prior(prior, Gamma)
    check_data(data, prior.batch_shape)
    check_whole(data, 0, None, "each count")
    return Gamma(prior.concentration + data.to(prior.concentration).sum(0), prior.rate + len(data))
