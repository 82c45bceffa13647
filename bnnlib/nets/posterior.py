"""The result of every inference method: a distribution over w, with how it was found."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, LowRankMultivariateNormal, MultivariateNormal, Normal

from bnnlib._random import draw
from bnnlib._settings import check_whole
from bnnlib.data import Scaling
from bnnlib.nets.empirical import Empirical
from bnnlib.nets.gauss_newton import LowRankPrecision
from bnnlib.nets.kronecker import KroneckerNormal
from bnnlib.nets.last_layer import PartialNormal
from bnnlib.nets.linearized import linearized_functions, linearized_predictive
from bnnlib.nets.masked import Masked
from bnnlib.nets.model import Model
from bnnlib.nets.moments import closed_moments, streamed_moments
from bnnlib.nets.workspace import Workspace, stream
from bnnlib.predictive import Moments, Predictive

__all__ = ["Posterior"]

_FORMAT = "bnnlib posterior 1"


@dataclass(frozen=True, repr=False)
class Posterior:
    """A distribution over everything unknown, and what can be done with it.

    Attributes
    ----------
    model
        The model it belongs to.
    distribution
        A `torch.distributions.Distribution` over w, event shape (P,).
    method
        Name of the inference method.
    history
        Per step or iteration: what the method recorded, each of shape (steps,).
    diagnostics
        Numbers about the fit as a whole: the temper, the log evidence, the fitted prior, ...
    scaling
        How inputs and targets were standardised, or None.
    linearized
        True where predictions use the network's linearisation in w at the mean, in closed form.
    """

    model: Model
    distribution: Distribution
    method: str
    history: Mapping[str, Tensor] = field(default_factory=dict)
    diagnostics: Mapping[str, float | str] = field(default_factory=dict)
    scaling: Scaling | None = None
    linearized: bool = False

    def __repr__(self) -> str:
        notes = [f"{self.model.size} unknowns", str(self.model.likelihood)]
        if self.diagnostics.get("kl_weight", 1.0) != 1.0:
            notes.append(f"TEMPERED: kl_weight={self.diagnostics['kl_weight']}")
        if self.diagnostics.get("temperature", 1.0) != 1.0:
            notes.append(f"TEMPERED: temperature={self.diagnostics['temperature']}")
        if self.diagnostics.get("interrupted"):
            notes.append("interrupted")
        return f"Posterior({self.method}, {', '.join(notes)})"

    @property
    def mean(self) -> Tensor:
        """Mean of w, shape (P,)."""
        return self.distribution.mean

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n parameter vectors, shape (n, P). From a set of values they are picked as evenly as can be."""
        check_whole(draws=n)
        return draw(self.distribution, n, generator).to(self.model.dtype)

    def functions(self, x: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n functions and evaluate them at x, in the original units, shape (n, N, outputs).

        One draw of w is one function, so values at different x belong together. A linearised
        posterior draws the tangents that its band is made of: run through the network itself, the
        same draws fit nothing (Immer, Korzepa and Bauer 2021).
        """
        inputs = self._inputs(x)
        if self.linearized:
            f = linearized_functions(self.model, self.distribution, inputs, self.sample(n, generator))
        else:
            f = self._outputs(inputs, n, generator)[0]
        scaling = self.scaling
        if scaling is None or scaling.y_loc is None or scaling.y_scale is None:
            return f
        if f.shape[-1] != scaling.y_loc.numel():  # mean and raw scale: only the mean has the units of y
            f = f[..., : scaling.y_loc.numel()]
        return f * scaling.y_scale.to(f) + scaling.y_loc.to(f)

    def predict(self, x: Tensor, *, draws: int = 1000, generator: torch.Generator | None = None) -> Predictive:
        """Predictive distribution at new inputs.

        Parameters
        ----------
        x
            Inputs in the original units, shape (N, ...).
        draws
            Number S of draws of w. Methods that linearise the network need none for a regression; a
            posterior that is a set of values (ensembles, samplers) uses each of them at most once.

        Returns
        -------
        Predictive
            In the original units of y.
        """
        check_whole(draws=draws)
        inputs = self._inputs(x)
        if self.linearized:
            return linearized_predictive(self.model, self.distribution, inputs, draws, generator, *self._units())
        f, u = self._outputs(inputs, draws, generator)
        return self.model.likelihood.predictive(f, u, *self._units())

    def moments(self, x: Tensor, *, draws: int = 1000, generator: torch.Generator | None = None) -> Moments:
        """Mean, epistemic and aleatoric standard deviation only; memory does not grow with the number of draws.

        In closed form where there is one: linearised posteriors, and factorised normals over a net
        with one hidden ReLU layer. Else the draws are streamed and forgotten.
        """
        check_whole(draws=draws)
        if self.linearized:
            return self.predict(x, draws=draws, generator=generator).moments
        inputs = self._inputs(x)
        draws = self._at_most(draws)
        closed = closed_moments(self.model, self.distribution, inputs, *self._units())
        if closed is not None:
            return closed
        return streamed_moments(self.model, self.distribution, inputs, draws, generator, *self._units())

    # helpers -----------------------------------------------------------------------------------

    def _inputs(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a torch tensor, got {type(x).__name__}")
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise ValueError("x has NaN or infinite values")
        if x.is_floating_point() and x.dtype != self.model.dtype:
            raise ValueError(f"x is {x.dtype}, the network {self.model.dtype}; convert x with x.to({self.model.dtype})")
        return x if self.scaling is None else self.scaling.x(x)

    def _units(self) -> tuple[Tensor | None, Tensor | None]:
        if self.scaling is None or self.scaling.y_loc is None or self.scaling.y_scale is None:
            return None, None
        return self.scaling.y_loc.to(self.mean.device), self.scaling.y_scale.to(self.mean.device)

    def _outputs(self, x: Tensor, draws: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Network outputs (S, N, outputs) and noise coordinates (S, M) of S draws, one preallocated result each."""
        check_whole(draws=draws)
        draws = self._at_most(draws)
        net = Workspace(self.model)
        with torch.no_grad():
            out: Tensor | None = None
            noise = self.mean.new_empty((draws, self.model.likelihood.unknown_size), dtype=self.model.dtype)
            for s, w in enumerate(stream(self.distribution, draws, net.w, generator)):
                f = net(x)
                if out is None:
                    out = f.new_empty((draws, *f.shape))
                out[s] = f
                if noise.shape[1]:
                    noise[s] = w[self.model.net_size :]
        assert out is not None
        return out, noise

    def _at_most(self, draws: int) -> int:
        """Draws that are worth making: a set of M values says nothing new after M."""
        return min(draws, len(self.distribution.values)) if isinstance(self.distribution, Empirical) else draws

    # files -------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the posterior to a file of tensors and plain values; an existing file is replaced in one step."""
        target = Path(path)
        content = self._content()
        temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
        try:
            torch.save(content, temporary)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Model) -> Posterior:
        """Read a posterior that was saved for `model`. Loads tensors and plain values only, never code.

        Raises
        ------
        ValueError
            The file is no posterior, or was made for another model; the message names the difference.
        """
        try:
            content = torch.load(path, weights_only=True, map_location=model.device)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(f"{path} is not a saved posterior: {type(error).__name__}") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f"{path} is not a saved posterior (no mark {_FORMAT!r})")
        saved, own = content["model"], model.signature()
        for key, mine in own.items():
            if saved.get(key) != mine:
                raise ValueError(
                    f"{path} was made for another model: its {key} is {saved.get(key)}, this model's {mine}"
                )
        return READERS.get(content["kind"], read)(content, model)

    def _content(self) -> dict[str, Any]:
        """What a file holds: tensors and plain values."""
        return {
            **about(self),
            "kind": type(_base(self.distribution)).__name__,
            "arrays": _arrays(self.distribution),
        }

    def with_model(self, model: Model) -> Posterior:
        """The same distribution attached to another model of the same size."""
        if model.size != self.model.size:
            raise ValueError(f"the model has {model.size} unknowns, the posterior {self.model.size}")
        return replace(self, model=model)


