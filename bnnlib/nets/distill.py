"""The Bayesian teacher: one ordinary network that gives a posterior's prediction in one pass.

The teacher's prediction at x has a mean and a spread, and the spread has two parts. The student learns all three, by
the KL divergence of what they are moments of:

    regression   KL(N(m, t^2) || N(m', t'^2))  +  KL(N(0, e^2) || N(0, e'^2)),      t^2 = e^2 + a^2
    classes      KL(p || p')                   +  KL(N(0, r) || N(0, r')),          r = v / sum_c p_c (1 - p_c)

with m the mean, e the epistemic and a the aleatoric standard deviation, p the class probabilities, v = sum_c Var[p_c],
and r the epistemic share of all their variance, between 0 and 1; a prime marks the student. For classes the student's
answer is a Dirichlet distribution with mean p' and precision A', and r' = 1 / (A' + 1). Zero means equal moments.

Why the share r and not v: a Dirichlet has v' = sum_c p'_c (1 - p'_c) / (A' + 1). A student a little surer of the class
than its teacher cannot reach v at any precision; with v in the loss its A' runs to zero, where no gradient calls it
back. The share can always be reached, and asks the same when p' = p.
The denominator is summed without the largest p: as 1 - sum p^2 it is rounding where the teacher is nearly certain, and
a few such points would pull every A' down.

Sources: Korattikara et al. (2015) for the teacher, Malinin, Mlodozeniec and Gales (2020) for keeping both kinds of
uncertainty.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Dirichlet, Gamma, Normal
from torch.nn.functional import softplus
from torch.utils.data import DataLoader

from bnnlib._random import draw, place
from bnnlib._settings import check_part, check_positive, check_whole
from bnnlib.data import Scaling
from bnnlib.nets._training import descend
from bnnlib.nets.likelihoods import Bernoulli as BernoulliLikelihood
from bnnlib.nets.likelihoods import Categorical as CategoricalLikelihood
from bnnlib.nets.posterior import Posterior
from bnnlib.predictive import Predictive

__all__ = ["Distilled", "distill"]

_FLOOR = 1e-4  # smallest standard deviation, in standardised units or of a share: a teacher may be sure of something


@dataclass(frozen=True, repr=False)
class Distilled:
    """A student with its teacher's units.

    Attributes
    ----------
    net
        An ordinary network in evaluation mode. Of a regression it gives mean, raw epistemic and raw aleatoric spread
        for each output, (N, 3 K), in standardised units; of classes C logits and a log precision, (N, C + 1).
    classes
        Whether it predicts classes.
    history
        Per step: `loss`, in nats a point.
    scaling
        How the teacher's inputs and targets were standardised, or None.
    """

    net: nn.Module
    classes: bool
    history: Mapping[str, Tensor] = field(default_factory=dict)
    scaling: Scaling | None = None

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.net.parameters())
        return f"Distilled({size} parameters, {'classes' if self.classes else 'regression'})"

    def predict(self, x: Tensor, *, draws: int = 200, generator: torch.Generator | None = None) -> Predictive:
        """Predictive at inputs in the original units, by one pass of the network.

        A regression's is one normal, in closed form. Classes are `draws` draws from the Dirichlet, which cost no pass;
        `dirichlet` has the same without them.
        """
        if self.classes:
            return Predictive(Categorical(logits=_log_draws(self.dirichlet(x), draws, generator), validate_args=False))
        with torch.no_grad():
            mean, epistemic, aleatoric = _moments(self.net(self._inputs(x)))
        scaling = self.scaling
        if scaling is not None and scaling.y_loc is not None and scaling.y_scale is not None:
            size = scaling.y_scale.to(mean)
            mean = mean * size + scaling.y_loc.to(mean)
            epistemic, aleatoric = epistemic * size, aleatoric * size
        total = (epistemic**2 + aleatoric**2).sqrt()
        return Predictive(
            Normal(mean.unsqueeze(0), total.unsqueeze(0), validate_args=False),
            function_var=epistemic.square().unsqueeze(0),
            noise_var=aleatoric.square().unsqueeze(0),
        )

    def dirichlet(self, x: Tensor) -> Dirichlet:
        """Distribution over class probabilities at each input, batch shape (N,), event shape (C,)."""
        if not self.classes:
            raise TypeError("dirichlet is for classes; this is a regression: ask for predict")
        with torch.no_grad():
            f = self.net(self._inputs(x))
            probs = f[..., :-1].softmax(-1).clamp_min(1e-12)
            return Dirichlet(probs * f[..., -1:].exp(), validate_args=False)

    def lost(
        self, teacher: Posterior, x: Tensor, *, draws: int = 1000, generator: torch.Generator | None = None
    ) -> dict[str, float]:
        """What the student lost at x, in nats a point: `prediction` and `epistemic`, the loss's two terms."""
        target = _targets(teacher, self._inputs(x), draws, generator)
        with torch.no_grad():
            prediction, epistemic = _divergences(self.net(self._inputs(x)), target, self.classes)
        return {"prediction": prediction.mean().item(), "epistemic": epistemic.mean().item()}

    def _inputs(self, x: Tensor) -> Tensor:
        return x if self.scaling is None else self.scaling.x(x)


