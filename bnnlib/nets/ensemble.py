"""Ensembles: the same network trained several times from different starts, and the answers averaged.

    q(w) = 1/M sum_m delta(w - w_m),     w_m = argmin  -log p(w) - log p(D | w)  from its own start

(Lakshminarayanan, Pritzel and Blundell 2017). What the members disagree about is what the data leave open.

With a randomised prior each member has its own problem: the prior is centred at a draw w0 of itself, and normal noise
is added once to the targets. On a linear model with normal noise each member is then an exact draw of the posterior.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bnnlib._random import _borrowed as borrowed
from bnnlib._random import standard_normal
from bnnlib._settings import check_part, check_positive, check_whole
from bnnlib.nets._fitting import Data, Prepared, batches, prepare
from bnnlib.nets._members import Members
from bnnlib.nets._training import descend
from bnnlib.nets.empirical import Empirical
from bnnlib.nets.likelihoods import Gaussian
from bnnlib.nets.mixture import MixturePosterior, mixture
from bnnlib.nets.model import Model
from bnnlib.nets.posterior import Posterior

__all__ = ["ensemble"]

_STARTS = ("init", "prior", "model")


def ensemble(
    model: Model,
    data: Data,
    *,
    members: int = 5,
    start: str = "init",
    bootstrap: bool = False,
    randomised_prior: bool = False,
    method: Callable[..., Posterior] | None = None,
    settings: Mapping[str, Any] | None = None,
    steps: int = 3000,
    lr: float = 0.02,
    decay: float = 0.5,
    generator: torch.Generator | None = None,
    progress: bool = True,
    device: torch.device | str | None = None,
) -> Posterior:
    """Train several networks at once as one batched network; or run another method several times.

    Parameters
    ----------
    model
        What is unknown, its prior and its likelihood.
    data
        A pair of tensors, a `Standardized`, or a `DataLoader`. For `bootstrap` and `randomised_prior` a loader is read
        once, as a whole, and its batch size kept; but `method` is given a bootstrap sample as one pair of tensors.
    members
        How many, M.
    start
        Where each member starts: "init", as its modules initialise themselves; "prior", at a draw of the prior;
        "model", all at the network's present parameters, which makes them equal unless their data or priors differ.
    bootstrap
        Each member has its own sample of n points, drawn with replacement. It widens the answer where data are few;
        with the prior kept it is no approximation of the posterior.
    randomised_prior
        Randomised MAP sampling (Pearce et al. 2020): normal priors are centred at a draw of their own for each member,
        and with `Gaussian` noise the targets are moved by a draw of the noise too, without which the spread of the
        members is too small. The noise itself, where unknown, is learned on the targets as they are, as a point.
        Other likelihoods have no targets to move: there it is the prior only, and the spread is a lower bound.
    method
        Another method of this package, such as `laplace`: each member is one run of it, from its own start.
    settings
        Keyword arguments for `method`.
    steps, lr, decay
        Without `method`: Adam's steps, their size, and the last part of them over which lr falls linearly to zero.
    generator
        Source of starts, samples and priors, and of what `method` draws.
    progress
        Show a progress bar.
    device
        Where to train; the result is on the model's own device.

    Returns
    -------
    Posterior
        A set of M values with history `loss`, (steps, M), in nats: what each member minimises. With `method` a
        `MixturePosterior`: its prediction is the mixture of the members' predictions. An interrupt from the keyboard
        returns what is there, marked as interrupted.

    Raises
    ------
    ValueError
        Bad data or settings; a module that does not say how it initialises itself.
    FloatingPointError
        A member's loss became NaN or infinite; the message names the step.
    """
    check_whole(members=members, steps=steps)
    check_positive(lr=lr)
    check_part(decay=decay)
    if start not in _STARTS:
        raise ValueError(f"start is one of {', '.join(map(repr, _STARTS))}, got {start!r}")
    if settings is not None and method is None:
        raise ValueError("settings are for `method`; give one, or steps, lr and decay themselves")
    prepared = prepare(model, data)
    _check_prior(model, bootstrap, randomised_prior, method)
    starts = _starts(model, members, start, generator)
    if method is not None:
        source = data if not bootstrap else prepared
        run = {**(settings or {}), "generator": generator, "progress": progress, "device": device}
        return _of(method, model, source, starts, run)
    target = torch.device(device) if device is not None else model.device
    work = model if target == model.device else model.to(target)
    if bootstrap or randomised_prior:
        stream = _fixed_problems(work, prepared, members, bootstrap, randomised_prior, generator)
    else:
        stream = ((x, y, None, None) for x, y in batches(prepared, target))
    anchors = work.prior.sample(members, generator).to(starts) if randomised_prior else None
    loss = Members(work, starts.to(target), None if anchors is None else anchors.to(target))

    def gradient() -> Tensor:
        x, y, weights, moves = next(stream)
        return loss(x, y, prepared.n / len(x), weights, moves)

    record, interrupted = descend(
        "ensemble", loss.w, gradient, steps=steps, lr=lr, decay=decay, progress=progress, members=members
    )
    return Posterior(
        model=model,
        distribution=Empirical(loss.w.detach().to(model.device).clone()),
        method="ensemble",
        history={"loss": record},
        diagnostics={"members": float(members), "steps": float(len(record)), "interrupted": float(interrupted)},
        scaling=prepared.scaling,
    )


def _check_prior(model: Model, bootstrap: bool, randomised: bool, method: object) -> None:
    if not randomised:
        return
    if method is not None:
        raise ValueError("randomised_prior is for members that are points; leave out `method`")
    if not model.prior.normal:
        raise ValueError(f"randomised_prior needs normal priors on the weights, got {model.prior}")
    if bootstrap and isinstance(model.likelihood, Gaussian):
        raise ValueError(
            "bootstrap and randomised_prior both stand for the noise of the targets, and together would count it "
            "twice; choose one"
        )


def _starts(model: Model, members: int, start: str, generator: torch.Generator | None) -> Tensor:
    """Where the members start, (M, P); the noise starts at its prior mean."""
    w = model.start().expand(members, -1).clone()
    if start == "prior":
        w[:, : model.net_size] = model.prior.sample(members, generator).to(w)
    if start == "init":
        _check_initialisers(model.net)
        net = copy.deepcopy(model.net)  # a BatchNorm that initialises itself forgets its statistics too
        with borrowed(generator), torch.no_grad():
            for row in w:
                for module in net.modules():
                    reset = _initialiser(module)
                    if reset is not None:
                        reset()
                row[: model.net_size] = torch.cat([p.reshape(-1) for p in net.parameters()])
    return w


def _initialiser(module: nn.Module) -> Callable[[], None] | None:
    found = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    return found if callable(found) else None


def _check_initialisers(net: nn.Module) -> None:
    for name, module in net.named_modules():
        if next(module.parameters(recurse=False), None) is not None and _initialiser(module) is None:
            raise ValueError(
                f"{name or 'the net'} ({type(module).__name__}) has parameters and no reset_parameters(), so it cannot "
                'start anew; write that method, or choose start="prior"'
            )


Problem = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def _fixed_problems(
    model: Model,
    prepared: Prepared,
    members: int,
    bootstrap: bool,
    randomised: bool,
    generator: torch.Generator | None,
) -> Iterator[Problem]:
    """Batches without end: x, y, how often each member has each point (M, B), and moves of the targets (M, B, K)."""
    x, y = (v.to(model.device) for v in prepared.everything())
    n = len(x)
    weights = moves = None
    if bootstrap:
        weights = torch.stack([torch.bincount(_resampled(n, generator), minlength=n) for _ in range(members)])
        weights = weights.to(model.start())
    if randomised and isinstance(model.likelihood, Gaussian):
        moves = standard_normal((members, *y.shape), torch.zeros(0, dtype=model.dtype), generator).to(x.device)
    size = n if prepared.loader is None else min(n, len(prepared.x))
    where = generator.device if generator is not None else None

    def endless() -> Iterator[Problem]:
        while True:
            order = torch.randperm(n, generator=generator, device=where) if size < n else torch.arange(n)
            for pick in order.to(x.device).split(size):
                yield (
                    x[pick],
                    y[pick],
                    None if weights is None else weights[:, pick],
                    None if moves is None else moves[:, pick],
                )

    return endless()


def _resampled(n: int, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else None
    return torch.randint(n, (n,), generator=generator, device=device).cpu()


def _of(
    method: Callable[..., Posterior], model: Model, data: Data | Prepared, starts: Tensor, run: dict[str, Any]
) -> MixturePosterior:
    """One run of another method from each start, on the data or on a bootstrap sample of them."""
    found: list[Posterior] = []
    for row in starts:
        own = model.to()
        with torch.no_grad():
            for p, value in zip(own.net.parameters(), own.parameters_of(row).values(), strict=True):
                p.copy_(value)
        if isinstance(data, Prepared):
            x, y = data.everything()
            pick = _resampled(len(x), run["generator"]).to(x.device)
            found.append(replace(method(own, (x[pick], y[pick]), **run), scaling=data.scaling))
        else:
            found.append(method(own, data, **run))
        if found[-1].diagnostics.get("interrupted"):
            break
    return mixture([p.with_model(model) for p in found], method=f"ensemble of {found[0].method}")
