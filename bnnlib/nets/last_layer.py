"""A network whose last layer alone is uncertain: features of the data, and a linear model on them.

    f(x; w) = W phi(x) + b,    df/dW_kj = phi_j,    df/db_k = 1

In W and b the network is linear, so nothing is lost by linearising it, and one pass gives the whole Jacobian.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.func import functional_call

from bnnlib.nets.model import Model

__all__ = ["LastLayer", "PartialNormal", "caught", "last_layer_of"]


@contextmanager
def caught(layers: Sequence[nn.Module]) -> Iterator[list[tuple[int, Tensor, Tensor]]]:
    """While the block runs, collect (which layer, its input, its output) at every call of one of `layers`."""
    calls: list[tuple[int, Tensor, Tensor]] = []

    def look(which: int) -> object:
        def hook(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
            calls.append((which, given[0], out))
            return out.clone()  # what comes next may write into its input

        return hook

    handles = [layer.register_forward_hook(look(i)) for i, layer in enumerate(layers)]  # type: ignore[arg-type]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


class LastLayer:
    """The Linear layer that a model's output comes straight from.

    Attributes
    ----------
    name
        Of the module, "" where the net is that layer itself.
    entries
        Its unknown entries of w.
    """

    def __init__(self, model: Model, name: str) -> None:
        self.model, self.name = model, name
        self.linear = model.net.get_submodule(name)
        own = [f"{name}.{part}" if name else part for part in ("weight", "bias")]
        self.has_weight, self.has_bias = (key in model.shapes for key in own)
        at, begin, end = 0, model.net_size, 0
        for key, shape in model.shapes.items():
            if key in own:
                begin, end = min(begin, at), at + shape.numel()
            at += shape.numel()
        self.entries = slice(begin, end)

    def __call__(self, w: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, inputs) and outputs (N, outputs) at w (P,)."""
        with torch.no_grad(), caught([self.linear]) as calls:
            f = functional_call(self.model.net, self.model.parameters_of(w), (x,))
        return calls[-1][1], f

    def jacobian(self, features: Tensor, outputs: int) -> Tensor:
        """df/dw in the entries of this layer, (N, outputs, Q)."""
        n, eye = len(features), torch.eye(outputs, dtype=features.dtype, device=features.device)
        parts = []
        if self.has_weight:
            parts.append(torch.einsum("kl,nj->nklj", eye, features).reshape(n, outputs, -1))
        if self.has_bias:
            parts.append(eye.expand(n, outputs, outputs))
        return torch.cat(parts, -1)


def last_layer_of(model: Model, x: Tensor) -> LastLayer:
    """Find the Linear layer whose output is the network's output at a few inputs x.

    Raises
    ------
    ValueError
        There is none, or nothing in it is unknown; the message names what there is.
    """
    named = [(name, m) for name, m in model.net.named_modules() if isinstance(m, nn.Linear)]
    with torch.no_grad(), caught([m for _, m in named]) as calls:
        f = functional_call(model.net, model.parameters_of(model.start()), (x,))
    found = [
        named[i][0] for i, given, out in calls if given.dim() == 2 and out.shape == f.shape and torch.equal(out, f)
    ]
    if not found or sum(named[i][0] == found[-1] for i, _, _ in calls) > 1:
        owners = [f"{k or 'the net'} ({type(m).__name__})" for k, m in model.net.named_modules() if m._parameters]
        raise ValueError(
            "the network's output does not come straight from one Linear layer, used once; layers with parameters are "
            f'{", ".join(owners)}. Take structure="kronecker" or "diagonal"'
        )
    last = LastLayer(model, found[-1])
    if not (last.has_weight or last.has_bias):
        raise ValueError(f"nothing in the last layer, {last.name or 'the net'}, is unknown in this model")
    return last


class PartialNormal(Distribution):
    """A normal over some entries of w; the others are constant. It has no density over w as a whole. In float64.

    Parameters
    ----------
    loc
        Mean, shape (P,).
    index
        Which entries vary, shape (Q,), ascending.
    scale_tril
        Lower triangle L of their covariance L L^T, shape (Q, Q).
    """

    arg_constraints = {"loc": constraints.real_vector, "scale_tril": constraints.lower_cholesky}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, index: Tensor, scale_tril: Tensor, validate_args: bool | None = None) -> None:
        if scale_tril.shape != (len(index), len(index)):
            raise ValueError(f"scale_tril has shape {tuple(scale_tril.shape)} for {len(index)} entries that vary")
        self.loc, self.index, self.scale_tril = loc.double(), index, scale_tril.double()
        super().__init__(event_shape=self.loc.shape, validate_args=validate_args)

    def to(self, device: torch.device) -> PartialNormal:
        """The same on another device."""
        return PartialNormal(self.loc.to(device), self.index.to(device), self.scale_tril.to(device))

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Diagonal of the covariance, (P,): zero where an entry is constant."""
        return torch.zeros_like(self.loc).index_put((self.index,), self.scale_tril.square().sum(-1))

    def covariance_of(self, rows: Tensor) -> Tensor:
        """B Sigma B^T for rows B (..., K, P) -> (..., K, K)."""
        return self.covariance_of_varying(rows[..., self.index])

    def covariance_of_varying(self, rows: Tensor) -> Tensor:
        """The same for rows over the first entries that vary only, (..., K, Q')."""
        half = rows.double() @ self.scale_tril[: rows.shape[-1]]
        covariance: Tensor = half @ half.mT
        return covariance

    @property
    def noise_size(self) -> int:
        """Standard normal numbers that one draw is made of, Q."""
        return len(self.index)

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        noise = torch.randn(*sample_shape, self.noise_size, dtype=self.loc.dtype, device=self.loc.device)
        return self.from_noise(noise)

    def from_noise(self, noise: Tensor) -> Tensor:
        """Draws (..., P) from standard normals (..., Q)."""
        drawn = self.loc.expand(*noise.shape[:-1], -1).clone()
        drawn[..., self.index] += noise @ self.scale_tril.T
        return drawn

    def entropy(self) -> Tensor:
        """Entropy of the entries that vary, in nats."""
        return self.scale_tril.diagonal().log().sum() + 0.5 * len(self.index) * (1 + math.log(2 * math.pi))
