"""Laplace's approximation: the best w, and a normal around it with the curvature found there.

    p(w | D)  ~  N(w_map, H^-1),     H = diag(A) + F^T F

with the generalised Gauss-Newton matrix F^T F (see `gauss_newton`), whole or in a structure that larger
nets can afford. Prior precisions, one per parameter tensor, and the noise are not guessed: they maximise the evidence

    log p(D | A, noise) ~ log p(D | w_map) + log p(w_map | A) + P/2 log 2 pi - 1/2 log det H

while w is being fitted (MacKay 1992; Foresee and Hagan 1997; Immer et al. 2021). With the whole matrix, steps in w are
damped Gauss-Newton (Levenberg-Marquardt) steps on it, so one factorisation serves both; else they are Adam's.
"""

from __future__ import annotations

import warnings

import torch
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from bnnlib._settings import check_positive, check_whole
from bnnlib.nets._fitting import Data, Prepared, prepare, progress_bar
from bnnlib.nets._laplace_full import FullState as _State
from bnnlib.nets._laplace_kronecker import KroneckerState
from bnnlib.nets._laplace_layers import DiagonalState, LastLayerState, LayerState
from bnnlib.nets._laplace_state import double
from bnnlib.nets.gauss_newton import LowRankPrecision
from bnnlib.nets.kronecker import KroneckerNormal
from bnnlib.nets.last_layer import PartialNormal
from bnnlib.nets.model import Model
from bnnlib.nets.posterior import Posterior

__all__ = ["laplace"]

_LAYERS: dict[str, type[LayerState]] = {
    "kronecker": KroneckerState,
    "diagonal": DiagonalState,
    "last_layer": LastLayerState,
}


def laplace(
    model: Model,
    data: Data,
    *,
    structure: str = "full",
    evidence: bool = True,
    steps: int | None = None,
    burn_in: int | None = None,
    tolerance: float = 0.02,
    lr: float = 0.01,
    generator: torch.Generator | None = None,
    progress: bool = True,
    device: torch.device | str | None = None,
) -> Posterior:
    """Maximum a posteriori, then the Gauss-Newton curvature around it; predictions in closed form.

    Parameters
    ----------
    model
        Its weight priors must be normal. Starts at the network's present parameters.
    data
        A pair of tensors, a `Standardized` or a `DataLoader` ("full" reads it once, as a whole).
    structure
        What is kept of the matrix. "full": all of it, for nets of up to some thousand weights. "kronecker": one
        Kronecker product for each Linear and Conv2d layer, nothing between layers. "diagonal": each weight as
        if the others were known. "last_layer": all of it for the Linear layer at the end; the
        layers before it are constants at their best values.
    evidence
        True: prior precisions (one per parameter tensor, starting at the model's prior) are found by
        maximising the evidence; "last_layer" finds those of that layer. False: the model's prior is kept as it is.
        Noise that is unknown in the model is found by the evidence and its prior either way. For classes the
        curvature moves with w, which MacKay's rule for the prior leaves out: it rests at a narrower prior than the
        largest evidence has.
    steps
        "full": largest number of Gauss-Newton steps, 300 if None. Else the number of Adam's steps, 3000 if
        None; 0 leaves a trained network's weights as they are ("last_layer" still takes its last layer to the mode).
    burn_in
        First steps, in which prior and noise stay where they are: half of them, for "full" at most 60. Found too
        early, a small evidence explains the signal as noise and the fit never recovers.
    tolerance
        Stop when the log evidence has changed by less than this, in nats, over five steps of the "full" method.
    lr
        Adam's step size at the start; it falls to zero after the burn-in. Not for "full".
    generator
        Not used: the method draws nothing. Kept so that all methods are called alike.

    Returns
    -------
    Posterior
        Linearised, with history `log_evidence` (NaN in the burn-in), `noise` (standard deviation; NaN
        where the likelihood has no unknown one) and `damping` (NaN for Adam); in the diagnostics `log_evidence`,
        `effective_parameters` and, by tensor name, the fitted prior's standard deviation.

    Raises
    ------
    ValueError
        Bad data; priors that are not normal; a Jacobian beyond 2 GiB; a layer that the structure does not know.
    FloatingPointError
        The noise is unknown and goes to zero, because the data can be fitted exactly; the loss became NaN.
    """
    count, first = _check_settings(structure, steps, burn_in, lr)
    prepared = prepare(model, data)
    if not model.prior.normal:
        raise ValueError(
            f"laplace needs normal priors on the weights, got {model.prior}; use mean_field, or a normal prior"
        )
    home = model.device
    target = torch.device(device) if device is not None else home
    state = _state(structure, model, prepared, target)
    interrupted = False
    try:
        state.fit(progress_bar(count, "laplace", progress), count, first, lr, tolerance, evidence)
    except KeyboardInterrupt:
        interrupted = True
        warnings.warn(f"laplace was interrupted after {state.done} steps; the result is what was reached", stacklevel=2)
        state.stop()
    curvature = state.curvature()
    record = torch.tensor(state.history, dtype=torch.float64).reshape(-1, 3)
    return Posterior(
        model=model,
        distribution=_home(state.distribution(), home, model.dtype),
        method="laplace" if structure == "full" else f"laplace, {structure}",
        history=dict(zip(("log_evidence", "noise", "damping"), record.unbind(-1), strict=True)),
        diagnostics={
            "log_evidence": state.log_evidence(curvature),
            "effective_parameters": float(curvature.effective.sum()),
            "steps": float(state.done),
            "interrupted": float(interrupted),
            **state.prior_sd(),
        },
        scaling=prepared.scaling,
        linearized=True,
    )


def _state(structure: str, model: Model, prepared: Prepared, device: torch.device) -> _State | LayerState:
    if structure in _LAYERS:
        return _LAYERS[structure](model if device == model.device else model.to(device), prepared, device)
    x, y = prepared.everything()
    return _State(model.to(device, torch.float64), double(x.to(device)), double(y.to(device)))


def _home(distribution: Distribution, device: torch.device, dtype: torch.dtype) -> Distribution:
    """The distribution on the model's device; dense ones and factorised ones in its dtype."""
    if isinstance(distribution, MultivariateNormal):
        tril = distribution.scale_tril.to(device, dtype)
        return MultivariateNormal(distribution.loc.to(device, dtype), scale_tril=tril)
    if isinstance(distribution, Independent):
        base = distribution.base_dist
        return Independent(Normal(base.loc.to(device, dtype), base.scale.to(device, dtype)), 1)
    assert isinstance(distribution, KroneckerNormal | LowRankPrecision | PartialNormal)
    return distribution.to(device)


def _check_settings(structure: str, steps: int | None, burn_in: int | None, lr: float) -> tuple[int, int]:
    if structure != "full" and structure not in _LAYERS:
        raise ValueError(f"structure is 'full', {', '.join(map(repr, _LAYERS))}; got {structure!r}")
    full = structure == "full"
    if steps is not None:
        check_whole(1 if full else 0, steps=steps)
    if burn_in is not None:
        check_whole(0, burn_in=burn_in)
    check_positive(lr=lr)
    count = steps if steps is not None else 300 if full else 3000
    return count, burn_in if burn_in is not None else min(60, count // 2) if full else count // 2