def about(posterior: Posterior) -> dict[str, Any]:
    """Everything in a file but the distribution."""
    return {
        "format": _FORMAT,
        "model": posterior.model.signature(),
        "method": posterior.method,
        "history": dict(posterior.history),
        "diagnostics": dict(posterior.diagnostics),
        "scaling": None if posterior.scaling is None else vars(posterior.scaling),
        "linearized": posterior.linearized,
    }


def from_content(content: Mapping[str, Any], model: Model, distribution: Distribution) -> Posterior:
    """What `about` says, with its model and distribution."""
    scaling = content["scaling"]
    return Posterior(
        model=model,
        distribution=distribution,
        method=content["method"],
        history=content["history"],
        diagnostics=content["diagnostics"],
        scaling=None if scaling is None else Scaling(**scaling),
        linearized=content["linearized"],
    )


def read(content: Mapping[str, Any], model: Model) -> Posterior:
    """A posterior from what its file holds."""
    return from_content(content, model, _from_arrays(content["kind"], content["arrays"]))


# Kinds of posterior that are read in a way of their own: those made of others.
READERS: dict[str, Callable[[Mapping[str, Any], Model], Posterior]] = {}


def _base(distribution: Distribution) -> Distribution:
    return distribution.base_dist if isinstance(distribution, Independent) else distribution


# Distributions that a file can hold: the arrays that one is made of, and how it is made of them.
_KINDS: dict[str, tuple[tuple[str, ...], Callable[..., Distribution]]] = {
    "Normal": (("loc", "scale"), lambda loc, scale: Independent(Normal(loc, scale), 1)),
    "MultivariateNormal": (
        ("loc", "scale_tril"),
        lambda loc, scale_tril: MultivariateNormal(loc, scale_tril=scale_tril),
    ),
    "LowRankMultivariateNormal": (("loc", "cov_factor", "cov_diag"), LowRankMultivariateNormal),
    "LowRankPrecision": (("loc", "diagonal", "factor"), LowRankPrecision),
    "Empirical": (("values",), Empirical),
    "KroneckerNormal": (("loc", "layout", "packed", "rest_sd"), KroneckerNormal.unpacked),
    "PartialNormal": (("loc", "index", "scale_tril"), PartialNormal),
    "Masked": (("loc", "group", "p"), Masked),
}


def _arrays(distribution: Distribution) -> dict[str, Tensor]:
    base = _base(distribution)
    if type(base).__name__ not in _KINDS:
        raise TypeError(f"cannot save a {type(base).__name__}; known are {', '.join(_KINDS)}")
    names, _ = _KINDS[type(base).__name__]
    return {name: getattr(base, name).detach().clone() for name in names}


def _from_arrays(kind: str, arrays: Mapping[str, Tensor]) -> Distribution:
    if kind not in _KINDS:
        raise ValueError(f"unknown kind of distribution {kind!r}; known are {', '.join(_KINDS)}")
    return _KINDS[kind][1](**arrays)
