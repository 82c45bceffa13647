"""From the statistics of batches to statistics for evaluation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bnnlib.batchnorm._checks import features, moments, momentum_in_range


@dataclass(frozen=True)
class RunningStatistics:
    """Mean and variance of each feature, gathered batch by batch.

        new = (1 - momentum) * old + momentum * batch       the moving average
        new = average over all batches so far               for momentum None

    The batch's variance enters times m / (m - 1), where m is the number of values that it was taken over. Divided by m,
    as the batch was normalised, it would be too small on average.

    Attributes
    ----------
    mean, var
        What evaluation would use now, (n,).
    batches
        How many batches have been seen.
    momentum
        Weight of the new batch, 0 to 1, or None. Texts that give the weight of the *old* value, 0.9, mean 0.1.

    Examples
    --------
    >>> import torch
    >>> from bnnlib.batchnorm import RunningStatistics
    >>> seen = RunningStatistics.start(1).update(torch.tensor([[10.0], [12.0]]))
    >>> seen.mean, seen.var
    (tensor([1.1000]), tensor([1.1000]))

    Source: Ioffe and Szegedy (2015), section 3.1 and algorithm 2.
    """

    mean: Tensor
    var: Tensor
    batches: int = 0
    momentum: float | None = 0.1

    def __post_init__(self) -> None:
        momentum_in_range(self.momentum)
        if self.mean.dim() != 1 or self.mean.shape != self.var.shape:
            shapes = f"{tuple(self.mean.shape)} and {tuple(self.var.shape)}"
            raise ValueError(f"mean and var are vectors of one length, got shapes {shapes}")

    @classmethod
    def start(cls, n: int, momentum: float | None = 0.1, dtype: torch.dtype | None = None) -> RunningStatistics:
        """Before the first batch: mean 0 and variance 1 of n features."""
        return cls(torch.zeros(n, dtype=dtype), torch.ones(n, dtype=dtype), momentum=momentum)

    def update(self, x: Tensor) -> RunningStatistics:
        """Return the statistics after one more batch, (m, n) or (m, n, ...); this object stays as it is."""
        features("mean", self.mean, x)
        mean, var, count = moments(x.detach())
        return self.include(mean, var, count)

    def include(self, mean: Tensor, var: Tensor, count: int) -> RunningStatistics:
        """Return the statistics after a batch of which mean and *biased* variance over count values are known."""
        weight = 1 / (self.batches + 1) if self.momentum is None else self.momentum
        return replace(
            self,
            mean=(1 - weight) * self.mean + weight * mean,
            var=(1 - weight) * self.var + weight * var * count / (count - 1),
            batches=self.batches + 1,
        )
