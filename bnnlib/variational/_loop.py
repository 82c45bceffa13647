"""The loop around the steps of every variational fit: Adam, a falling step size, interrupts, and losses that break."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from bnnlib._settings import check_part, check_positive, check_whole


def check_settings(steps: int, lr: float, draws: int, decay: float) -> None:
    """Raise unless the settings that all fits share are sound."""
    check_whole(steps=steps, draws=draws)
    check_positive(lr=lr)
    check_part(decay=decay)


def descend(
    step: Callable[[int, Tensor], None],
    parameters: Sequence[Tensor],
    record: Tensor,
    *,
    lr: float,
    decay: float,
    name: str,
    progress: bool,
    remedy: str,
    stacklevel: int = 3,
) -> tuple[int, bool]:
    """Run Adam; `step(i, record[i])` leaves the gradients in `.grad` and what it measured in its row.

    Parameters
    ----------
    record
        Shape (steps, columns).
    decay
        Last part of the steps over which lr falls linearly to zero; the last draws of a constant lr
        are spread around the optimum.
    remedy
        What to try when the loss breaks.

    Returns
    -------
    tuple
        Steps done, and whether the keyboard interrupted.
    """
    steps = len(record)
    optimizer = torch.optim.Adam(parameters, lr=lr, fused=True)
    constant = steps - int(decay * steps)
    done = 0
    try:
        for i in progress_bar(steps, name.replace("_", " "), progress):
            step(i, record[i])
            if i >= constant:
                optimizer.param_groups[0]["lr"] = lr * (steps - i) / (steps - constant + 1)
            optimizer.step()
            done = i + 1
            if done % 100 == 0 or done == steps:
                check_finite(record[:done], lr, remedy)
    except (ValueError, RuntimeError):
        check_finite(record[: done + 1], lr, remedy)  # a NaN that torch's own checks met first
        raise
    except KeyboardInterrupt:
        warnings.warn(
            f"{name} was interrupted after {done} of {steps} steps; the result is what was reached",
            stacklevel=stacklevel,
        )
        return done, True
    return done, False


def progress_bar(steps: int, name: str, show: bool) -> tqdm[int]:
    """A bar on stderr, silent when `show` is False or the environment says TQDM_DISABLE=1."""
    quiet: dict[str, bool] = {} if show else {"disable": True}
    return tqdm(range(steps), desc=name, leave=False, mininterval=0.2, **quiet)


def check_finite(record: Tensor, lr: float, remedy: str) -> None:
    """Raise at the first step whose row is not finite."""
    bad = ~torch.isfinite(record).all(-1)
    if bool(bad.any()):
        step = int(bad.nonzero()[0])
        raise FloatingPointError(
            f"the loss is {record[step].sum().item()} at step {step}; try a smaller lr (now {lr}), {remedy}"
        )
