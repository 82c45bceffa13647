"""The one idea of this package: everything unknown is one flat vector w, and a model is a density over it.

    log p(w, D) = log p(w) + sum_i log p(y_i | f(x_i; w))

The vector holds all parameters of a network in the order of `named_parameters`, then what is
unknown about the noise, in unconstrained coordinates.
"""

from __future__ import annotations

import copy
import hashlib

import torch
from torch import Tensor, nn
from torch.distributions import biject_to
from torch.func import functional_call

from bnnlib._random import draw
from bnnlib.nets.batchnorm_policy import CHOICES, apply_policy, looks_at_the_batch
from bnnlib.nets.likelihoods import Likelihood
from bnnlib.nets.priors import Prior, PriorSpec, check_parameters

__all__ = ["Model"]


class Model:
    """A network, a prior over its parameters and a likelihood: a joint density of w and data.

    Parameters
    ----------
    net
        Any `nn.Module`. It gives the shapes and the starting point, and is not changed.
    likelihood
        `Gaussian`, `Categorical`, ...: how observations scatter around the network's output.
    prior
        None: N(0, 1/fan_in) for weights, N(0, 1) for biases. Or a standard deviation, a
        distribution, or a dict from parameter names or patterns to either. See `Prior`.
    batchnorm
        What to do with BatchNorm, so that the output at a point does not depend on its batch-mates; w has the same
        entries under each choice. None: refuse a BatchNorm that looks at the batch. "frozen": evaluation mode, with the
        statistics as trained. "reestimate": at each w, the statistics that the inputs `reestimate_on` have; they
        pass through the network at every call. "group": a copy with GroupNorm in its place (groups of 16 channels, or
        one), which is another function and needs training.
    reestimate_on
        For "reestimate": training inputs as the network sees them, (R, ...); of `Standardized` data, `data.x`.

    Attributes
    ----------
    size : int
        P, the length of w.
    shapes : dict
        Name and shape of each network parameter, in flat order.

    Raises
    ------
    ValueError
        A net without parameters, with parameters shared between layers, with mixed dtypes, or with
        layers that are random or look at the whole batch while training (active Dropout, BatchNorm).

    Examples
    --------
    >>> model = Model(nn.Linear(3, 1), Gaussian(scale=0.1))
    >>> model.size, model.shapes
    (4, {'weight': torch.Size([1, 3]), 'bias': torch.Size([1])})
    """

    def __init__(
        self,
        net: nn.Module,
        likelihood: Likelihood,
        prior: PriorSpec = None,
        *,
        batchnorm: str | None = None,
        reestimate_on: Tensor | None = None,
    ) -> None:
        if not isinstance(net, nn.Module):
            raise TypeError(f"net must be an nn.Module, got {type(net).__name__}")
        if not isinstance(likelihood, Likelihood):
            raise TypeError(f"likelihood must be one of bnnlib.nets' likelihoods, got {type(likelihood).__name__}")
        check_parameters(net)
        net = apply_policy(net, batchnorm, reestimate_on)
        _check_modules(net)
        self.net = net
        self.likelihood = likelihood
        self.shapes = {name: p.shape for name, p in net.named_parameters()}
        self.prior = Prior(self.shapes, prior)
        self.net_size = sum(s.numel() for s in self.shapes.values())
        self.size = self.net_size + likelihood.unknown_size

    def __repr__(self) -> str:
        return f"Model({self.size} unknowns, {self.likelihood}, prior={self.prior})"

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the network's parameters."""
        return next(self.net.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the network's parameters."""
        return next(self.net.parameters()).device

    def start(self) -> Tensor:
        """The network's present parameters and the prior mean of the noise, flat (P,)."""
        parts = [p.detach().reshape(-1) for p in self.net.parameters()]
        return torch.cat([*parts, self.likelihood.unknown_start().to(parts[0])])

    def parameters_of(self, w: Tensor) -> dict[str, Tensor]:
        """Network parameters by name as views of w (..., P): each is (...) followed by its own shape."""
        self._check_w(w)
        parts = w[..., : self.net_size].split([s.numel() for s in self.shapes.values()], -1)
        return {k: v.reshape((*w.shape[:-1], *s)) for v, (k, s) in zip(parts, self.shapes.items(), strict=True)}

    def unravel(self, w: Tensor) -> dict[str, Tensor]:
        """Everything unknown by name: network parameters, and the noise in its own units under "noise".

        Parameters
        ----------
        w
            Shape (P,) or (S, P).
        """
        named = self.parameters_of(w)
        if self.likelihood.unknown is not None:
            value = biject_to(self.likelihood.unknown.support)(self.noise(w))
            named["noise"] = value.reshape((*w.shape[:-1], *self.likelihood.unknown.batch_shape))
        return named

    def noise(self, w: Tensor) -> Tensor:
        """The unconstrained noise coordinates u, the last entries of w: (..., P) -> (..., M)."""
        return w[..., self.net_size :]

    def __call__(self, w: Tensor, x: Tensor) -> Tensor:
        """Network output at w: w (P,) -> (N, outputs); w (S, P) -> (S, N, outputs)."""
        if w.dim() == 1:
            out: Tensor = functional_call(self.net, self.parameters_of(w), (x,))
            return out
        if w.dim() != 2:
            raise ValueError(f"w has shape {tuple(w.shape)}; expected ({self.size},) or (draws, {self.size})")
        self._check_w(w)
        return torch.stack([self(row, x) for row in w])

    def log_prior(self, w: Tensor) -> Tensor:
        """log p(w), in nats: (..., P) -> (...). The noise's part includes the Jacobian of its transform."""
        self._check_w(w)
        return self.prior.log_prob(w[..., : self.net_size]) + self.likelihood.unknown_log_prior(self.noise(w))

    def log_likelihood(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """log p(y | x, w) summed over the batch, in nats: (..., P) -> (...)."""
        f = self(w, x)
        return self.likelihood.log_prob(f, y, self.noise(w)).sum(-1)

    def log_joint(self, w: Tensor, x: Tensor, y: Tensor, n: int | None = None) -> Tensor:
        """log p(w) + n/batch * log p(y | x, w): an unbiased estimate of the full log joint from a mini-batch.

        Parameters
        ----------
        n
            Size of the whole data set; None if x and y are all of it.
        """
        scale = 1.0 if n is None else n / len(x)
        return self.log_prior(w) + scale * self.log_likelihood(w, x, y)

    def sample_prior(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n vectors of network parameters from the prior, noise at its prior draws, shape (n, P)."""
        weights = self.prior.sample(n, generator).to(self.dtype)
        if self.likelihood.unknown is None:
            return weights
        value = draw(self.likelihood.unknown, n, generator).reshape(n, -1)
        return torch.cat([weights, biject_to(self.likelihood.unknown.support).inv(value).to(weights)], -1)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Model:
        """The same model with its network on another device or in another dtype; this one is not changed."""
        other = copy.copy(self)
        other.net = copy.deepcopy(self.net).to(device=device, dtype=dtype)
        return other

    def signature(self) -> dict[str, object]:
        """What a saved posterior must agree with: parameters, layers, likelihood, prior, dtype, trained constants."""
        return {
            "shapes": {k: list(s) for k, s in self.shapes.items()},
            "net": repr(self.net),
            "likelihood": repr(self.likelihood),
            "prior": repr(self.prior),
            "dtype": str(self.dtype),
            "buffers": {k: _digest(b) for k, b in self.net.named_buffers()},
        }

    def _check_w(self, w: Tensor) -> None:
        if w.shape[-1] != self.size:
            raise ValueError(f"w has {w.shape[-1]} entries, the model {self.size} unknowns")


def _digest(buffer: Tensor) -> str:
    return hashlib.sha256(buffer.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def _check_modules(net: nn.Module) -> None:
    for name, module in net.named_modules():
        kind = f"{name or 'the net'} ({type(module).__name__})"
        if module.training and _draws_noise(module):
            raise ValueError(
                f"{kind} has active dropout: noise that the density over w does not count. "
                "Call net.eval() first, or leave it out; the prior already regularises."
            )
        if looks_at_the_batch(module):
            state = "in training mode" if module.training else "without stored statistics"
            raise ValueError(
                f"{kind} is BatchNorm {state}: the likelihood of one point would depend on its batch-mates. Choose: "
                + "; ".join(f'batchnorm="{choice}": {meaning}' for choice, meaning in CHOICES.items())
            )


def _draws_noise(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    # Attention and recurrent layers drop inside their own forward pass.
    inner = isinstance(module, nn.MultiheadAttention | nn.RNNBase) and float(module.dropout) > 0
    return inner or isinstance(module, nn.RReLU)
