"""A positive number from any number, and back: how a standard deviation is written as a free parameter."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from bnnlib.normal._checks import finite, positive_number

__all__ = ["positive", "positive_inverse"]

KINDS = ("softplus", "exp")


def positive(rho: Tensor, how: str = "softplus") -> Tensor:
    """Positive value of an unconstrained parameter rho.

        softplus: log(1 + e^rho), close to rho for large rho, to e^rho for very negative rho
        exp:      e^rho, so rho is the logarithm; equal steps of rho are equal factors

    Both are positive on paper. In float32 they round to zero near rho = -104, and a scale of zero
    is no distribution; so the smallest normal float is added, which nothing larger notices.

    Parameters
    ----------
    rho
        Any real numbers, any shape.
    how
        `"softplus"` or `"exp"`.

    Returns
    -------
    Tensor
        Strictly positive, shape and dtype of rho.

    Raises
    ------
    ValueError
        Another `how`, NaN in rho, or a result that overflows.

    Examples
    --------
    >>> round(positive(torch.tensor(0.0)).item(), 4), positive(torch.tensor(-200.0)).item() > 0
    (0.6931, True)
    """
    _known(how)
    finite("rho", rho)
    value = softplus(rho) if how == "softplus" else rho.exp()
    if bool(torch.isinf(value).any()):
        raise ValueError(f'exp(rho) overflows in {rho.dtype} at rho = {rho.max().item():g}; use how="softplus"')
    return value + torch.finfo(value.dtype).tiny


def positive_inverse(value: Tensor, how: str = "softplus") -> Tensor:
    """The rho with positive(rho, how) = value. Use it to start a scale at a size that you choose.

        softplus: rho = value + log(1 - e^-value)
        exp:      rho = log(value)

    Raises
    ------
    ValueError
        Another `how`, or a value that is not positive and finite.

    Examples
    --------
    >>> round(positive_inverse(torch.tensor(0.05)).item(), 3)
    -2.971
    """
    _known(how)
    positive_number("value", value)
    return value + torch.log(-torch.expm1(-value)) if how == "softplus" else value.log()


def _known(how: str) -> None:
    if how not in KINDS:
        raise ValueError(f'how is "softplus" or "exp", got {how!r}')
