"""The generalised Gauss-Newton matrix: the curvature of the log likelihood with the network linearised in w.

    H = A + F^T F,    F = Lambda^(1/2) J,

with A the diagonal of prior precisions, J the Jacobian of the network's outputs in w, and Lambda
the Fisher information of those outputs. There are two ways to work with H, the same numbers at
another cost. With fewer weights than outputs, R = N * outputs, H itself is factorised (P x P).
With more, the R x R matrix I + F A^-1 F^T is: the function-space form (Woodbury's identity), whose
entries are those of a Gaussian process with kernel J A^-1 J^T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.func import jacrev, vmap

from bnnlib.nets.model import Model

__all__ = ["Curvature", "GaussNewton", "LowRankPrecision", "jacobian"]


def jacobian(model: Model, w: Tensor, x: Tensor) -> Tensor:
    """df/dw at each input, shape (N, outputs, net_size): the noise coordinates do not move f."""
    noise = w[model.net_size :]

    def one(weights: Tensor, row: Tensor) -> Tensor:
        return model(torch.cat([weights, noise]), row.unsqueeze(0)).squeeze(0)

    with torch.no_grad():
        out: Tensor = vmap(jacrev(one), (None, 0))(w[: model.net_size].detach(), x)
    return out


@dataclass(frozen=True)
class Curvature:
    """What the evidence needs to know of H.

    Attributes
    ----------
    log_det
        log det H - log det A.
    effective
        For each parameter tensor: how many directions the data determine, sum_p (1 - A_p Var_p), (T,).
    leverage
        Diagonal of F H^-1 F^T: how far each output is bound to its own observation, (N, outputs).
    """

    log_det: Tensor
    effective: Tensor
    leverage: Tensor


class GaussNewton:
    """H at one w, for any prior precisions A = multiplier of a tensor times a fixed diagonal, and any noise.

    Parameters
    ----------
    base
        The fixed diagonal, shape (P,).
    tensor_of
        For each entry the index of its parameter tensor, shape (P,), sorted.
    jac
        Jacobian, shape (N, outputs, P).
    """

    def __init__(self, base: Tensor, tensor_of: Tensor, jac: Tensor) -> None:
        self.base, self.tensor_of, self.jac = base, tensor_of, jac
        self.sizes = torch.bincount(tensor_of).tolist()
        self.points, self.outputs, self.size = jac.shape
        self.rows = self.points * self.outputs
        self.wide = self.size > self.rows
        if self.wide:
            # One kernel a tensor, once: any precisions and any noise are then cheap combinations of them.
            white = (jac * base.rsqrt()).flatten(0, 1)
            self.kernels = [part @ part.T for part in white.split(self.sizes, dim=1)]

    def factor(self, root: Tensor) -> Tensor:
        """F = root^T J, shape (R, P); root (N, outputs, outputs) is the square root of the Fisher information."""
        return (root.mT @ self.jac).flatten(0, 1)

    def _gram(self, root: Tensor, multiplier: Tensor) -> Tensor:
        """F A^-1 F^T (R, R) in the function-space form, A^(-1/2) F^T F A^(-1/2) (P, P) in the other."""
        if self.wide:
            kernel = torch.stack([k / m for k, m in zip(self.kernels, multiplier, strict=True)]).sum(0)
            return self._rooted(kernel, root)
        white = self.factor(root) * self._precision(multiplier).rsqrt()
        return white.T @ white

    def _rooted(self, kernel: Tensor, root: Tensor) -> Tensor:
        if self.outputs == 1:
            r = root.reshape(-1)
            return kernel * r * r.unsqueeze(-1)
        n, k = self.points, self.outputs
        left = (root.mT @ kernel.reshape(n, k, self.rows)).reshape(self.rows, n, k)
        return torch.einsum("rnk,nkj->rnj", left, root).reshape(self.rows, self.rows)

    def _precision(self, multiplier: Tensor) -> Tensor:
        return self.base * multiplier[self.tensor_of]

    def solve(self, root: Tensor, multiplier: Tensor, slope: Tensor, damping: float) -> Tensor:
        """((1 + damping) A + F^T F)^-1 slope, shape (P,)."""
        matrix, inverse_root = self._gram(root, multiplier), self._precision(multiplier).rsqrt()
        matrix.diagonal().add_(1 + damping)
        cholesky, b = torch.linalg.cholesky(matrix), slope * inverse_root
        if not self.wide:
            return inverse_root * torch.cholesky_solve(b.unsqueeze(-1), cholesky).squeeze(-1)
        rows = torch.einsum("nkp,p->nk", self.jac, b * inverse_root).unsqueeze(-1)
        inner = torch.cholesky_solve((root.mT @ rows).reshape(-1, 1), cholesky)
        back = (root @ inner.reshape(self.points, self.outputs, 1)).squeeze(-1)
        return inverse_root * (b - inverse_root * torch.einsum("nkp,nk->p", self.jac, back)) / (1 + damping)

    def curvature(self, root: Tensor, multiplier: Tensor) -> Curvature:
        """Log determinant, effective parameters and leverages."""
        gram = self._gram(root, multiplier)
        gram.diagonal().add_(1.0)
        cholesky = torch.linalg.cholesky(gram)
        log_det, inverse = 2 * cholesky.diagonal().log().sum(), torch.cholesky_inverse(cholesky)
        if self.wide:
            solved = self._rooted(inverse, root.mT)
            effective = torch.stack([(solved * k).sum() / m for k, m in zip(self.kernels, multiplier, strict=True)])
            leverage = 1 - inverse.diagonal()
        else:
            determined = 1 - inverse.diagonal()
            effective = torch.stack([part.sum() for part in determined.split(self.sizes)])
            white = self.factor(root) * self._precision(multiplier).rsqrt()
            leverage = torch.linalg.solve_triangular(cholesky, white.T, upper=False).square().sum(0)
        return Curvature(log_det, effective.clamp_min(1e-9), leverage.reshape(self.points, self.outputs))


class LowRankPrecision(Distribution):
    """Normal over w with precision diag(diagonal) + factor^T factor, for more weights than rows of the factor.

    Costs R^2 P once and R P a draw; the P x P covariance is never formed. Works in float64.

    Parameters
    ----------
    loc
        Mean, shape (P,).
    diagonal
        Positive diagonal A, shape (P,).
    factor
        F, shape (R, P).
    """

    arg_constraints = {  # noqa: RUF012
        "loc": constraints.real_vector,
        "diagonal": constraints.independent(constraints.positive, 1),
        "factor": constraints.independent(constraints.real, 2),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, diagonal: Tensor, factor: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.diagonal, self.factor = loc.double(), diagonal.double(), factor.double()
        super().__init__(event_shape=self.loc.shape, validate_args=validate_args)

    @cached_property
    def _white(self) -> Tensor:
        """F A^(-1/2), shape (R, P)."""
        white: Tensor = self.factor * self.diagonal.rsqrt()
        return white

    @cached_property
    def _cholesky(self) -> Tensor:
        """L with L L^T = I + F A^-1 F^T, shape (R, R)."""
        white = self._white
        gram: Tensor = white @ white.T
        gram.diagonal().add_(1.0)
        cholesky: Tensor = torch.linalg.cholesky(gram)
        return cholesky

    def to(self, device: torch.device) -> LowRankPrecision:
        """The same on another device."""
        return LowRankPrecision(self.loc.to(device), self.diagonal.to(device), self.factor.to(device))

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Diagonal of the covariance, (P,): (1 - sum_r V_rp^2) / A_p with V = L^-1 F A^(-1/2)."""
        v = torch.linalg.solve_triangular(self._cholesky, self._white, upper=False)
        variance: Tensor = (1 - v.square().sum(0)) / self.diagonal
        return variance

    def covariance_of(self, rows: Tensor) -> Tensor:
        """B Sigma B^T for rows B (..., K, P) -> (..., K, K)."""
        b = rows.double() * self.diagonal.rsqrt()
        v = torch.linalg.solve_triangular(self._cholesky, self._white @ b.reshape(-1, b.shape[-1]).T, upper=False)
        v = v.T.reshape(*b.shape[:-1], -1)
        covariance: Tensor = b @ b.mT - v @ v.mT
        return covariance

    @property
    def noise_size(self) -> int:
        """Standard normal numbers that one draw is made of, P + R."""
        return len(self.loc) + len(self.factor)

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        return self.from_noise(
            torch.randn(*sample_shape, self.noise_size, dtype=self.loc.dtype, device=self.loc.device)
        )

    def from_noise(self, noise: Tensor) -> Tensor:
        """loc + A^(-1/2) (e - W^T (I + W W^T)^-1 (W e + d)) with W = F A^(-1/2); (e, d) = noise (..., P + R).

        This is Matheron's rule: a draw from the prior, corrected by a draw of the data.
        """
        e, d = noise.split([len(self.loc), len(self.factor)], -1)
        residual = e @ self._white.T + d
        solved = torch.cholesky_solve(residual.reshape(-1, residual.shape[-1]).T, self._cholesky).T.reshape(
            residual.shape
        )
        drawn: Tensor = self.loc + (e - solved @ self._white) * self.diagonal.rsqrt()
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        delta = value.double() - self.loc
        quadratic = (delta.square() * self.diagonal).sum(-1) + (delta @ self.factor.T).square().sum(-1)
        return 0.5 * (self._log_det - quadratic - len(self.loc) * math.log(2 * math.pi))

    def entropy(self) -> Tensor:
        return 0.5 * (len(self.loc) * (1 + math.log(2 * math.pi)) - self._log_det)

    @cached_property
    def _log_det(self) -> Tensor:
        """Log determinant of the precision."""
        return self.diagonal.log().sum() + 2 * self._cholesky.diagonal().log().sum()
