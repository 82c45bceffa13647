"""Scores of a prediction on held-out data: accuracy, and whether the error bars hold.

All take a `Predictive` and the observations, in that order, and return plain numbers
(`pit` returns one value a point). Scores in nats or in the units of y; lower is better for
`rmse`, `nll`, `crps`, `ece`, `brier`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bnnlib.predictive import Predictive

__all__ = ["brier", "coverage", "crps", "ece", "nll", "pit", "report", "rmse"]


def rmse(predictive: Predictive, y: Tensor) -> float:
    """Root mean squared error of the predictive mean, in the units of y."""
    _regression(predictive, "rmse")
    _same_shape(predictive, y)
    return float((predictive.mean - y).square().mean().sqrt())


def nll(predictive: Predictive, y: Tensor) -> float:
    """Mean negative log predictive density (or probability) a point, in nats: -1/N sum_i log p(y_i | x_i, D)."""
    return float(-predictive.log_prob(y).mean())


def coverage(predictive: Predictive, y: Tensor, level: float = 0.95) -> float:
    """Fraction of observations inside the central interval of the given level; a calibrated one has `level`."""
    _same_shape(predictive, y)
    lower, upper = predictive.interval(level)
    return float(((lower <= y) & (y <= upper)).double().mean())


def crps(predictive: Predictive, y: Tensor) -> float:
    """Mean continuous ranked probability score, in the units of y."""
    return float(predictive.crps(y).mean())


def pit(predictive: Predictive, y: Tensor) -> Tensor:
    """Probability integral transform F(y), shape (N, K): uniform on (0, 1) if the predictive is right."""
    _same_shape(predictive, y)
    return predictive.cdf(y)


def brier(predictive: Predictive, y: Tensor) -> float:
    """Brier score of class probabilities: 1/N sum_i sum_c (p_ic - [y_i = c])^2, between 0 and 2 (Brier 1950).

    A yes-or-no answer has two classes: what `Bernoulli` scores is what two `Categorical` classes would.
    """
    probs, labels = class_probs(predictive, y)
    one_hot = torch.nn.functional.one_hot(labels, probs.shape[-1]).to(probs)
    return float((probs - one_hot).square().sum(-1).mean())


def ece(predictive: Predictive, y: Tensor, bins: int = 15) -> float:
    """Expected calibration error: mean |accuracy - confidence| over equal-width bins of the top probability.

    Bins are weighed by how many points they hold (Guo et al. 2017, eq. 3).
    """
    probs, labels = class_probs(predictive, y)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    confidence, label = probs.max(-1)
    right = (label == labels).to(probs)
    index = (confidence * bins).long().clamp_max(bins - 1)
    gap = torch.zeros(bins, dtype=probs.dtype, device=probs.device).index_add(0, index, right - confidence)
    return float(gap.abs().sum() / len(labels))


def report(predictive: Predictive, y: Tensor, level: float = 0.95) -> dict[str, float]:
    """All scores that fit the prediction, by name.

    Regression: rmse, nll, crps, coverage at `level`, mean interval width, mean epistemic and
    aleatoric standard deviation. Classes: accuracy, nll, brier, ece, mean entropy and mutual information.
    """
    if _is_classes(predictive):
        probs, labels = class_probs(predictive, y)
        return {
            "accuracy": float((probs.argmax(-1) == labels).double().mean()),
            "nll": nll(predictive, y),
            "brier": brier(predictive, y),
            "ece": ece(predictive, y),
            "entropy": float(predictive.entropy.mean()),
            "mutual_information": float(predictive.mutual_information.mean()),
        }
    lower, upper = predictive.interval(level)
    return {
        "rmse": rmse(predictive, y),
        "nll": nll(predictive, y),
        "crps": crps(predictive, y),
        "coverage": float(((lower <= y) & (y <= upper)).double().mean()),
        "width": float((upper - lower).mean()),
        "epistemic": float(predictive.epistemic.mean()),
        "aleatoric": float(predictive.aleatoric.mean()),
    }


def _is_classes(predictive: Predictive) -> bool:
    return isinstance(predictive.components, torch.distributions.Categorical | torch.distributions.Bernoulli)


def _regression(predictive: Predictive, what: str) -> None:
    if _is_classes(predictive):
        raise TypeError(f"{what} is for regression; for classes use nll, brier or ece")


def _same_shape(predictive: Predictive, y: Tensor) -> None:
    if y.shape != predictive.mean.shape:
        raise ValueError(f"y has shape {tuple(y.shape)}, the prediction {tuple(predictive.mean.shape)}")


def class_probs(predictive: Predictive, y: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities (M, C) and labels (M,) of M answers; the N K answers of `Bernoulli` have two classes each."""
    if not _is_classes(predictive):
        raise TypeError("brier, ece and reliability are for classes (a Categorical or Bernoulli likelihood)")
    probs = predictive.probs
    if isinstance(predictive.components, torch.distributions.Bernoulli):
        _same_shape(predictive, y)
        probs, y = torch.stack([1 - probs, probs], -1).flatten(0, -2), y.reshape(-1).long()
    if y.shape != probs.shape[:1] or y.is_floating_point():
        raise ValueError(f"y must be {len(probs)} integer labels, got {y.dtype} of shape {tuple(y.shape)}")
    return probs, y.long()
