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
    adam = _Adam(parameters)
    constant = steps - int(decay * steps)
    done = 0
    try:
        for i in progress_bar(steps, name.replace("_", " "), progress):
            step(i, record[i])
            adam.step(lr if i < constant else lr * (steps - i) / (steps - constant + 1))
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


class _Adam:
    """`torch.optim.Adam(parameters, fused=True)`, its kernel without the class around it: on small nets that takes
    five times as long as the kernel."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self.first, self.second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
        self.steps = [torch.zeros((), dtype=torch.float32, device=p.device) for p in parameters]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        torch._foreach_add_(self.steps, 1)
        torch._fused_adam_(
            self.parameters,
            [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters],
            self.first,
            self.second,
            [],
            self.steps,
            lr=lr,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )


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
