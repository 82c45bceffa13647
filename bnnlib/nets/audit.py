"""What a home-made loss "error plus a bit of KL" stands for, in the terms of a posterior.

The negative ELBO with normal noise, up to a constant, is

    NELBO = 1 / (2 sigma^2) sum_i (y_i - f_i)^2 + KL.

A loss `MSE + c KL` with c = kl_weight / size (mean-reduced) is that, times 2 sigma^2 / n, for one
noise only: sigma^2 = n c / 2. With the true noise instead it is a posterior whose KL is weighed by
the temperature T = n c / (2 sigma^2): below 1 the posterior is too cold, its spread too small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

from bnnlib._settings import check_positive

__all__ = ["LossAudit", "audit_loss"]

_LOSSES = {
    # per loss: factor a such that n * loss / a = sum of squared errors (or the summed nll)
    "mse + kl": ("squares", "mean"),
    "sse + kl": ("squares", "sum"),
    "nll + kl": ("nll", "mean"),
    "nll_sum + kl": ("nll", "sum"),
}


@dataclass(frozen=True)
class LossAudit:
    """Result of `audit_loss`.

    Attributes
    ----------
    kl_per_nat
        Weight that one nat of the whole network's KL has in the loss.
    noise_sd
        The one noise standard deviation for which the loss is a negative ELBO; NaN for an nll loss,
        which names its noise itself.
    n, outputs
        Number of data and of outputs.
    kind
        "squares" or "nll".
    """

    kl_per_nat: float
    noise_sd: float
    n: int
    outputs: int
    kind: str
    reduction: str

    def temperature(self, noise_sd: float | None = None) -> float:
        """Weight of the KL relative to the ELBO's, given the true noise standard deviation: 1 is the ELBO.

        Below 1 the data count 1/T times; above 1 the prior does.
        """
        data = self.n * self.outputs if self.reduction == "mean" and self.kind == "squares" else self.n
        scale = data if self.reduction == "mean" else 1
        if self.kind == "nll":
            return self.kl_per_nat * scale
        if noise_sd is None or not noise_sd > 0:
            raise ValueError(
                f"temperature of a squared-error loss needs the noise's standard deviation, got {noise_sd}"
            )
        return self.kl_per_nat * scale / (2 * noise_sd**2)

    def __str__(self) -> str:
        if self.kind == "nll":
            return f"negative ELBO at temperature {self.temperature():.3g}"
        return f"negative ELBO of normal noise with standard deviation {self.noise_sd:.3g}"


def audit_loss(
    loss: str = "mse + kl",
    *,
    kl_weight: float = 1.0,
    kl_reduction: str = "sum",
    n: int,
    size: int,
    outputs: int = 1,
) -> LossAudit:
    """Which noise, or which temperature, a loss "error + kl_weight * KL" stands for.

    Parameters
    ----------
    loss
        "mse + kl" (mean of squared errors over points and outputs), "sse + kl" (their sum),
        "nll + kl" (mean negative log likelihood a point, cross-entropy included), "nll_sum + kl".
    kl_weight
        Factor in front of the KL.
    kl_reduction
        "sum": the KL of the network. "mean": that divided by the number of weights, as torchbnn's
        `BKLLoss(reduction="mean")` does.
    n
        Number of training points in the *whole* data set.
    size
        Number of weights the KL is taken over.
    outputs
        Outputs a point, over which "mse" also averages.

    Returns
    -------
    LossAudit

    Examples
    --------
    >>> audit = audit_loss("mse + kl", kl_weight=0.01, kl_reduction="mean", n=500, size=3001)
    >>> round(audit.noise_sd, 4), round(1 / audit.temperature(noise_sd=0.5774))
    (0.0289, 400)
    """
    if loss not in _LOSSES:
        raise ValueError(f"loss must be one of {', '.join(map(repr, _LOSSES))}, got {loss!r}")
    if kl_reduction not in ("sum", "mean"):
        raise ValueError(f'kl_reduction is "sum" or "mean", got {kl_reduction!r}')
    for name, count in (("n", n), ("size", size), ("outputs", outputs)):
        if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
            raise ValueError(f"{name} must be a whole number, at least 1, got {count}")
    check_positive(kl_weight=kl_weight)
    kind, reduction = _LOSSES[loss]
    per_nat = kl_weight / size if kl_reduction == "mean" else kl_weight
    data = n * outputs if reduction == "mean" else 1
    noise = math.sqrt(data * per_nat / 2) if kind == "squares" else math.nan
    return LossAudit(per_nat, noise, n, outputs, kind, reduction)
