"""What all samplers share: the log density of many chains at once, where chains start, how draws are handed back."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.func import functional_call, vmap

from bnnlib.data import Scaling
from bnnlib.nets.empirical import Empirical
from bnnlib.nets.model import Model
from bnnlib.nets.posterior import Posterior
from bnnlib.nets.priors import Prior
from bnnlib.nets.workspace import _ACTIVATIONS, _steady_heap

__all__ = [
    "Batch",
    "Density",
    "ascend",
    "chain_posterior",
    "check_finite",
    "metric",
    "noise",
    "on_host",
    "starts",
    "stiffness",
]

Forward = Callable[[Tensor, Tensor], Tensor]
Batch = Callable[[], tuple[Tensor, Tensor, float]]


class Density:
    """Log joint density and its gradient for C chains in one pass.

        log p_T(w) = (log p(w) + n/batch * log p(y | x, w)) / T

    A chain of its own is a row: nothing is shared between rows but the data. On 1-20-1 nets eight
    chains cost little more than one.

    Parameters
    ----------
    model
        In the dtype and on the device to compute with.
    temperature
        T. One is the posterior; less is a cold one, and no posterior of this prior and likelihood.
    """

    def __init__(self, model: Model, temperature: float = 1.0) -> None:
        _steady_heap()
        self.model, self.temperature = model, temperature
        self.likelihood = copy.copy(model.likelihood)
        self.likelihood.unknown = _unchecked(model.likelihood.unknown)
        self.forward = _forward(model)
        if model.prior.normal:
            like = model.start()
            self.loc, self.precision = model.prior.loc.to(like), model.prior.scale.to(like) ** -2
            self.constant = 0.5 * (self.precision.log() - math.log(2 * math.pi)).sum()

    def log_prob(self, w: Tensor, x: Tensor, y: Tensor, ratio: float = 1.0) -> Tensor:
        """(C, P) -> (C,), in nats, differentiable. Not finite where the density is not; never an error."""
        size = self.model.net_size
        u = w[:, size:]
        if self.model.prior.normal:
            away = w[:, :size] - self.loc
            prior = self.constant - 0.5 * (away * away * self.precision).sum(-1)
        else:
            prior = self.model.prior.log_prob(w[:, :size])
        if u.shape[1]:
            prior = prior + self.likelihood.unknown_log_prior(u)
        misfit = self.likelihood.log_prob(self.forward(w, x), y, u).sum(-1)
        return (prior + ratio * misfit) / self.temperature

    def __call__(self, w: Tensor, x: Tensor, y: Tensor, ratio: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log density (C,) and gradient (C, P)."""
        w = w.detach().requires_grad_()
        with torch.enable_grad():
            value = self.log_prob(w, x, y, ratio)
            (slope,) = torch.autograd.grad(value.sum(), w)
        return value.detach(), slope

    def hessian_times(self, v: Tensor, w: Tensor, x: Tensor, y: Tensor, ratio: float = 1.0) -> Tensor:
        """Minus the Hessian of the log density times v, for each chain: (C, P) -> (C, P)."""
        w = w.detach().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self.log_prob(w, x, y, ratio).sum(), w, create_graph=True)
            (product,) = torch.autograd.grad((slope * v).sum(), w)
        return -product


def _unchecked(distribution: Distribution | None) -> Distribution | None:
    """A copy that answers NaN where torch's own checks of arguments would raise: a proposal may be anywhere."""
    if distribution is None:
        return None
    copied = copy.deepcopy(distribution)
    part: Distribution | None = copied
    while part is not None:
        part._validate_args = False
        part = getattr(part, "base_dist", None)
    return copied


def _forward(model: Model) -> Forward:
    """The network at each of C rows of w: (C, P), (N, ...) -> (C, N, outputs), the fastest way that it allows."""
    layers = _dense_layers(model.net)

    def dense(w: Tensor, x: Tensor) -> Tensor:
        if x.dim() != 2:
            return careful(w, x)
        named = model.parameters_of(w)
        h = x.expand(len(w), *x.shape)
        for name, activation in layers or ():
            weight, bias = named[f"{name}.weight"].mT, named.get(f"{name}.bias")
            # One input is an outer product, which a matrix product would take longer for.
            h = h * weight if weight.shape[1] == 1 else torch.bmm(h, weight)
            h = h if bias is None else h.add_(bias.unsqueeze(1))
            h = h if activation is None else activation(h)
        return h

    def batched(w: Tensor, x: Tensor) -> Tensor:
        out: Tensor = vmap(functional_call, in_dims=(None, 0, None))(model.net, model.parameters_of(w), (x,))
        return out

    def careful(w: Tensor, x: Tensor) -> Tensor:
        # Recurrent layers and some others have no batched version.
        try:
            return batched(w, x)
        except (RuntimeError, NotImplementedError):
            return model(w, x)

    return careful if layers is None else dense


def _dense_layers(net: nn.Module) -> list[tuple[str, Callable[[Tensor], Tensor] | None]] | None:
    """Names of the Linear layers and the in-place activation after each, if `net` is nothing but these in a row.

    None also where a weight or bias is constant: it is then no part of w.
    """
    if type(net) is not nn.Sequential:
        return None
    found: list[tuple[str, Callable[[Tensor], Tensor] | None]] = []
    for name, layer in net._modules.items():  # named_children() would leave out an activation's second place
        if layer is None or layer._forward_hooks or layer._forward_pre_hooks or layer._buffers:
            return None
        if type(layer) is nn.Linear:
            found.append((name, None))
        elif type(layer) in _ACTIVATIONS and found and found[-1][1] is None:
            found[-1] = (found[-1][0], _ACTIVATIONS[type(layer)])
        else:
            return None
    return found


