"""From an ordinary network to a Bayesian one without loss, and back to an ordinary one that says what it is."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.func import functional_call

from bnnlib.nets.empirical import Empirical
from bnnlib.nets.likelihoods import HeteroscedasticGaussian, Likelihood
from bnnlib.nets.mixture import MixturePosterior, shares
from bnnlib.nets.model import Model
from bnnlib.nets.posterior import Posterior
from bnnlib.nets.priors import PriorSpec

__all__ = ["bayesian", "deterministic", "fix"]


def bayesian(
    net: nn.Module,
    likelihood: Likelihood,
    prior: PriorSpec = None,
    *,
    layers: str | Iterable[str] | None = None,
    scale: float | Mapping[str, float] = 0.0,
    batchnorm: str | None = None,
) -> Posterior:
    """A trained network as a posterior: q(w) = N(trained w, scale^2) over all its parameters or over some.

    It works on any module, as no layer is exchanged: `.model` is the network with the chosen parameters unknown
    and all others constant, under the names they had. Give `.model` to any method of inference.

    Parameters
    ----------
    net
        A trained network; it is not changed.
    layers
        Whose parameters are unknown. None: all. "last": those of the last module that has any. Or names and patterns
        of modules or parameters: ``"conv1"``, ``"encoder.*"``, ``"*.bias"``.
    scale
        Standard deviation of q for every entry, or a dict from names and patterns of parameters to standard
        deviations, which must cover all that is unknown. 0: the network itself, whose outputs are the trained one's.
    prior, batchnorm
        As for `Model`; a prior names parameters that are unknown.

    Raises
    ------
    ValueError
        A module that cannot be converted, by name; a pattern that matches nothing.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    >>> bayesian(net, Categorical(), layers="last").model.shapes
    {'2.weight': torch.Size([3, 8]), '2.bias': torch.Size([3])}
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be an nn.Module, got {type(net).__name__}")
    _check_convertible(net)
    unknown = _chosen(net, layers)
    model = Model(_frozen(net, unknown), likelihood, prior, batchnorm=batchnorm)
    return Posterior(model=model, distribution=_around(model, scale), method="bayesian")


def deterministic(posterior: Posterior) -> nn.Module:
    """The network at the mean of w, as an ordinary module: inputs and outputs in the original units.

    The output at the mean is not the mean of the outputs: that is `posterior.predict(x).mean`.

    Raises
    ------
    ValueError
        The posterior is a set of several values: between the members of an ensemble there is no network.
    """
    distribution, count = posterior.distribution, 1
    if isinstance(distribution, Empirical):
        count = len(distribution.values)
    elif isinstance(posterior, MixturePosterior):
        count = len(posterior.members)
    if count > 1:
        raise ValueError(
            f"the mean of {count} weight vectors found by {posterior.method} is not a network that was fitted; "
            "take one with fix(posterior, generator), or average predictions with posterior.predict"
        )
    return _in_units(posterior, _at(posterior.model, posterior.mean))


def fix(posterior: Posterior, generator: torch.Generator | None = None) -> nn.Module:
    """The network at one draw of w, as an ordinary module: inputs and outputs in the original units.

    Called twice it gives the same answer twice, and that of `posterior.functions(x, 1, generator)`. Of a linearised
    posterior it is the tangent at the mean, f(x; m) + J (w - m), as that is what its band is made of.
    """
    if isinstance(posterior, MixturePosterior):
        return fix(posterior.members[shares(1, len(posterior.members), generator).index(1)], generator)
    w = posterior.sample(1, generator)[0]
    if not posterior.linearized:
        return _in_units(posterior, _at(posterior.model, w))
    return _in_units(posterior, _Tangent(posterior.model, posterior.mean, w))


