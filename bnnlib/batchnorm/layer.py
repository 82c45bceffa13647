"""BatchNorm as a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bnnlib.batchnorm._checks import along, features, momentum_in_range, positive_eps
from bnnlib.batchnorm.running import RunningStatistics
from bnnlib.batchnorm.steps import forward


class BatchNorm(nn.Module):
    """BatchNorm for (m, n) and for images (m, n, ...), with the names and the numbers of torch's own layers.

    In training it normalises with the batch's statistics and stores a running version of them. In evaluation it uses
    what is stored. State dicts can be exchanged with `nn.BatchNorm1d`, `2d` and `3d`.

    Parameters
    ----------
    n
        Number of features (of channels, for images).
    eps
        Added to the variance.
    momentum
        Weight of the new batch in the stored statistics; None averages over all batches.

    Attributes
    ----------
    weight, bias
        The scale gamma and the shift beta, (n,).
    running_mean, running_var
        What evaluation uses, (n,).
    num_batches_tracked
        How many batches went in.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, n: int, eps: float = 1e-5, momentum: float | None = 0.1) -> None:
        super().__init__()
        positive_eps(eps)
        momentum_in_range(momentum)
        self.eps, self.momentum = eps, momentum
        self.weight, self.bias = nn.Parameter(torch.ones(n)), nn.Parameter(torch.zeros(n))
        self.register_buffer("running_mean", torch.zeros(n))
        self.register_buffer("running_var", torch.ones(n))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, scale and shift x, (m, n, ...)."""
        features("weight", self.weight, x)
        if not self.training:
            scale = self.weight / torch.sqrt(self.running_var + self.eps)
            return along(scale, x) * (x - along(self.running_mean, x)) + along(self.bias, x)
        done = forward(x, self.weight, self.bias, self.eps)
        old = RunningStatistics(self.running_mean, self.running_var, int(self.num_batches_tracked), self.momentum)
        with torch.no_grad():
            new = old.include(done.mean, done.var, x.numel() // x.shape[1])
            self.running_mean.copy_(new.mean)
            self.running_var.copy_(new.var)
            self.num_batches_tracked += 1
        return done.z

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer."""
        return f"{len(self.weight)}, eps={self.eps}, momentum={self.momentum}"
