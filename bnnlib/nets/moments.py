"""Mean and variance of a prediction without storing draws, and where possible without drawing."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from bnnlib.nets.likelihoods import Gaussian
from bnnlib.nets.model import Model
from bnnlib.nets.workspace import Workspace, stream
from bnnlib.predictive import Moments

__all__ = ["closed_moments", "noise_nodes", "relu_moments", "streamed_moments"]


def relu_moments(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """E[relu(a)] and E[relu(a)^2] for a ~ N(mean, var).

    With z = mean / sd:  E = mean Phi(z) + sd phi(z),  E2 = (mean^2 + var) Phi(z) + mean sd phi(z).
    Source: Frey and Hinton (1999), eq. 3 and 4.
    """
    sd = var.sqrt()
    z = mean / sd.clamp_min(torch.finfo(sd.dtype).tiny)  # no spread: z is 0 or infinite, and the limit is relu(mean)
    below = torch.special.ndtr(z)
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    first = mean * below + sd * density
    return first, (mean * mean + var) * below + mean * sd * density


def closed_moments(
    model: Model, distribution: Distribution, x: Tensor, y_loc: Tensor | None, y_scale: Tensor | None
) -> Moments | None:
    """Exact moments of Linear-ReLU-Linear under a factorised normal with normal noise; None for anything else.

    Hidden units are independent given x, because each has weights of its own, so the output's
    variance is a sum over units of Var[v relu(a)], v and a independent.
    """
    if not (isinstance(distribution, Independent) and type(distribution.base_dist) is Normal):
        return None
    # Not named_children(), which leaves out the second place of a layer; a constant weight or bias is a buffer.
    named = list(model.net._modules.items()) if isinstance(model.net, nn.Sequential) else []
    if any(layer is None or layer._buffers for _, layer in named):
        return None
    kinds = [type(layer) for _, layer in named]
    if kinds != [nn.Linear, nn.ReLU, nn.Linear] or not isinstance(model.likelihood, Gaussian) or x.dim() != 2:
        return None
    with torch.no_grad():
        # float64: the variance is a difference of squares.
        mean = model.parameters_of(distribution.mean.double())
        var = model.parameters_of(distribution.variance.double())
        (first_layer, _), _, (last_layer, _) = named
        inputs = x.double()
        a_mean = inputs @ mean[f"{first_layer}.weight"].T
        a_var = inputs.square() @ var[f"{first_layer}.weight"].T
        if f"{first_layer}.bias" in mean:
            a_mean, a_var = a_mean + mean[f"{first_layer}.bias"], a_var + var[f"{first_layer}.bias"]
        first, second = relu_moments(a_mean, a_var)
        w2, v2 = mean[f"{last_layer}.weight"], var[f"{last_layer}.weight"]
        f_mean = first @ w2.T
        f_var = second @ v2.T + (second - first.square()) @ w2.square().T
        if f"{last_layer}.bias" in mean:
            f_mean, f_var = f_mean + mean[f"{last_layer}.bias"], f_var + var[f"{last_layer}.bias"]
        noise = _mean_noise_var(model.likelihood, model, distribution, f_mean)
        scale = 1.0 if y_scale is None else y_scale.to(f_mean)
        shift = 0.0 if y_loc is None else y_loc.to(f_mean)
        return Moments(
            mean=(f_mean * scale + shift).to(model.dtype),
            epistemic=(f_var.clamp_min(0).sqrt() * scale).to(model.dtype),
            aleatoric=(noise.sqrt() * scale).to(model.dtype),
            mc_error=torch.zeros_like(f_mean, dtype=model.dtype),
        )


def noise_nodes(model: Model, distribution: Distribution, count: int = 16) -> Tensor:
    """Nodes of equal weight for the noise coordinates under their normal posterior, (S, M)."""
    u = distribution.mean[model.net_size :]
    if not len(u):
        return u.new_zeros(1, 0)
    sd = distribution.variance[model.net_size :].sqrt()
    middle = (torch.arange(count, dtype=u.dtype, device=u.device) + 0.5) / count
    nodes: Tensor = u + sd * torch.special.ndtri(middle).unsqueeze(-1)
    return nodes


def _mean_noise_var(likelihood: Gaussian, model: Model, distribution: Distribution, f: Tensor) -> Tensor:
    """E[scale^2] under the posterior of the noise, by 16 nodes of equal weight, shape of f."""
    u = noise_nodes(model, distribution)
    scale = likelihood.scale(f.expand(len(u), *f.shape), u)
    variance: Tensor = scale.square().expand(len(u), *f.shape).mean(0)
    return variance


def streamed_moments(
    model: Model,
    distribution: Distribution,
    x: Tensor,
    draws: int,
    generator: torch.Generator | None,
    y_loc: Tensor | None,
    y_scale: Tensor | None,
) -> Moments:
    """Moments by draws that are forgotten at once (Welford's update): memory is independent of `draws`."""
    net = Workspace(model)
    mean = squares = aleatoric = None
    with torch.no_grad():
        for s, w in enumerate(stream(distribution, draws, net.w, generator), start=1):
            u = w[model.net_size :].unsqueeze(0)
            one = model.likelihood.predictive(net(x).unsqueeze(0), u, y_loc, y_scale)
            value, noise = one.mean, one.aleatoric_var
            if mean is None or squares is None or aleatoric is None:
                mean, squares, aleatoric = value.clone(), torch.zeros_like(value), noise.clone()
                continue
            delta = value - mean
            mean += delta / s
            squares.addcmul_(delta, value - mean)
            aleatoric += (noise - aleatoric) / s
    assert mean is not None and squares is not None and aleatoric is not None
    error = (squares / max(draws - 1, 1) / draws).sqrt()
    return Moments(mean, (squares / draws).sqrt(), aleatoric.sqrt(), error)
