"""SWAG: the normal that the last steps of stochastic gradient descent look like.

    w <- w + lr / n * gradient of the mini-batch's estimate of log p(w, D),    lr constant

    q(w) = N(mean, 1/2 diag(variance) + 1/2 D D^T / (K - 1)),    D: the last K iterates minus the mean

(Maddox et al. 2019), from the best single w on.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal

from bnnlib._random import place
from bnnlib._settings import check_positive, check_whole
from bnnlib.nets._fitting import Data, Prepared, batches, prepare, progress_bar
from bnnlib.nets._training import NegativeLogJoint, check_finite, report_interrupt
from bnnlib.nets.map_estimate import map_estimate
from bnnlib.nets.model import Model
from bnnlib.nets.posterior import Posterior

__all__ = ["swag"]

_STABLE = 0.5  # of the inverse of the largest curvature; plain gradient descent is stable up to 2


def swag(
    model: Model,
    data: Data,
    *,
    start: Tensor | None = None,
    steps: int = 3000,
    iterates: int = 200,
    every: int | None = None,
    rank: int = 20,
    lr: float | None = None,
    batch_size: int = 32,
    generator: torch.Generator | None = None,
    progress: bool = True,
    device: torch.device | str | None = None,
) -> Posterior:
    """Run gradient descent at a constant step from the best w, and fit a normal to where it goes.

    The temperature is tied to the step and to the batch, not to the data: near a minimum where the gradient's noise has
    the curvature's shape, the iterates have the variance lr / (2 batch) in every direction (Mandt, Hoffman and Blei
    2017), whatever n is, while the posterior has 1 / (n curvature). The two agree for a curvature of 2 batch / (lr n)
    only; stiffer directions come out too wide, and flat ones too narrow, which the steps also have no time to cross.
    Half of the fitted covariance is the diagonal alone, as published.

    Parameters
    ----------
    model
        What is unknown, its prior and its likelihood. The prior is the weight decay.
    data
        A pair of tensors, a `Standardized`, or a `DataLoader`, whose batches are then the mini-batches.
    start
        A trained w, shape (P,), such as the mean of a `map_estimate`. None: it is found first.
    steps
        Steps of `map_estimate` where `start` is None.
    iterates
        How many values of w are collected, T.
    every
        Steps between two of them; None: one pass over the data.
    rank
        How many of the last iterates make the low-rank part, K.
    lr
        Step size for the mean loss, -log p(w, D) / n. None: half of one over its largest curvature at the start.
    batch_size
        Size of mini-batches where the data are no loader.
    generator
        Source of the mini-batches.
    progress
        Show a progress bar.
    device
        Where to train; the result is on the model's own device.

    Returns
    -------
    Posterior
        Over `LowRankMultivariateNormal`, with history `loss` (mini-batch estimates of -log p(w, D), in nats) and in the
        diagnostics `lr`, `batch` and `iterates`. An interrupt from the keyboard returns a fit to what was collected,
        marked as interrupted.

    Raises
    ------
    ValueError
        Bad data or settings, before training starts; mini-batches as large as the data, which have no noise.
    FloatingPointError
        The loss became NaN or infinite; the message names the step.
    """
    check_whole(steps=steps, batch_size=batch_size, every=1 if every is None else every)
    check_whole(2, iterates=iterates, rank=rank)
    check_positive(lr=1.0 if lr is None else lr)
    prepared = prepare(model, data)
    home, target = model.device, torch.device(device) if device is not None else model.device
    size = len(prepared.x) if prepared.loader is not None else batch_size
    if size >= prepared.n:
        raise ValueError(
            f"batches of {size} of {prepared.n} points: the full gradient has no noise to learn a spread from; give a "
            "smaller batch_size, or a loader with one"
        )
    interrupted = False
    if start is None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "[xy] has root mean square")  # `prepare` has said it
            best = map_estimate(model, data, steps=steps, progress=progress, device=device)
        start, interrupted = best.mean, bool(best.diagnostics["interrupted"])
    if not isinstance(start, Tensor) or start.shape != (model.size,):
        given = f"shape {tuple(start.shape)}" if isinstance(start, Tensor) else f"type {type(start).__name__}"
        raise ValueError(f"start has {given}; expected ({model.size},), all unknowns of the model")
    loss = NegativeLogJoint(model if target == home else model.to(target))
    loss.w.copy_(start)
    if lr is None:
        lr = _STABLE * prepared.n / _largest_curvature(loss, prepared.x.to(target), prepared.y.to(target), prepared.n)
    gap = every if every is not None else -(-prepared.n // size)
    moments = _Moments(loss.w, rank)
    losses: list[Tensor] = []
    total = 0 if interrupted else iterates * gap  # who stops the search for the best w wants no more steps
    stream = _mini_batches(prepared, size, generator, target)
    try:
        for step in progress_bar(total, "swag", progress):
            x, y = next(stream)
            losses.append(loss(x, y, prepared.n / len(x)))
            loss.w.sub_(loss.grad, alpha=lr / prepared.n)
            if (step + 1) % gap == 0:
                moments.add(loss.w)
            if (step + 1) % 100 == 0:
                check_finite(losses[-100:], step - 99, lr)
    except ValueError:
        check_finite(losses, 0, lr)
        raise
    except KeyboardInterrupt:
        interrupted = True
        report_interrupt("swag", len(losses), total)
    check_finite(losses, 0, lr)
    return Posterior(
        model=model,
        distribution=moments.normal(home),
        method="swag",
        history={"loss": torch.stack(losses).cpu() if losses else torch.zeros(0)},
        diagnostics={
            "lr": lr,
            "batch": float(size),
            "iterates": float(moments.count),
            "steps": float(len(losses)),
            "interrupted": float(interrupted),
        },
        scaling=prepared.scaling,
    )


class _Moments:
    """Running mean and variance of iterates (Welford's update), and the last `rank` of them."""

    def __init__(self, start: Tensor, rank: int) -> None:
        self.rank, self.count = rank, 0
        self.mean, self.squares = start.clone(), torch.zeros_like(start)
        self.last: list[Tensor] = []

    def add(self, w: Tensor) -> None:
        self.count += 1
        delta = w - self.mean
        self.mean = self.mean + delta / self.count
        self.squares = self.squares + delta * (w - self.mean)
        self.last = [*self.last, w.clone()][-self.rank :]

    def normal(self, device: torch.device) -> LowRankMultivariateNormal:
        """Half of the covariance from the diagonal, half from the last iterates."""
        tiny = torch.finfo(self.mean.dtype).eps ** 2
        diagonal = (self.squares / max(self.count - 1, 1)).clamp_min(tiny) / 2
        last = torch.stack(self.last, -1) if self.last else self.mean.unsqueeze(-1)
        factor = (last - self.mean.unsqueeze(-1)) / (2 * max(last.shape[-1] - 1, 1)) ** 0.5
        return LowRankMultivariateNormal(self.mean.to(device), factor.to(device), diagonal.to(device))


def _mini_batches(
    prepared: Prepared, size: int, generator: torch.Generator | None, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    if prepared.loader is not None:
        yield from batches(prepared, device)
    x, y = prepared.x.to(device), prepared.y.to(device)
    while True:
        order = torch.randperm(len(x), generator=generator, device=place(generator, x)).to(device)
        for pick in order.split(size):
            yield x[pick], y[pick]


def _largest_curvature(loss: NegativeLogJoint, x: Tensor, y: Tensor, n: int, rounds: int = 30) -> float:
    """Largest eigenvalue of the Hessian of -log p(w, D), by power iteration on differences of gradients."""
    at = loss.w.clone()
    direction = torch.ones_like(at) / len(at) ** 0.5
    curvature = 1.0
    for _ in range(rounds):
        step = 1e-3 * direction
        loss.w.copy_(at + step)
        loss(x, y, n / len(x))
        slope = loss.grad.clone()
        loss.w.copy_(at - step)
        loss(x, y, n / len(x))
        moved = (slope - loss.grad) / 2e-3
        curvature = float(moved.norm())
        direction = moved / moved.norm()
    loss.w.copy_(at)
    return curvature
