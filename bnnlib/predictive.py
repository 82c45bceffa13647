"""What a posterior says about new data: a mixture, one component a draw of the unknowns.

    p(y | x, D) = 1/S sum_s p(y | f_s(x), noise_s)

and its moments by the law of total variance

    total_var = epistemic_var + aleatoric_var
              = Var_s E[y | s]  +  E_s Var[y | s].

`epistemic` is ignorance, which data can remove; `aleatoric` is noise, which they cannot.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Normal, StudentT

from bnnlib._crps import normal_crps, student_crps
from bnnlib._random import draw, place
from bnnlib._student import student_bound, student_tail

__all__ = ["Moments", "Predictive"]


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviations of a prediction, each of shape (N, K), in the units of y.

    `mc_error` is the Monte Carlo standard error of `mean`: zero where the moments are in closed form.
    """

    mean: Tensor
    epistemic: Tensor
    aleatoric: Tensor
    mc_error: Tensor

    @property
    def total(self) -> Tensor:
        """Standard deviation of a new observation, by the law of total variance."""
        return (self.epistemic**2 + self.aleatoric**2).sqrt()


class Predictive:
    """Predictive distribution of N new observations with K outputs (or C classes).

    Parameters
    ----------
    components
        `Normal`, `StudentT` or `Bernoulli` with batch shape (S, N, K), or `Categorical` with batch
        shape (S, N): the distribution of y under each of S draws.
    function_var
        For `Normal` components only, shape broadcastable to (S, N, K): the part of a component's
        variance that is ignorance about the function, for methods that integrate it in closed form.
    noise_var
        With `function_var`, the other part of the components' variance. Without it that is had by a
        difference, of which no digit is left where the function's part is millions of times larger.

    Raises
    ------
    TypeError
        If the components are of another family, or a question is asked that they have no answer to
        (a quantile of classes, class probabilities of a regression).
    """

    def __init__(
        self, components: Distribution, *, function_var: Tensor | None = None, noise_var: Tensor | None = None
    ) -> None:
        if not isinstance(components, Normal | StudentT | Bernoulli | Categorical):
            raise TypeError(
                "Predictive needs Normal, StudentT, Bernoulli or Categorical components, "
                f"not {type(components).__name__}"
            )
        if function_var is not None and not isinstance(components, Normal):
            raise TypeError("function_var goes with Normal components only: draw the function for other likelihoods")
        self.components = components
        self.function_var = function_var
        self.noise_var = noise_var

    def __repr__(self) -> str:
        shape = tuple(self.components.batch_shape)
        return f"Predictive({type(self.components).__name__}, draws={shape[0]}, points={shape[1]})"

    @property
    def draws(self) -> int:
        """Number S of mixture components."""
        return int(self.components.batch_shape[0])

    # moments -----------------------------------------------------------------------------------

    @property
    def _component_mean(self) -> Tensor:
        c = self.components
        return c.probs if isinstance(c, Categorical) else c.mean

    @cached_property
    def mean(self) -> Tensor:
        """E[y], shape (N, K). For classes: the class probabilities, the mean of the one-hot label."""
        return self._component_mean.mean(0)

    @cached_property
    def epistemic_var(self) -> Tensor:
        """Variance over the draws of E[y | draw], shape (N, K)."""
        between = self._component_mean.var(0, correction=0)
        return between if self.function_var is None else between + self.function_var.mean(0)

    @cached_property
    def aleatoric_var(self) -> Tensor:
        """Mean over the draws of Var[y | draw], shape (N, K)."""
        c = self.components
        within = c.probs * (1 - c.probs) if isinstance(c, Categorical) else c.variance
        if self.noise_var is not None:
            return self.noise_var.expand_as(within).mean(0)
        return (within if self.function_var is None else (within - self.function_var).clamp_min(0)).mean(0)

    @property
    def total_var(self) -> Tensor:
        """Variance of a new observation, shape (N, K)."""
        return self.epistemic_var + self.aleatoric_var

    @property
    def epistemic(self) -> Tensor:
        """Standard deviation of the function value: what is not known, shape (N, K)."""
        return self.epistemic_var.sqrt()

    @property
    def aleatoric(self) -> Tensor:
        """Standard deviation of the noise: what cannot be known, shape (N, K)."""
        return self.aleatoric_var.sqrt()

    @property
    def total(self) -> Tensor:
        """Standard deviation of a new observation, shape (N, K)."""
        return self.total_var.sqrt()

    @cached_property
    def mc_error(self) -> Tensor:
        """Monte Carlo standard error of `mean`: sd over the draws / sqrt(S). Zero for one closed-form component."""
        if self.draws == 1:
            return torch.zeros_like(self.mean)
        return self._component_mean.std(0) / math.sqrt(self.draws)

    @property
    def moments(self) -> Moments:
        """Mean, epistemic and aleatoric standard deviation and the Monte Carlo error, in one object."""
        return Moments(self.mean, self.epistemic, self.aleatoric, self.mc_error)

    # densities ---------------------------------------------------------------------------------

    def log_prob(self, y: Tensor) -> Tensor:
        """Log density (or log probability) of y under the mixture, in nats.

        log p(y) = logsumexp_s sum_k log p(y_k | s) - log S.

        Parameters
        ----------
        y
            Shape (N, K), or (N,) class labels.

        Returns
        -------
        Tensor
            Shape (N,): outputs of one point are taken together.
        """
        self._check(y)
        c: Distribution = self.components
        log_p = c.log_prob(y.to(self.mean) if isinstance(c, Bernoulli) else y)
        if not isinstance(c, Categorical):
            log_p = log_p.sum(-1)
        return log_p.logsumexp(0) - math.log(self.draws)

    def cdf(self, y: Tensor) -> Tensor:
        """P(Y <= y) for each output, shape (..., N, K) like y."""
        c = self._continuous("cdf")
        z = (y.unsqueeze(-3) - c.loc) / c.scale
        if isinstance(c, StudentT):
            tail = student_tail(z, c.df)
            return torch.where(z < 0, tail, 1 - tail).mean(-3)
        return 0.5 * torch.erfc(z * -math.sqrt(0.5)).mean(-3)  # torch's ndtr is 0 beyond -8

    def quantile(self, p: float | Tensor) -> Tensor:
        """Value q with P(Y <= q) = p, by bisection on the mixture's cdf.

        Parameters
        ----------
        p
            A probability, or a 1-D tensor of M probabilities, strictly between 0 and 1.

        Returns
        -------
        Tensor
            Shape (N, K), or (M, N, K).
        """
        loc = self._continuous("quantile").loc
        probs = torch.as_tensor(p, dtype=torch.float64)
        if probs.dim() > 1 or not bool(((probs > 0) & (probs < 1)).all()):
            raise ValueError(f"quantile needs probabilities strictly between 0 and 1, one or a 1-D tensor, got {p}")
        return torch.stack([self._quantile(v) for v in probs.reshape(-1).tolist()]).reshape(
            *probs.shape, *loc.shape[1:]
        )

    def _quantile(self, p: float) -> Tensor:
        # The mixture's quantile lies between the smallest and the largest of its components' quantiles;
        # including their centres keeps the bracket valid when components differ in their degrees of freedom.
        c = self._continuous("quantile")
        if isinstance(c, Normal):
            z = float(torch.special.ndtri(torch.tensor(p, dtype=torch.float64)))
        else:
            z = student_bound(p, float(c.df.min()))
        low = (c.loc + c.scale * min(z, 0.0)).amin(0)
        high = (c.loc + c.scale * max(z, 0.0)).amax(0)
        pad = 1e-6 * (high - low) + 1e-12
        low, high = low - pad, high + pad
        for _ in range(56 if low.dtype == torch.float64 else 28):
            middle = 0.5 * (low + high)
            below = self.cdf(middle) < p
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return 0.5 * (low + high)

    def interval(self, level: float) -> tuple[Tensor, Tensor]:
        """Central interval that holds a *new observation* with probability `level`: (lower, upper), each (N, K)."""
        lower, upper = _central(level)
        return self.quantile(lower), self.quantile(upper)

    def function_interval(self, level: float) -> tuple[Tensor, Tensor]:
        """Central interval of the *function value*, noise left out: (lower, upper), each (N, K)."""
        c, probs = self._continuous("function_interval"), _central(level)
        if self.function_var is not None:
            # Without noise there is none to add: the function may be known exactly at an input, its scale 0.
            function = Normal(c.loc, self.function_var.expand_as(c.loc).sqrt(), validate_args=False)
            return Predictive(function).interval(level)
        ordered = c.loc.sort(0).values  # torch.quantile refuses more than 16 million numbers
        low, high = (_order_statistic(ordered, p) for p in probs)
        return low, high

    def crps(self, y: Tensor) -> Tensor:
        """Continuous ranked probability score, in the units of y, lower is better, shape (N, K).

        CRPS(F, y) = integral (F(z) - 1[z >= y])^2 dz = E|Y - y| - 1/2 E|Y - Y'|. For a point forecast
        it is the absolute error. NaN for Student-t noise with df <= 1, which has no mean. Source:
        Gneiting and Raftery (2007), eq. 20 and 21.
        """
        c = self._continuous("crps")
        self._check(y)
        return normal_crps(c.loc, c.scale, y) if isinstance(c, Normal) else student_crps(c.loc, c.scale, c.df, y)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n new data sets at the N points, shape (n, N, K), or (n, N) class labels.

        One data set comes from one draw of the unknowns. Where the function is integrated in closed
        form (`function_var`) there are no such draws, and each point has one of its own.
        """
        if n < 1:
            raise ValueError(f"sample needs at least one draw, got n={n}")
        c, batch = self.components, self.components.batch_shape
        home, device = self._component_mean.device, place(generator, self._component_mean)
        pick = torch.randint(self.draws, (n,), generator=generator, device=device).to(home)
        if isinstance(c, Normal | StudentT):
            loc, scale = c.loc.expand(batch)[pick], c.scale.expand(batch)[pick]
            if isinstance(c, Normal):
                noise = torch.randn(loc.shape, generator=generator, dtype=loc.dtype, device=device)
                return loc + scale * noise.to(home)
            # Bailey (1994): an exact Student-t from two uniforms.
            uniform = torch.rand(2, *loc.shape, generator=generator, dtype=loc.dtype, device=device)
            u, v = uniform.to(home).clamp_min(1e-12)
            df = c.df.expand(batch)[pick]
            student: Tensor = (df * (u ** (-2 / df) - 1)).sqrt() * torch.cos(2 * math.pi * v)
            return loc + scale * student
        picked = Categorical(probs=c.probs[pick]) if isinstance(c, Categorical) else Bernoulli(probs=c.probs[pick])
        return draw(picked, 1, generator)[0]

    # classes -----------------------------------------------------------------------------------

    @property
    def probs(self) -> Tensor:
        """Class probabilities, averaged over the draws: (N, C), or (N, K) probabilities of a one for `Bernoulli`."""
        self._classes("probs")
        return self.mean

    @cached_property
    def entropy(self) -> Tensor:
        """Entropy of the averaged probabilities, in nats: total uncertainty. (N,), or (N, K) for `Bernoulli`."""
        averaged: Distribution = type(self._classes("entropy"))(probs=self.mean)
        return averaged.entropy()

    @cached_property
    def mutual_information(self) -> Tensor:
        """Entropy of the mean minus mean of the entropies, in nats: the part that is ignorance."""
        c: Distribution = self._classes("mutual_information")
        return (self.entropy - c.entropy().mean(0)).clamp_min(0)  # rounding alone can leave less than nothing

    # errors ------------------------------------------------------------------------------------

    def _classes(self, what: str) -> Categorical | Bernoulli:
        if not isinstance(self.components, Categorical | Bernoulli):
            raise TypeError(f"{what} is for classes; this is a regression: ask for interval, quantile, cdf or crps")
        return self.components

    def _continuous(self, what: str) -> Normal | StudentT:
        if not isinstance(self.components, Normal | StudentT):
            raise TypeError(f"{what} is for a continuous y; this predicts classes: ask for probs, entropy or log_prob")
        return self.components

    def _check(self, y: Tensor) -> None:
        shape = tuple(self.components.batch_shape[1:])
        if tuple(y.shape) != shape:
            raise ValueError(
                f"y has shape {tuple(y.shape)}, the prediction {shape}; give one row for each predicted point"
            )


def _central(level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level is a probability strictly between 0 and 1, got {level}; for 95 % write 0.95")
    return 0.5 - level / 2, 0.5 + level / 2


def _order_statistic(ordered: Tensor, p: float) -> Tensor:
    """Empirical quantile along dim 0 of sorted values, linear between neighbours."""
    position = p * (len(ordered) - 1)
    below = min(int(position), len(ordered) - 1)
    above = min(below + 1, len(ordered) - 1)
    return torch.lerp(ordered[below], ordered[above], position - below)
