"""Forward and backward of one normalised batch, by hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bnnlib.batchnorm._checks import along, features, moments, positive_eps


@dataclass(frozen=True)
class Normalised:
    """What a forward pass yields, and what the backward pass needs of it.

    Attributes
    ----------
    z
        Output, (m, n, ...), as the batch.
    unit
        The batch with mean 0 and variance var / (var + eps) in each feature, (m, n, ...).
    mean, var
        Statistics of the batch, (n,). The variance is the biased one: divided by m.
    gamma
        The scale that was used, (n,).
    eps
        What was added to the variance.
    """

    z: Tensor
    unit: Tensor
    mean: Tensor
    var: Tensor
    gamma: Tensor
    eps: float


@dataclass(frozen=True)
class Gradients:
    """Gradients of a loss.

    Attributes
    ----------
    x
        By the batch, (m, n, ...).
    gamma, beta
        By scale and shift, (n,).
    """

    x: Tensor
    gamma: Tensor
    beta: Tensor


def forward(x: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-5) -> Normalised:
    """Normalise each feature over the batch, then scale and shift it.

        z = gamma * (x - mean) / sqrt(var + eps) + beta

    Parameters
    ----------
    x
        Batch, (m, n), or (m, n, ...) for images, whose n channels are the features: then mean and variance are over the
        batch and all pixels.
    gamma, beta
        Scale and shift, (n,).
    eps
        Positive number that keeps a constant feature from a division by zero.

    Returns
    -------
    Normalised
        Output, normalised batch and statistics. Autograd can differentiate all of it.

    Raises
    ------
    ValueError
        For fewer than two values a feature, NaN, a wrong number of features, or eps that is not positive.

    Examples
    --------
    >>> import torch
    >>> from bnnlib.batchnorm import forward
    >>> x = torch.tensor([[1.0, 10.0], [3.0, 50.0]])
    >>> forward(x, gamma=torch.ones(2), beta=torch.zeros(2)).z.round(decimals=3)
    tensor([[-1., -1.],
            [ 1.,  1.]])

    Source: Ioffe and Szegedy (2015), algorithm 1.
    """
    positive_eps(eps)
    mean, var, _ = moments(x)
    features("gamma", gamma, x)
    features("beta", beta, x)
    unit = (x - along(mean, x)) / along(torch.sqrt(var + eps), x)
    return Normalised(along(gamma, x) * unit + along(beta, x), unit, mean, var, gamma, eps)


def backward(grad_z: Tensor, done: Normalised) -> Gradients:
    """Gradients by batch, scale and shift from the gradient by the output.

        dbeta  = sum(dz)
        dgamma = sum(dz * unit)
        dx     = gamma / sqrt(var + eps) * (dz - mean(dz) - unit * mean(dz * unit))

    Sums and means are over the batch (and the pixels). The two means are what the statistics contribute: each x also
    moves the mean and the variance of its batch.

    Parameters
    ----------
    grad_z
        Gradient of the loss by `done.z`, of the same shape.
    done
        What `forward` returned.

    Returns
    -------
    Gradients
        By x, gamma and beta.

    Raises
    ------
    ValueError
        For a gradient of another shape than the output.

    Source: Ioffe and Szegedy (2015), section 3, with the terms collected.
    """
    if grad_z.shape != done.z.shape:
        raise ValueError(f"grad_z has shape {tuple(grad_z.shape)}, the output has {tuple(done.z.shape)}")
    over = [d for d in range(grad_z.dim()) if d != 1]
    beta, gamma = grad_z.sum(over), (grad_z * done.unit).sum(over)
    count = grad_z.numel() // grad_z.shape[1]
    inner = grad_z - along(beta / count, grad_z) - done.unit * along(gamma / count, grad_z)
    return Gradients(along(done.gamma / torch.sqrt(done.var + done.eps), grad_z) * inner, gamma, beta)
