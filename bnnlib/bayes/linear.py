"""Bayesian linear regression with known noise, exact.

    y = phi(x)^T w + noise,     w ~ N(m, S),     noise ~ N(0, noise_scale^2)

With n rows Phi the posterior of w is normal again:

    S_n^-1 = S^-1 + Phi^T Phi / noise_scale^2
    m_n    = S_n (S^-1 m + Phi^T y / noise_scale^2).

Source: Bishop (2006), sections 3.3 and 3.5.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from bnnlib._random import standard_normal
from bnnlib.data import check_pair
from bnnlib.predictive import Predictive

__all__ = ["LinearRegression"]


def with_intercept(x: Tensor) -> Tensor:
    """The default features: a column of ones, then the columns of x."""
    return torch.cat([torch.ones_like(x[:, :1]), x], -1)


class LinearRegression:
    """A belief about the weights of a linear model: the prior at first, a posterior after `fit`.

        y = phi(x)^T w + noise,     w_p ~ N(0, prior_scale_p^2),     noise ~ N(0, noise_scale^2)

    Parameters
    ----------
    noise_scale
        Standard deviation of the noise, in the units of y. Known: try several, and compare `log_evidence`.
    prior_scale
        Prior standard deviation of each weight: one number for all, or a tensor of shape (P,).
        `math.inf` is a flat prior, which gives least squares and has no evidence.
    features
        phi, from x of shape (N, D) to (N, P). Default: a one and the inputs, so P = 1 + D.

    Raises
    ------
    ValueError
        A scale that is not positive.

    Examples
    --------
    >>> import torch
    >>> from bnnlib.bayes import LinearRegression
    >>> x = torch.tensor([[-1.0], [0.0], [1.0]])
    >>> LinearRegression(noise_scale=1.0, prior_scale=1.0).fit(x, 2 * x).weights.mean
    tensor([0.0000, 1.3333])
    """

    def __init__(
        self,
        *,
        noise_scale: float,
        prior_scale: float | Tensor = 1.0,
        features: Callable[[Tensor], Tensor] = with_intercept,
    ) -> None:
        if not 0 < noise_scale < math.inf:
            raise ValueError(f"noise_scale is a standard deviation, positive and finite; got {noise_scale}")
        # A Python number keeps its 53 bits: rounded to float32 here, it would stay rounded in float64.
        self.prior_scale = (
            prior_scale if isinstance(prior_scale, Tensor) else torch.tensor(prior_scale, dtype=torch.float64)
        )
        if not bool((self.prior_scale > 0).all()):
            raise ValueError(f"prior_scale holds standard deviations, all positive; got {prior_scale}")
        if self.prior_scale.dim() > 1:
            raise ValueError(f"prior_scale is one number or shape (P,), got shape {tuple(self.prior_scale.shape)}")
        self.noise_scale = float(noise_scale)
        self.features = features
        # Before the first data nothing says how many weights there are, unless prior_scale does.
        self._precision: Tensor | None = None
        self._weighted: Tensor | None = None  # S^-1 m
        self.n = 0

    def __repr__(self) -> str:
        return f"LinearRegression(n={self.n}, noise_scale={self.noise_scale:.4g})"

    @property
    def weights(self) -> MultivariateNormal:
        """Distribution of w, shape (P,).

        Raises
        ------
        ValueError
            Flat prior and too few or dependent rows; or no data yet and one number as `prior_scale`.
        """
        if self._precision is None or self._weighted is None:
            if self.prior_scale.dim() == 0:
                raise ValueError("how many weights there are is known after fit, or from a prior_scale of shape (P,)")
            return self._belief(len(self.prior_scale), self.prior_scale.dtype)
        return self._belief(len(self._weighted), self._weighted.dtype)

    def fit(self, x: Tensor, y: Tensor) -> LinearRegression:
        """Condition on data. Fitting in two parts equals fitting at once.

        Parameters
        ----------
        x
            Inputs, shape (n, D).
        y
            Targets, shape (n, 1).

        Returns
        -------
        LinearRegression
            The posterior, as a new object; this one stays as it was.

        Raises
        ------
        ValueError
            Bad data, or a flat prior with a singular design (message names the rank).
        """
        phi = self._design(x, y)
        precision, weighted = self._natural(phi.shape[1], phi.dtype)
        after = copy.copy(self)
        after._precision = precision + phi.T @ phi / self.noise_scale**2
        after._weighted = weighted + phi.T @ y.squeeze(-1) / self.noise_scale**2
        after.n = self.n + len(x)
        after.weights  # noqa: B018  a singular design is reported here, not at the first prediction
        return after

    def predict(self, x: Tensor) -> Predictive:
        """Predictive distribution of new y at x, shape (N, D), in closed form.

        mean = phi^T m,     epistemic_var = phi^T S phi,     aleatoric_var = noise_scale^2
        """
        phi = self._phi(x)
        w = self._belief(phi.shape[1], phi.dtype)
        var = (phi @ w.scale_tril).square().sum(-1).reshape(1, -1, 1)
        mean = (phi @ w.loc).reshape(1, -1, 1)
        noise = torch.full_like(var, self.noise_scale**2)
        return Predictive(Normal(mean, (var + noise).sqrt()), function_var=var, noise_var=noise)

    def log_evidence(self, x: Tensor, y: Tensor) -> Tensor:
        """log p(y | x) with the weights integrated out, in nats: how well this belief foresaw the data.

            log p(y) = log p(y | w) + log p(w) - log p(w | y),     for any w; here w = m_n

        Call it on the prior for model choice. Costs n P^2, where the n x n normal of y costs n^3.

        Returns
        -------
        Tensor
            One number.

        Raises
        ------
        ValueError
            Bad data, or a flat prior: its density is no density, so there is no evidence.
        """
        phi = self._design(x, y)
        if self._precision is None and bool(torch.isinf(self.prior_scale).any()):
            raise ValueError("a flat prior has no evidence: give a finite prior_scale")
        before, after = self._belief(phi.shape[1], phi.dtype), self.fit(x, y).weights
        w = after.loc
        fit = Normal(phi @ w, self.noise_scale).log_prob(y.squeeze(-1)).sum()
        log_p: Tensor = fit + before.log_prob(w) - after.log_prob(w)
        return log_p

    def sample_functions(self, x: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n whole functions, noise left out, and evaluate each at x: shape (n, N, 1)."""
        if n < 1:
            raise ValueError(f"sample_functions needs at least one draw, got n={n}")
        phi = self._phi(x)
        w = self._belief(phi.shape[1], phi.dtype)
        draws = w.loc + standard_normal((n, phi.shape[1]), w.loc, generator) @ w.scale_tril.T
        return (draws @ phi.T).unsqueeze(-1)

    # the maths ---------------------------------------------------------------------------------

    def _natural(self, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """S^-1 and S^-1 m, for the given number of weights."""
        if self._precision is not None and self._weighted is not None:
            if len(self._weighted) != size:
                raise ValueError(f"features gives {size} columns, the fit had {len(self._weighted)}")
            return self._precision, self._weighted
        if self.prior_scale.dim() == 1 and len(self.prior_scale) != size:
            raise ValueError(f"prior_scale is for {len(self.prior_scale)} weights, features gives {size} columns")
        diagonal = (self.prior_scale.to(dtype) ** -2).expand(size)
        return torch.diag(diagonal), torch.zeros(size, dtype=dtype)

    def _belief(self, size: int, dtype: torch.dtype) -> MultivariateNormal:
        precision, weighted = self._natural(size, dtype)
        # Columns in different units are no singularity: judge the matrix with a unit diagonal.
        unit = precision.diagonal().clamp_min(torch.finfo(dtype).tiny).rsqrt()
        scaled = unit[:, None] * precision * unit
        rank = int(torch.linalg.matrix_rank(scaled, hermitian=True))
        if rank < size:
            raise ValueError(
                f"the weights are not determined: singular design (rank {rank} for {size} weights in {dtype}); "
                "give a finite (or smaller) prior_scale, more data, float64, or drop dependent columns"
            )
        chol = torch.linalg.cholesky(scaled)
        eye = torch.eye(size, dtype=dtype)
        # With scaled = L L^T the covariance is R R^T, R = unit L^-T.
        root = unit[:, None] * torch.linalg.solve_triangular(chol, eye, upper=False).T
        return MultivariateNormal(root @ (root.T @ weighted), scale_tril=_lower_root(root))

    def _phi(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(
                f"x must be a floating-point tensor, got {x.dtype if isinstance(x, Tensor) else type(x).__name__}"
            )
        if x.dim() != 2:
            raise ValueError(f"x has shape {tuple(x.shape)}; give (N, D), for one input x.reshape(-1, 1)")
        phi = self.features(x)
        if phi.dim() != 2 or len(phi) != len(x):
            raise ValueError(f"features must return (N, P) for N={len(x)} rows, got {tuple(phi.shape)}")
        if not bool(torch.isfinite(phi).all()):
            raise ValueError("features(x) has NaN or infinite values; look at x and at the features")
        return phi

    def _design(self, x: Tensor, y: Tensor) -> Tensor:
        check_pair(x, y)
        phi = self._phi(x)
        if y.shape != (len(x), 1):
            raise ValueError(f"y has shape {tuple(y.shape)}; give ({len(x)}, 1), for one column y.reshape(-1, 1)")
        if y.dtype != phi.dtype:
            raise TypeError(f"x is {phi.dtype}, y is {y.dtype}; convert one of them")
        return phi


def _lower_root(root: Tensor) -> Tensor:
    """Lower-triangular L with L L^T = R R^T and a positive diagonal, by QR of R^T: no product is formed."""
    triangle = torch.linalg.qr(root.T).R.T
    lower: Tensor = triangle * triangle.diagonal().sign()
    return lower
