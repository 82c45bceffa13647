"""Laplace's approximation for larger nets: Adam to the mode, and structures of the curvature that one pass can measure.

No Jacobian of all points is ever held: the data pass by in chunks.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from bnnlib.nets._fitting import Prepared, batches
from bnnlib.nets._laplace_full import FullState
from bnnlib.nets._laplace_state import State, double
from bnnlib.nets.gauss_newton import Curvature, jacobian
from bnnlib.nets.last_layer import PartialNormal, last_layer_of
from bnnlib.nets.model import Model
from bnnlib.nets.workspace import Workspace

__all__ = ["DiagonalState", "LastLayerState", "LayerState"]

_ROUNDS = 20  # times that prior and noise move while w is trained
_CHUNK = 2**24  # entries of a Jacobian that are held at once: 128 MiB in float64
_POINTS = 256  # points in a chunk of data

Passes = Callable[[], Iterator[tuple[Tensor, Tensor]]]


class LayerState(State):
    """A fit in progress: Adam on the log joint at the present prior and noise, a look at all data, the evidence."""

    def __init__(self, model: Model, prepared: Prepared, device: torch.device) -> None:
        self.own = model
        super().__init__(model.to(dtype=torch.float64), model.start().double())
        self.prepared, self.device = prepared, device
        if model.likelihood.unknown_size > 1 and not isinstance(self, LastLayerState):
            raise ValueError(
                'one noise an output needs the leverage of each: take structure="full" or "last_layer", or one noise'
            )
        self.y = torch.cat([double(y) for _, y in self.chunks()])
        self.early_noise()

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All points once, in float64."""
        data = self.prepared
        if data.loader is None:
            pairs: Iterable[tuple[Tensor, Tensor]] = zip(data.x.split(_POINTS), data.y.split(_POINTS), strict=True)
        else:
            visited = torch.utils.data.Subset(data.loader.dataset, data.points)
            pairs = torch.utils.data.DataLoader(visited, batch_size=_POINTS, collate_fn=data.loader.collate_fn)
        for x, y in pairs:
            yield double(x.to(self.device)), double(y.to(self.device))

    def fit(self, bar: Iterable[int], count: int, burn_in: int, lr: float, tolerance: float, evidence: bool) -> None:
        """Train by Adam; from `burn_in` on, look at the curvature now and then and move prior and noise."""
        net = Workspace(self.own, gradient=True)
        size = len(self.w)
        weights, slope = net.w[:size], net.grad[:size]
        weights.grad = slope
        optimizer = torch.optim.Adam([weights], lr=lr, fused=True)
        stream = batches(self.prepared, self.device)
        every = max(1, -(-(count - burn_in) // _ROUNDS))
        centre = self.prior_loc.to(net.w)
        pull, u = self.precision.to(net.w), self.u.to(net.w)
        try:
            for step in bar:
                if step >= burn_in and (step - burn_in) % every == 0:
                    self.w = weights.double()
                    self.round(evidence)
                    weights.copy_(self.w)
                    pull, u = self.precision.to(net.w), self.u.to(net.w)
                x, y = next(stream)
                net.grad.zero_()
                nll = self.own.likelihood.log_likelihood(net(x), y, u) * (-self.prepared.n / len(x))
                nll.backward()
                slope.add_(pull * (weights - centre))
                if (step + 1) % 100 == 0 or step + 1 == count:
                    self._check(nll, weights, step, lr)
                if step >= burn_in:
                    optimizer.param_groups[0]["lr"] = lr * (count - step) / (count - burn_in + 1)
                optimizer.step()
                self.done = step + 1
        finally:
            self.w = weights.double() if count else self.w
        if count:
            self.finish(evidence, tolerance)
        else:
            self.settle(evidence, tolerance)

    def _check(self, nll: Tensor, w: Tensor, step: int, lr: float) -> None:
        if not bool(torch.isfinite(nll) & torch.isfinite(w).all()):
            raise FloatingPointError(
                f"the loss is {float(nll.detach())} at step {step}; try a smaller lr (now {lr}) or standardised data "
                "(bnnlib.data.Standardized)"
            )

    def _record(self, found: float) -> None:
        self.history.append((found, self.noise_sd(), self.damping))

    def round(self, evidence: bool) -> None:
        """Look at all data; move prior and noise once."""
        self.look()
        self._record(self.update(prior=evidence))

    def settle(self, evidence: bool, tolerance: float) -> None:
        """Without training: prior and noise to the largest evidence at the weights as they are."""
        self.look()
        last = math.inf
        for _ in range(200):
            found = self.update(prior=evidence)
            self._record(found)
            if abs(found - last) < 0.01 * tolerance or not (evidence or len(self.u)):
                return
            last = found

    def finish(self, evidence: bool, tolerance: float) -> None:
        """The curvature at the end of the training."""
        self.look()

    def stop(self) -> None:
        self.look()

    def look(self) -> None:
        """One pass over the data: outputs, energy and the structure at the present w and noise."""
        seen_at, outputs = self.u.clone(), []
        self.begin()
        for x, _ in self.chunks():
            outputs.append(self.measure(x).detach())
        self.f, self.seen_at = torch.cat(outputs), seen_at
        self.energy = self.energy_of(self.f, self.w).detach()

    def begin(self) -> None:
        """Forget the last pass."""
        raise NotImplementedError

    def measure(self, x: Tensor) -> Tensor:
        """Add a chunk of points to the structure; return the outputs there."""
        raise NotImplementedError

    def scale(self) -> Tensor:
        """What one noise for all does to the curvature since it was measured: it goes as 1 / scale^2."""
        if not len(self.u):
            return self.w.new_ones(())
        log_scale = self.model.likelihood.log_scale
        return (2 * (log_scale(self.seen_at) - log_scale(self.u))).exp().squeeze()

    def distribution(self) -> Distribution:
        """The normal over w."""
        raise NotImplementedError

    def _by_tensor(self, determined: Tensor) -> Tensor:
        return torch.zeros_like(self.multiplier).index_add(0, self.tensor_of, determined).clamp_min(1e-9)


class DiagonalState(LayerState):
    """Only the diagonal of the Gauss-Newton matrix: each weight as if the others were known."""

    def begin(self) -> None:
        self.diagonal = torch.zeros_like(self.w)
        self.step = 0

    def measure(self, x: Tensor) -> Tensor:
        w, outputs = self.full(self.w), []
        if not self.step:
            with torch.no_grad():
                self.step = max(1, _CHUNK // (len(w) * self.model(w, x[:1]).shape[-1]))
        for part in x.split(self.step):
            with torch.no_grad():
                f = self.model(w, part)
                root = self.model.likelihood.fisher_sqrt(f, self.u)
            self.diagonal += (root.mT @ jacobian(self.model, w, part)).square().sum((0, 1))
            outputs.append(f)
        return torch.cat(outputs)

    def curvature(self) -> Curvature:
        inside = self.diagonal * self.scale() / self.precision
        effective = self._by_tensor(inside / (1 + inside))
        return Curvature(inside.log1p().sum(), effective, effective.sum().reshape(1, 1))

    def distribution(self) -> Distribution:
        precision = torch.cat([self.precision + self.diagonal * self.scale(), self.noise_precision(self.curvature())])
        return Independent(Normal(self.full(self.w), precision.rsqrt()), 1)


class LastLayerState(LayerState):
    """The features stay as trained; on them the last layer is a linear model, its Gauss-Newton matrix held whole."""

    def __init__(self, model: Model, prepared: Prepared, device: torch.device) -> None:
        super().__init__(model, prepared, device)
        first, _ = next(self.chunks())
        self.last = last_layer_of(self.model, first[:2])

    def look(self) -> None:
        seen = [self.last(self.full(self.w), x) for x, _ in self.chunks()]
        head = copy.deepcopy(self.last.linear)
        parts = {k.rpartition(".")[2]: k for k in self.model.shapes if k.rpartition(".")[0] == self.last.name}
        prior = {part: self.model.prior.distributions[k] for part, k in parts.items()}
        with torch.no_grad():
            named = self.model.parameters_of(self.full(self.w))
            for part, k in parts.items():
                getattr(head, part).copy_(named[k])
        inner = Model(head, self.model.likelihood, prior)
        self.inner = FullState(inner, torch.cat([features for features, _ in seen]), self.y)
        self.inner.u = self.u
        names = list(self.model.shapes)
        self.mine = torch.tensor([names.index(parts[k]) for k in inner.shapes], device=self.w.device)
        self.inner.multiplier = self.multiplier[self.mine]
        self.inner.linearize()
        self.f, self.energy = self.inner.f, self.energy_of(self.inner.f, self.w)

    def take(self) -> None:
        """Weights, noise and prior of the last layer as they were found on the features."""
        self.w[self.last.entries], self.u, self.f = self.inner.w, self.inner.u, self.inner.f
        self.multiplier[self.mine] = self.inner.multiplier
        self.energy = self.energy_of(self.f, self.w)

    def curvature(self) -> Curvature:
        inner = self.inner.curvature()
        effective = torch.zeros_like(self.multiplier).index_put((self.mine,), inner.effective)
        return Curvature(inner.log_det, effective, inner.leverage)

    def round(self, evidence: bool) -> None:
        self.look()
        found = self.inner.update(prior=evidence)
        self.take()
        self._record(found)

    def settle(self, evidence: bool, tolerance: float) -> None:
        self.finish(evidence, tolerance)

    def finish(self, evidence: bool, tolerance: float) -> None:
        """Damped Gauss-Newton steps to the mode of the last layer, its prior and noise to the largest evidence."""
        self.look()
        try:
            self.inner.fit(range(300), 300, 5, 0.0, tolerance, evidence)
        finally:
            self.take()
            self.history += self.inner.history

    def log_evidence(self, curvature: Curvature) -> float:
        """Of the last layer on its features, which are taken as given."""
        return self.inner.log_evidence(curvature)

    def distribution(self) -> Distribution:
        normal, size = self.inner.distribution(dense=True), len(self.w)
        varying = torch.cat([torch.arange(size)[self.last.entries], torch.arange(size, size + len(self.u))])
        assert hasattr(normal, "scale_tril")
        return PartialNormal(self.full(self.w), varying.to(self.w.device), normal.scale_tril)