class _InUnits(nn.Module):
    """Standardise the inputs, run the network, put its outputs into the units of y."""

    def __init__(self, net: nn.Module, arrays: Mapping[str, Tensor | None], only_mean: bool) -> None:
        super().__init__()
        self.net, self.only_mean = net, only_mean
        for name, value in arrays.items():
            self.register_buffer(name, value)

    x_loc: Tensor
    x_scale: Tensor
    y_loc: Tensor | None
    y_scale: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        f: Tensor = self.net((x - self.x_loc) / self.x_scale)
        if self.y_loc is None or self.y_scale is None:
            return f
        if self.only_mean:  # mean and raw scale: only the mean has the units of y
            f = f.chunk(2, -1)[0]
        return f * self.y_scale + self.y_loc


class _Tangent(nn.Module):
    """f(x; m) + J (w - m), in float64 as the band is."""

    def __init__(self, model: Model, mean: Tensor, w: Tensor) -> None:
        super().__init__()
        self.net = _at(model, mean).double()
        at = model.parameters_of(mean.double())
        self.names = list(at)
        for i, (end, start) in enumerate(zip(model.parameters_of(w.double()).values(), at.values(), strict=True)):
            self.register_buffer(f"mean{i}", start.clone())
            self.register_buffer(f"move{i}", end - start)

    def forward(self, x: Tensor) -> Tensor:
        mean, move = (
            {k: self.get_buffer(f"{kind}{i}").detach() for i, k in enumerate(self.names)} for kind in ("mean", "move")
        )
        inputs = x.double() if x.is_floating_point() else x
        # Two backward passes make a forward derivative: J v is the slope of v^T (J^T u) in u, whatever u is.
        with torch.enable_grad():
            at = {k: v.requires_grad_() for k, v in mean.items()}
            f: Tensor = functional_call(self.net, at, (inputs,))
            u = torch.zeros_like(f, requires_grad=True)
            back = torch.autograd.grad(f, list(at.values()), u, create_graph=True, materialize_grads=True)
            (slope,) = torch.autograd.grad(back, u, list(move.values()))
        out = f.detach() + slope
        return out.to(x.dtype) if x.is_floating_point() else out


def _at(model: Model, w: Tensor) -> nn.Module:
    """A copy of the model's network with its unknown parameters at w; nothing in it asks for a gradient."""
    net = copy.deepcopy(model.net).requires_grad_(False)
    for name, value in model.parameters_of(w.to(model.dtype)).items():
        net.get_parameter(name).copy_(value)
    return net


def _in_units(posterior: Posterior, net: nn.Module) -> nn.Module:
    if posterior.scaling is None:
        return net
    arrays = {k: None if v is None else v.to(posterior.model.device) for k, v in vars(posterior.scaling).items()}
    return _InUnits(net, arrays, isinstance(posterior.model.likelihood, HeteroscedasticGaussian))


def _around(model: Model, scale: float | Mapping[str, float]) -> Distribution:
    w = model.start()
    rules = dict(scale) if isinstance(scale, Mapping) else {"*": scale}
    for pattern, value in rules.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise ValueError(f"scale is a standard deviation, not negative and finite, got {value!r} for {pattern!r}")
        if not any(fnmatchcase(name, pattern) for name in model.shapes):
            raise ValueError(f"scale: {pattern!r} matches nothing unknown; unknown are {', '.join(model.shapes)}")
    if not any(rules.values()):
        return Empirical(w.unsqueeze(0))
    parts = []
    for name, shape in model.shapes.items():
        own = next((v for pattern, v in rules.items() if fnmatchcase(name, pattern)), None)
        if not own:
            said = "no scale" if own is None else "scale 0"
            raise ValueError(
                f"{name} is unknown but has {said}; name what shall be unknown by layers=, or give a scale"
            )
        parts.append(w.new_full((shape.numel(),), float(own)))
    if model.likelihood.unknown is not None:
        raise ValueError(
            f"a network says nothing about the unknown noise of {model.likelihood}; with a scale, give a known noise. "
            "Or leave scale at 0 and let a method of inference find both"
        )
    return Independent(Normal(w, torch.cat(parts)), 1)


