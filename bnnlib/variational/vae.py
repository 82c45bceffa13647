"""The variational autoencoder: the ELBO of a latent variable model, with one network that proposes q for every x.

decoder  p(x | z), with z ~ N(0, 1)          the model
encoder  q(z | x) = N(loc(x), scale(x)^2)    the approximate posterior of z, read off a network

ELBO(x) = E_q[log p(x | z)] - KL(q(z | x) || p(z))  <=  log p(x)
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal

from bnnlib._random import _borrowed, standard_normal
from bnnlib._settings import check_whole
from bnnlib.normal import positive

__all__ = ["VAE"]

LIKELIHOODS = ("bernoulli", "gaussian")


class VAE(nn.Module):
    """Encoder, decoder and the bound that trains both.

    Parameters
    ----------
    size
        Length of one observation x; give images flattened.
    latent
        Length of z.
    hidden
        Widths of the hidden tanh layers of the encoder; the decoder has them in reverse. `()` is linear.
    likelihood
        `"bernoulli"`: x is zeros and ones, the decoder's output is a logit for each. `"gaussian"`: x is real,
        the output is a mean, and one noise scale, `positive(rho)`, is learned for all.
    encoder
        A network of your own, from (B, size) to (B, 2 * latent): loc, then the rho with scale = softplus(rho).
    decoder
        A network of your own, from (B, latent) to (B, size).
    generator
        Source of the starting weights; torch's default generator if None.

    Raises
    ------
    ValueError
        A size that is no positive whole number, an unknown likelihood, networks whose outputs do not fit.

    Source: Kingma and Welling (2014).

    Examples
    --------
    >>> import torch
    >>> from bnnlib.variational import VAE
    >>> VAE(64, 2).elbo(torch.ones(5, 64)).shape
    torch.Size([5])
    """

    def __init__(
        self,
        size: int,
        latent: int,
        *,
        hidden: tuple[int, ...] = (128,),
        likelihood: str = "bernoulli",
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_whole(size=size, latent=latent)
        for units in hidden:
            check_whole(hidden=units)
        if likelihood not in LIKELIHOODS:
            raise ValueError(f'likelihood is "bernoulli" or "gaussian", got {likelihood!r}')
        self.size, self.latent, self.likelihood = size, latent, likelihood
        with _borrowed(generator):
            self.encoder = encoder or _dense((size, *hidden, 2 * latent))
            self.decoder = decoder or _dense((latent, *hidden[::-1], size))
        self.rho = nn.Parameter(torch.zeros(())) if likelihood == "gaussian" else None
        self._try_out()

    @property
    def scale(self) -> Tensor:
        """Standard deviation of the noise in x, for the Gaussian likelihood."""
        if self.rho is None:
            raise ValueError("a Bernoulli likelihood has no noise scale")
        return positive(self.rho)

    def prior(self, like: Tensor) -> Independent[Normal]:
        """p(z) = N(0, 1), with the dtype and device of `like`."""
        zero = like.new_zeros(self.latent)
        return Independent(Normal(zero, zero + 1), 1)

    def encode(self, x: Tensor) -> Independent[Normal]:
        """q(z | x) for a batch x of shape (B, size): batch shape (B,), event shape (latent,)."""
        loc, rho = self.encoder(self._checked(x)).chunk(2, -1)
        return Independent(Normal(loc, positive(rho)), 1)

    def decode(self, z: Tensor) -> Distribution:
        """p(x | z) for z of shape (..., latent): batch shape (...), event shape (size,)."""
        if z.shape[-1:] != (self.latent,):
            raise ValueError(f"z must have shape (..., {self.latent}), got {tuple(z.shape)}")
        out = self.decoder(z.reshape(-1, self.latent)).reshape(*z.shape[:-1], self.size)
        return Independent(Bernoulli(logits=out), 1) if self.rho is None else Independent(Normal(out, self.scale), 1)

    def elbo(self, x: Tensor, draws: int = 1, *, generator: torch.Generator | None = None) -> Tensor:
        """Bound of log p(x) for each row of x, in nats; higher is better.

            E_q[log p(x | z)] - KL(q(z | x) || p(z))

        The expectation is an average over reparameterised draws, the KL of two normals is in closed form.

        Parameters
        ----------
        x
            Shape (B, size).
        draws
            Draws of z for each x.
        generator
            Source of the draws; torch's default generator if None.

        Returns
        -------
        Tensor
            Shape (B,), differentiable in both networks: maximise its mean.
        """
        q = self.encode(x)
        z = _reparameterised(q, draws, generator)
        normal = q.base_dist
        kl = 0.5 * (normal.variance + normal.mean.square() - 1).sum(-1) - normal.scale.log().sum(-1)
        value: Tensor = self.decode(z).log_prob(x).mean(0) - kl
        return value

    def importance_bound(self, x: Tensor, k: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Tighter bound of log p(x) from k draws an observation.

            log 1/k sum_j p(x, z_j) / q(z_j | x),     z_j ~ q(z | x)

        For k = 1 the ELBO by a single draw; its expectation grows with k, towards log p(x).

        Parameters
        ----------
        x
            Shape (B, size).
        k
            Draws of z for each x.
        generator
            Source of the draws; torch's default generator if None.

        Returns
        -------
        Tensor
            Shape (B,), in nats.

        Source: Burda, Grosse and Salakhutdinov (2016).
        """
        q = self.encode(x)
        z = _reparameterised(q, k, generator)
        log_ratio = self.decode(z).log_prob(x) + self.prior(z).log_prob(z) - q.log_prob(z)
        value: Tensor = log_ratio.logsumexp(0) - math.log(k)
        return value

    def _checked(self, x: Tensor) -> Tensor:
        if x.dim() != 2 or x.shape[1] != self.size:
            raise ValueError(f"x must have shape (B, {self.size}), got {tuple(x.shape)}; flatten images first")
        if not x.is_floating_point() or not bool(torch.isfinite(x).all()):
            raise ValueError(f"x must be floating point and finite, got {x.dtype}")
        if self.likelihood == "bernoulli" and not bool(((x == 0) | (x == 1)).all()):
            raise ValueError(
                "a Bernoulli likelihood is for zeros and ones, x has values between or beyond; threshold x, e.g. "
                '(x > 0.5).float(), or use likelihood="gaussian"'
            )
        return x

    def _try_out(self) -> None:
        like = next((p for p in self.encoder.parameters()), torch.zeros(()))
        training = self.training
        self.eval()
        with torch.no_grad():
            code = self.encoder(like.new_zeros(2, self.size))
            out = self.decoder(like.new_zeros(2, self.latent))
        self.train(training)
        if code.shape != (2, 2 * self.latent):
            raise ValueError(
                f"the encoder must give {2 * self.latent} numbers (2 * latent), got {tuple(code.shape[1:])}"
            )
        if out.shape != (2, self.size):
            raise ValueError(f"the decoder must give size = {self.size} numbers, got {tuple(out.shape[1:])}")


def _dense(sizes: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        layers += [nn.Tanh()] if i else []
        layers.append(nn.Linear(fan_in, fan_out))
    return nn.Sequential(*layers)


def _reparameterised(q: Independent[Normal], draws: int, generator: torch.Generator | None) -> Tensor:
    """loc + scale * eps, shape (draws, B, latent)."""
    check_whole(draws=draws)
    normal = q.base_dist
    eps = standard_normal((draws, *normal.loc.shape), normal.loc, generator)
    z: Tensor = normal.loc + normal.scale * eps
    return z
