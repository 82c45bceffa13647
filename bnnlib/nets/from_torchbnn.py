"""Read a network that was built and trained with torchbnn layers as a `Model` and a `Posterior`."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.distributions import Independent, Normal
from torch.nn.utils import skip_init

from bnnlib.nets.batchnorm_policy import replaced
from bnnlib.nets.likelihoods import Likelihood
from bnnlib.nets.model import Model
from bnnlib.nets.posterior import Posterior

__all__ = ["from_torchbnn"]


def from_torchbnn(model: nn.Module, likelihood: Likelihood) -> Posterior:
    """Posterior of a trained torchbnn network: the same means, the same scales, the same prior.

    `BayesLinear` and `BayesConv2d` become `nn.Linear` and `nn.Conv2d` whose entries of w are
    N(weight_mu, exp(weight_log_sigma)^2), the prior N(prior_mu, prior_sigma^2). Ordinary layers in
    between keep their trained values as constants. The noise is the likelihood's: torchbnn has none,
    so it must be a known one.

    Parameters
    ----------
    model
        A network with torchbnn layers; it is not changed.
    likelihood
        What the observations' noise is taken to be, for example `Gaussian(scale=...)`.

    Raises
    ------
    ValueError
        No torchbnn layer inside, a layer that has no counterpart, one layer in two places, or a
        likelihood with unknown noise.
    """
    import torchbnn

    if likelihood.unknown is not None:
        raise ValueError(f"torchbnn learns no noise; give {type(likelihood).__name__} a number, not a prior")
    loc: dict[str, torch.Tensor] = {}
    scale: dict[str, torch.Tensor] = {}
    prior: dict[str, float | torch.distributions.Distribution] = {}
    net, seen = copy.deepcopy(model), dict[int, str]()
    for name, module in list(net.named_modules(remove_duplicate=False)):
        if isinstance(module, torchbnn.BayesLinear | torchbnn.BayesConv2d):
            if id(module) in seen:
                raise ValueError(f"{seen[id(module)]} and {name} are one shared layer; give each place its own")
            seen[id(module)] = name
            plain = _plain(module, name)
            for part in ("weight", "bias"):
                mu = getattr(module, f"{part}_mu")
                if mu is None:
                    continue
                key = f"{name}.{part}" if name else part
                loc[key], scale[key] = mu.detach(), getattr(module, f"{part}_log_sigma").detach().exp()
                prior[key] = Normal(*torch.tensor([module.prior_mu, module.prior_sigma], dtype=torch.float64))
                with torch.no_grad():
                    getattr(plain, part).copy_(mu)
            net = replaced(net, name, plain)
        elif type(module).__module__.startswith("torchbnn"):
            raise ValueError(f"{name} is a {type(module).__name__}, which has no counterpart here")
        else:
            _freeze(module)
    if not loc:
        raise ValueError(
            f"{type(model).__name__} has no torchbnn layer; wrap an ordinary network with Model(net, likelihood)"
        )
    read = Model(net, likelihood, prior)
    flat = [torch.cat([part[k].reshape(-1) for k in read.shapes]) for part in (loc, scale)]
    return Posterior(model=read, distribution=Independent(Normal(flat[0], flat[1]), 1), method="torchbnn")


def _plain(module: Any, name: str) -> nn.Module:
    """The layer without distributions. Its parameters are not set, as that would draw from the global seed."""
    mu = module.weight_mu
    like = {"bias": module.bias_mu is not None, "device": mu.device, "dtype": mu.dtype}
    if hasattr(module, "in_features"):
        linear: nn.Module = skip_init(nn.Linear, module.in_features, module.out_features, **like)
        return linear
    if module.padding_mode == "circular":
        raise ValueError(f"{name} pads circularly, by half of what nn.Conv2d pads: it has no counterpart here")
    conv: nn.Module = skip_init(
        nn.Conv2d,
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        stride=module.stride,
        padding=module.padding,
        dilation=module.dilation,
        groups=module.groups,
        **like,  # whatever else padding_mode says, torchbnn pads with zeros
    )
    return conv


def _freeze(module: nn.Module) -> None:
    """Turn a module's own parameters into buffers: trained constants, not unknowns."""
    for key, value in list(module.named_parameters(recurse=False)):
        delattr(module, key)
        module.register_buffer(key, value.detach())