def distill(
    posterior: Posterior,
    x: Tensor | DataLoader[Any],
    student: nn.Module,
    *,
    steps: int = 3000,
    lr: float = 0.01,
    batch: int = 256,
    draws: int = 200,
    decay: float = 0.5,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> Distilled:
    """Teach an ordinary network what a posterior predicts.

    The student learns where it is taught: x should hold every kind of input that it will be asked about, also such
    as the teacher is unsure of. Targets are not needed.

    Parameters
    ----------
    posterior
        The teacher.
    x
        Inputs in the original units, (N, ...), or a loader that gives them or pairs (x, y); read once.
    student
        Maps (n, ...) to (n, 3 K) for K real outputs, to (n, C + 1) for C classes. A copy is trained.
    steps, lr, decay
        Adam's steps, their size, and the last part of them over which it falls to zero.
    batch
        Inputs a step, drawn without order.
    draws
        Draws of w that the teacher's prediction is made of.

    Returns
    -------
    Distilled

    Raises
    ------
    TypeError, ValueError
        Before training: an x that is no tensor or loader, a student with another number of outputs, a teacher of
        yes-or-no answers.
    FloatingPointError
        The loss became NaN or infinite; the message names the step.
    """
    check_whole(steps=steps, batch=batch, draws=draws)
    check_positive(lr=lr)
    check_part(decay=decay)
    inputs = posterior._inputs(_gather(x))
    if isinstance(posterior.model.likelihood, BernoulliLikelihood):
        raise TypeError("a student of yes-or-no answers is not there yet; use Categorical with two classes")
    classes = isinstance(posterior.model.likelihood, CategoricalLikelihood)
    net = copy.deepcopy(student).train().requires_grad_()
    target = _targets(posterior, inputs, draws, generator)
    _check_outputs(net, inputs, len(target[0][0]), classes)
    w = nn.utils.parameters_to_vector(net.parameters()).detach().clone()
    w.grad = torch.zeros_like(w)
    _share(net, w)

    def gradient() -> Tensor:
        assert w.grad is not None
        w.grad.zero_()
        size, at = (min(batch, len(inputs)),), place(generator, inputs)
        pick = torch.randint(len(inputs), size, generator=generator, device=at).to(inputs.device)
        rows = pick if batch < len(inputs) else slice(None)
        parts = _divergences(net(inputs[rows]), tuple(t[rows] for t in target), classes)
        loss = torch.stack([part.mean() for part in parts]).sum()
        loss.backward()
        return loss.detach()

    record, _ = descend("distill", w, gradient, steps=steps, lr=lr, decay=decay, progress=progress)
    return Distilled(net.eval().requires_grad_(False), classes, {"loss": record}, posterior.scaling)


def _share(net: nn.Module, w: Tensor) -> None:
    """Make the parameters views of one flat vector, and their gradients views of its gradient."""
    assert w.grad is not None
    start = 0
    for p in net.parameters():
        p.data = w[start : start + p.numel()].view_as(p)
        p.grad = w.grad[start : start + p.numel()].view_as(p)
        start += p.numel()


def _log_draws(dirichlet: Dirichlet, n: int, generator: torch.Generator | None) -> Tensor:
    """Logarithms of n draws, up to a constant each, by G(a) = G(a + 1) U^(1/a).

    For a small a the gamma variable itself is zero in any float, and torch then gives every class the same share.
    """
    a = dirichlet.concentration.double()
    gamma = draw(Gamma(a + 1, torch.ones_like(a), validate_args=False), n, generator)
    u = torch.rand(gamma.shape, generator=generator, dtype=a.dtype, device=place(generator, a)).to(a.device)
    return (gamma.log() + torch.log1p(-u) / a).log_softmax(-1).to(dirichlet.concentration)


def _gather(x: Tensor | DataLoader[Any]) -> Tensor:
    if isinstance(x, Tensor):
        return x
    if not isinstance(x, DataLoader):
        raise TypeError(f"x must be a tensor of inputs or a DataLoader, got {type(x).__name__}")
    parts = [part[0] if isinstance(part, tuple | list) else part for part in x]
    if not parts:
        raise ValueError("the loader is empty: there is nothing to learn from")
    return torch.cat(parts)


def _targets(teacher: Posterior, x: Tensor, draws: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
    """Moments of the teacher at standardised inputs: (mean, epistemic, aleatoric), or (probabilities, share)."""
    plain = replace(teacher, scaling=None)
    if isinstance(teacher.model.likelihood, CategoricalLikelihood):
        predictive = plain.predict(x, draws=draws, generator=generator)
        share = predictive.epistemic_var.sum(-1) / _doubt(predictive.probs)
        return predictive.probs, share.clamp(_FLOOR**2, 1)
    m = plain.moments(x, draws=draws, generator=generator)
    return m.mean, m.epistemic.clamp_min(_FLOOR), m.aleatoric.clamp_min(_FLOOR)


def _doubt(p: Tensor) -> Tensor:
    """sum_c p_c (1 - p_c), from all but the largest: one minus a p that is nearly one would be rounding."""
    rest = p.sort(-1).values[..., :-1]
    s = rest.sum(-1)
    return (s * (2 - s) - rest.square().sum(-1)).clamp_min(torch.finfo(p.dtype).tiny)


def _moments(f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, epistemic, aleatoric = f.chunk(3, -1)
    return mean, softplus(epistemic) + _FLOOR, softplus(aleatoric) + _FLOOR


def _divergences(f: Tensor, target: tuple[Tensor, ...], classes: bool) -> tuple[Tensor, Tensor]:
    """The loss's two terms at each point, (N,)."""
    if classes:
        p, share = target
        log_q = f[..., :-1].log_softmax(-1)
        prediction = (torch.special.xlogy(p, p) - p * log_q).sum(-1)
        return prediction, _spread_kl(share, (-f[..., -1]).sigmoid())
    mean, epistemic, aleatoric = target
    own_mean, own_epistemic, own_aleatoric = _moments(f)
    total, own_total = epistemic**2 + aleatoric**2, own_epistemic**2 + own_aleatoric**2
    shift = 0.5 * (mean - own_mean) ** 2 / own_total
    return (shift + _spread_kl(total, own_total)).sum(-1), _spread_kl(epistemic**2, own_epistemic**2).sum(-1)


def _spread_kl(var: Tensor, other: Tensor) -> Tensor:
    """KL(N(0, var) || N(0, other))."""
    ratio = var / other
    return 0.5 * (ratio - 1 - ratio.log())


def _check_outputs(net: nn.Module, x: Tensor, outputs: int, classes: bool) -> None:
    expected = outputs + 1 if classes else 3 * outputs
    with torch.no_grad():
        got = net(x[:2]).shape
    if len(got) != 2 or got[-1] != expected:
        what = f"{outputs} logits and a log precision" if classes else "mean, epistemic and aleatoric for each output"
        raise ValueError(f"the student gives {tuple(got)} for two inputs; expected (2, {expected}): {what}")