def _chosen(net: nn.Module, layers: str | Iterable[str] | None) -> set[str]:
    """Names of the parameters that are to be unknown."""
    names = [name for name, _ in net.named_parameters(remove_duplicate=False)]
    if layers is None:
        return set(names)
    if layers == "last" and not any(k == "last" or k.startswith("last.") for k in names):
        layers = [[name for name, m in net.named_modules() if m._parameters][-1]]
    patterns = [layers] if isinstance(layers, str) else list(layers)
    if patterns == [""]:
        return set(names)
    found: set[str] = set()
    for pattern in patterns:
        hits = {k for k in names if any(fnmatchcase(part, pattern) for part in _prefixes(k))}
        if not hits:
            modules = sorted({k.rpartition(".")[0] for k in names} - {""})
            raise ValueError(f"layers: {pattern!r} matches nothing; layers with parameters are {', '.join(modules)}")
        found |= hits
    if not found:
        raise ValueError("layers is empty: nothing would be unknown")
    return found


def _prefixes(name: str) -> list[str]:
    """A parameter's own name and those of the modules around it."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts) + 1)]


def _frozen(net: nn.Module, unknown: set[str]) -> nn.Module:
    """A copy in which all parameters but the unknown ones are buffers under the same names."""
    places: dict[int, list[str]] = {}
    for name, p in net.named_parameters(remove_duplicate=False):
        places.setdefault(id(p), []).append(name)
    for names in places.values():
        if unknown & set(names) and not set(names) <= unknown:
            raise ValueError(f"{' and '.join(names)} are one shared parameter: it is unknown in all places or in none")
    net = copy.deepcopy(net)
    for name, module in net.named_modules(remove_duplicate=False):
        for key, value in list(module._parameters.items()):
            if value is not None and (f"{name}.{key}" if name else key) not in unknown:
                constant = value.detach()
                delattr(module, key)
                module.register_buffer(key, constant)
    return net


def _check_convertible(net: nn.Module) -> None:
    for name, module in net.named_modules():
        kind = f"{name or 'the net'} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{kind} is compiled to TorchScript, whose parameters cannot be exchanged; give its source"
            )
        if type(module).__module__.startswith("torchbnn"):
            raise ValueError(f"{kind} already has distributions; read it with from_torchbnn")
        if any(isinstance(p, nn.UninitializedParameter) for p in module._parameters.values()):
            raise ValueError(f"{kind} has no parameters yet; run the network once on some data first")
        if "quantized" in type(module).__module__.split("."):
            raise ValueError(f"{kind} is quantised: whole numbers have no density; give the network before that")
        own = {id(p) for p in module.parameters()}
        for key, value in vars(module).items():
            if key.startswith("_") and not isinstance(module, nn.RNNBase) and key in vars(nn.Module()):
                continue
            for item in _inside(value):
                if isinstance(item, Tensor) and item.requires_grad and not isinstance(item, nn.Parameter):
                    raise ValueError(
                        f"{kind}.{key} is computed from other parameters (weight norm, pruning); make it "
                        "permanent first, for example with torch.nn.utils.remove_weight_norm or prune.remove"
                    )
                hidden = list(item.parameters()) if isinstance(item, nn.Module) else [item]
                hidden = [p for p in hidden if isinstance(p, nn.Parameter)]
                if any(id(p) not in own for p in hidden):
                    raise ValueError(
                        f"{kind}.{key} holds parameters in a plain {type(value).__name__}, which torch does not see; "
                        "use nn.ModuleList, nn.ModuleDict or nn.ParameterList"
                    )


def _inside(value: object) -> list[Tensor | nn.Module]:
    """Tensors and modules in an attribute, or in a plain list, tuple or dict."""
    items = [value]
    if type(value) in (list, tuple):
        items = list(value)  # type: ignore[call-overload]
    elif type(value) is dict:
        items = list(value.values())
    return [item for item in items if isinstance(item, Tensor | nn.Module)]