def starts(model: Model, chains: int, start: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Where C chains start, (C, P): at draws from the prior, the noise at its prior mean, or where the caller says."""
    if start is not None:
        if not isinstance(start, Tensor) or tuple(start.shape) != (chains, model.size):
            shape = tuple(start.shape) if isinstance(start, Tensor) else type(start).__name__
            raise ValueError(f"start must have shape (chains, unknowns) = ({chains}, {model.size}), got {shape}")
        if not bool(torch.isfinite(start).all()):
            raise ValueError("start has NaN or infinite entries")
        return start.detach().to(model.start()).clone()
    w = model.start().repeat(chains, 1)
    w[:, : model.net_size] = model.prior.sample(chains, on_host(generator)).to(w)
    return w


def on_host(generator: torch.Generator | None) -> torch.Generator | None:
    """The generator itself, or for one of another device a generator of the host that it seeds."""
    if generator is None or generator.device.type == "cpu":
        return generator
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator().manual_seed(int(seed))


def noise(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normals with the dtype and on the device of `like`, drawn where the generator lives."""
    device = generator.device if generator is not None else torch.device("cpu")
    return torch.randn(shape, dtype=like.dtype, device=device, generator=generator).to(like.device)


def ascend(
    density: Density,
    w: Tensor,
    batch: Batch,
    steps: int,
    lr: float = 0.2,
) -> Tensor:
    """Move every chain uphill by Adam, from far away to where the posterior has its mass; lr falls to zero.

    The lr is in units of the default prior's standard deviation, so that wide layers take smaller steps.
    """
    w, unit_scale = w.clone(), torch.ones_like(w[0])
    unit_scale[: density.model.net_size] = Prior(density.model.shapes).scale.to(w)
    first, second = torch.zeros_like(w), torch.zeros_like(w)
    for t in range(1, steps + 1):
        _, slope = density(w, *batch())
        first.lerp_(slope, 0.1)
        second.lerp_(slope * slope, 0.001)
        unit = (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
        w += lr * (1 - (t - 1) / steps) * unit * unit_scale
    return w


def metric(
    density: Density,
    w: Tensor,
    batch: Batch,
    precondition: bool,
    generator: torch.Generator | None,
    rounds: int = 20,
) -> tuple[Tensor, Tensor]:
    """A metric M (P,), one number for each parameter tensor, and the largest eigenvalue of M^1/2 H M^1/2, (C,).

    H is minus the Hessian of the log density at w. Equilibration (Dauphin et al. 2015): M = 1 / sqrt(E[(H z)_i^2])
    over z ~ N(0, I), one over the length of H's rows. The mean runs over a tensor's rows and over chains, because
    hidden units can be exchanged: a unit that is idle at w, in flat directions, may be another chain's busiest,
    and its own tomorrow. M is found once and then held, so that the diffusion needs no term for its change.
    """
    m = torch.ones_like(w[0])
    if precondition:
        squares = torch.zeros_like(m)
        for _ in range(rounds):
            product = density.hessian_times(noise(tuple(w.shape), w, generator), w, *batch())
            squares += product.square().mean(0) / rounds
        sizes = [s.numel() for s in density.model.shapes.values()] + [1] * density.model.likelihood.unknown_size
        m = torch.cat([part.mean().rsqrt().expand_as(part) for part in squares.split(sizes)])
    return m, stiffness(density, w, batch, m, noise(tuple(w.shape), w, generator), rounds)


def stiffness(density: Density, w: Tensor, batch: Batch, m: Tensor, v: Tensor, rounds: int) -> Tensor:
    """Largest eigenvalue of M^1/2 H M^1/2 at w by power iteration from v (C, P): (C,)."""
    lengths = []
    for _ in range(rounds):
        v = v / v.norm(dim=-1, keepdim=True)
        v = m.sqrt() * density.hessian_times(m.sqrt() * v, w, *batch())
        lengths.append(v.norm(dim=-1))
    return torch.stack(lengths[rounds // 2 :]).amax(0)


def chain_posterior(
    model: Model,
    method: str,
    kept: Tensor,
    *,
    history: dict[str, Tensor],
    diagnostics: dict[str, float | str],
    scaling: Scaling | None,
    planned: int,
    last: Tensor,
    reached: str | None = None,
) -> Posterior:
    """Draws (D, C, P) as a posterior: chain after chain, each in its order.

    Where nothing was kept before an interrupt, the states `last` (C, P) are all there is. `reached` says how far an
    interrupted run came where the draws a chain do not.
    """
    interrupted = reached is not None or len(kept) < planned
    values = kept if len(kept) else last.unsqueeze(0)
    if interrupted:
        what = f"{len(kept)} of {planned} draws a chain" if len(kept) else "the warm-up: its last states are no draws"
        warnings.warn(f"{method} was interrupted after {reached or what}; the result is what was reached", stacklevel=3)
    draws, chains = values.shape[:2]
    flat = values.transpose(0, 1).reshape(draws * chains, -1).to(device=model.device, dtype=model.dtype)
    return Posterior(
        model=model,
        distribution=Empirical(flat),
        method=method,
        history=history,
        diagnostics={
            "chains": float(chains),
            "draws": float(draws),
            **diagnostics,
            "interrupted": float(interrupted),
        },
        scaling=scaling,
    )


# settings ------------------------------------------------------------------------------------------


def check_finite(value: Tensor, step: int, method: str, advice: str) -> None:
    """Raise if the log density of any chain is not finite."""
    bad = ~torch.isfinite(value)
    if bool(bad.any()):
        chain = int(bad.nonzero()[0])
        raise FloatingPointError(
            f"{method}: the log density of chain {chain} is {float(value[chain])} at step {step}; {advice}"
        )
