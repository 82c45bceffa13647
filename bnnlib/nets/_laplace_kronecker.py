"""The Kronecker factors of a network's Gauss-Newton matrix, measured by hooks on its layers in one pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from bnnlib.nets._fitting import Prepared
from bnnlib.nets._laplace_layers import LayerState
from bnnlib.nets.gauss_newton import Curvature
from bnnlib.nets.kronecker import Block, KroneckerNormal, block_of
from bnnlib.nets.last_layer import caught
from bnnlib.nets.model import Model

__all__ = ["KroneckerState"]

Layer = tuple[str, nn.Linear | nn.Conv2d, int, bool, bool]  # name, module, first entry of w, weight and bias unknown
_PAD = {"zeros": "constant"}  # what nn.functional.pad calls it; the other modes have one name


class KroneckerState(LayerState):
    """A Kronecker product for each Linear and Conv2d layer: what its weights share is kept, what layers share not."""

    def __init__(self, model: Model, prepared: Prepared, device: torch.device) -> None:
        super().__init__(model, prepared, device)
        self.layers = _layers(self.model)
        self.begin()
        self.seen_at = self.u
        self.blocks()  # refuses a prior of another form before any training

    def begin(self) -> None:
        modules = [m for _, m, _, _, _ in self.layers]
        self.a = [self.w.new_zeros(_columns(m, *has), _columns(m, *has)) for _, m, _, *has in self.layers]
        self.g = [self.w.new_zeros(m.weight.shape[0], m.weight.shape[0]) for m in modules]
        self.places = [0] * len(modules)

    def measure(self, x: Tensor) -> Tensor:
        modules = [m for _, m, _, _, _ in self.layers]
        named = {k: v.detach().requires_grad_() for k, v in self.model.parameters_of(self.full(self.w)).items()}
        with torch.enable_grad(), caught(modules) as calls:
            f: Tensor = torch.func.functional_call(self.model.net, named, (x,))
        _check_calls(self.layers, calls)
        for which, given, _ in calls:
            _, module, _, weight, bias = self.layers[which]
            a = _inputs(module, given.detach(), weight, bias)
            self.a[which] += a.T @ a
            self.places[which] += len(a)
        root = self.model.likelihood.fisher_sqrt(f.detach(), self.u)
        for k in range(root.shape[-1]):
            slopes = torch.autograd.grad(f, [out for _, _, out in calls], root[..., k], retain_graph=True)
            for (which, _, _), slope in zip(calls, slopes, strict=True):
                rows = slope.movedim(1, -1) if isinstance(self.layers[which][1], nn.Conv2d) else slope
                rows = rows.flatten(0, -2)
                self.g[which] += rows.T @ rows
        return f.detach()

    def blocks(self) -> list[Block]:
        """One block a layer at the present prior and noise."""
        made = []
        measured = zip(self.layers, self.a, self.g, self.places, strict=True)
        for (name, module, start, weight, bias), a, g, places in measured:
            precision = self.precision[start : start + len(a) * len(g)]
            mean_g = g * self.scale() / max(places, 1)
            try:
                made.append(block_of(a, mean_g, precision, start, weight and bias))
            except ValueError as error:
                raise ValueError(
                    f"{name or 'the net'} ({type(module).__name__}): {error}; give one standard deviation an input, "
                    'or take structure="diagonal"'
                ) from error
        return made

    def curvature(self) -> Curvature:
        normal = KroneckerNormal(self.w, self.blocks(), self.w.new_zeros(0))
        effective = self._by_tensor(1 - self.precision * normal.variance)
        log_det = self.w.new_tensor(sum(b.log_det for b in normal.blocks))
        return Curvature(log_det, effective, effective.sum().reshape(1, 1))

    def distribution(self) -> Distribution:
        rest = self.noise_precision(self.curvature()).rsqrt()
        return KroneckerNormal(self.full(self.w), self.blocks(), rest)


def _layers(model: Model) -> list[Layer]:
    found: list[Layer] = []
    at, starts = 0, {}
    for key, shape in model.shapes.items():
        starts[key] = at
        at += shape.numel()
    for name, module in model.net.named_modules():
        own = [f"{name}.{part}" if name else part for part in module._parameters]
        unknown = [key for key in own if key in starts]
        if not unknown:
            continue
        if not isinstance(module, nn.Linear | nn.Conv2d) or getattr(module, "groups", 1) > 1:
            groups = f" with {module.groups} groups" if isinstance(module, nn.Conv2d) else ""
            raise ValueError(
                f'structure="kronecker" knows Linear and Conv2d without groups; {name or "the net"} is a '
                f"{type(module).__name__}{groups}. Keep it constant (bayesian(net, likelihood, layers=...).model), or "
                'take structure="diagonal" or "last_layer"'
            )
        weight, bias = (any(key.rpartition(".")[2] == part for key in unknown) for part in ("weight", "bias"))
        found.append((name, module, min(starts[key] for key in unknown), weight, bias))
    return found


def _check_calls(layers: list[Layer], calls: list[tuple[int, Tensor, Tensor]]) -> None:
    for i, (name, module, *_) in enumerate(layers):
        times = sum(which == i for which, _, _ in calls)
        if times != 1:
            raise ValueError(
                f'{name or "the net"} ({type(module).__name__}) ran {times} times in one pass; structure="kronecker" '
                'needs each layer once. Take "diagonal" or "last_layer"'
            )


def _columns(module: nn.Linear | nn.Conv2d, weight: bool, bias: bool) -> int:
    return weight * module.weight.shape[1:].numel() + bias


def _inputs(module: nn.Linear | nn.Conv2d, given: Tensor, weight: bool, bias: bool) -> Tensor:
    """What each output of the layer is a sum over: rows (points times places, columns), a one for the bias."""
    if isinstance(module, nn.Conv2d):
        padded = nn.functional.pad(
            given, module._reversed_padding_repeated_twice, _PAD.get(module.padding_mode, module.padding_mode)
        )
        patches = nn.functional.unfold(padded, module.kernel_size, module.dilation, 0, module.stride)
        rows = patches.mT.flatten(0, 1)
    else:
        rows = given.reshape(-1, given.shape[-1])
    parts = ([rows] if weight else []) + ([rows.new_ones(len(rows), 1)] if bias else [])
    return torch.cat(parts, -1)
