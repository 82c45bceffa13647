"""Mistakes get an answer that says what was given, what was expected and what to do, before any work starts."""

import math

import pytest
import torch
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
)

from bnnlib.nets import Gaussian, Model
from bnnlib.variational import (
    Flow,
    FullRank,
    LowRank,
    MeanField,
    elbo,
    fit,
    fit_forward_kl,
    gradient_variance,
    importance_evidence,
    kl,
)


def square(z):
    return -z.square().sum(-1)


def run(log_joint=square, family=None, **settings):
    return fit(log_joint, family or MeanField(2), **{"steps": 5, "progress": False, **settings})


def network():
    model = Model(torch.nn.Linear(2, 1), Gaussian(scale=1.0), 1.0)
    x, y = torch.zeros(4, 2), torch.zeros(4, 1)
    return lambda w: model.log_joint(w, x, y)


TARGET = MultivariateNormal(torch.zeros(3), torch.eye(3))
ONE = Normal(torch.tensor(0.0), torch.tensor(1.0))
PAIR = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)


@pytest.mark.parametrize("log_joint", [TARGET.log_prob, network(), lambda z: z[:, 5], lambda z: z @ torch.ones(3)])
def test_a_family_of_another_size(log_joint):
    with pytest.raises(ValueError, match=r"draws of MeanField\(2\), shape \(2, 2\).*size that the model asks for"):
        run(log_joint)


@pytest.mark.parametrize("call", [run, lambda f: elbo(f, MeanField(2)), lambda f: importance_evidence(f, MeanField(2))])
def test_a_log_joint_of_one_point_or_of_all(call):
    for wrong in (lambda z: square(z).sum(), lambda z: -z.square(), lambda z: square(z)[:, None]):
        with pytest.raises(ValueError, match=r"log_joint returned shape .* one number a row.*torch\.vmap"):
            call(wrong)
    with pytest.raises(TypeError, match="must return a tensor, got float"):
        call(lambda z: 1.0)


def test_nan_names_the_values_of_z():
    """The first z at which it happens, and how many of the draws."""

    def root(z):
        return z[:, 0].sqrt()

    generator = torch.Generator().manual_seed(0)
    q = Independent(Normal(torch.tensor([-1.25, 3.0]), torch.tensor([1e-6, 1e-6])), 1)
    with pytest.raises(FloatingPointError, match=r"log_joint is nan at z = \(-1\.25, 3\) \(4 of 4 draws\)"):
        elbo(root, q, 4, generator=generator)
    with pytest.raises(FloatingPointError, match=r"nan at z = \("):
        run(root, MeanField(2, loc=-3.0))
    with pytest.raises(FloatingPointError, match=r"inf at z = \("):
        importance_evidence(lambda z: z[:, 0] + math.inf, q, 4)
    many = Independent(Normal(torch.zeros(12), 1.0), 1)
    with pytest.raises(FloatingPointError, match=r", \.\.\.\)"):
        elbo(lambda z: z.sum(-1) * math.nan, many)


def test_a_nan_that_comes_later_names_the_draw_too():
    calls = []

    def breaks(z):
        calls.append(0)
        return square(z) * (math.nan if len(calls) > 10 else 1.0)

    with pytest.raises(FloatingPointError, match="log_joint is nan at z"):
        run(breaks, steps=50)


def test_a_bound_of_minus_infinity_names_the_step():
    calls = []

    def outside(z):
        calls.append(0)
        return square(z) - (math.inf if len(calls) == 4 else 0.0)

    with pytest.raises(FloatingPointError, match=r"the loss is inf at step 2; try a smaller lr"):
        run(outside)


@pytest.mark.parametrize(
    "log_joint",
    [
        lambda z: square(z.detach()),
        lambda z: torch.from_numpy(-(z.detach().numpy() ** 2).sum(-1)),
        lambda z: torch.zeros(len(z)),
    ],
    ids=["detach", "numpy", "constant"],
)
def test_a_target_without_gradient(log_joint):
    with pytest.raises(ValueError, match=r'no gradient in z.*estimator="score"'):
        run(log_joint)
    with pytest.raises(ValueError, match="no gradient in z"):
        gradient_variance(log_joint, PAIR, repeats=2)
    run(log_joint, estimator="score")
    assert elbo(log_joint, PAIR, 3).shape == (3,)  # values alone need none


@pytest.mark.parametrize("draws", [0, -1, 1.5, True])
def test_a_draw_count(draws):
    for call in (
        lambda: elbo(square, PAIR, draws),
        lambda: run(draws=draws),
        lambda: gradient_variance(square, PAIR, draws=draws),
        lambda: importance_evidence(square, PAIR, draws),
        lambda: kl(StudentT(torch.tensor(3.0)), ONE, draws=draws),
    ):
        with pytest.raises(ValueError, match=f"draws must be a whole number, at least [12], got {draws}"):
            call()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be a whole number"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"decay": 1.5}, "decay is a part of the steps"),
        ({"estimator": "magic"}, "estimator must be one of reparameterised, score, analytic_entropy"),
        ({"baseline": 1.0}, 'baseline goes with estimator="score"'),
        ({"estimator": "score", "baseline": "mean"}, "leave_one_out"),
        ({"estimator": "score", "baseline": "leave_one_out"}, "at least 2, got 1"),
    ],
)
def test_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        run(**settings) if "baseline" not in settings else elbo(square, PAIR, **settings)


def test_q_must_be_one_distribution_with_draws_that_fit():
    with pytest.raises(TypeError, match="family must be MeanField"):
        fit(square, PAIR)
    for bad in (lambda: elbo(square, square), lambda: gradient_variance(square, 3, repeats=2)):
        with pytest.raises(TypeError, match="torch Distribution or a family"):
            bad()
    with pytest.raises(ValueError, match=r"batch of \(2,\) distributions.*Independent\(q, 1\)"):
        elbo(square, Normal(torch.zeros(2), torch.ones(2)))
    mixture = MixtureSameFamily(Categorical(torch.ones(2)), Normal(torch.zeros(2), torch.ones(2)))
    with pytest.raises(ValueError, match='no reparameterised draws; use estimator="score"'):
        elbo(lambda z: -(z**2), mixture)
    with pytest.raises(TypeError, match="parameters cannot be told apart"):
        gradient_variance(lambda z: -(z**2), mixture, estimator="score")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MeanField(0), "size must be a whole number, at least 1, got 0"),
        (lambda: MeanField(2, loc=torch.zeros(3)), r"loc has shape \(3,\); expected a number or \(2,\)"),
        (lambda: MeanField(2, scale=0.0), "scale must be finite and positive"),
        (lambda: FullRank(2, loc=math.nan), "loc must be finite"),
        (lambda: FullRank(20_000), "200,010,000 numbers.*low rank"),
        (lambda: LowRank(3, 0), "rank must be a whole number"),
        (lambda: LowRank(3, 4), r"rank is 4, more than the 3 unknowns; take FullRank\(3\)"),
        (lambda: Flow(1), "at least 2, got 1"),
        (lambda: Flow(2, layers=0), "layers must be"),
    ],
)
def test_families(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: kl(torch.tensor([0.5, 0.4]), torch.tensor([0.5, 0.5])), ValueError, "q must hold.*sum 0.9"),
        (lambda: kl(torch.tensor([0.5, 0.5]), torch.tensor([1.5, -0.5])), ValueError, "p must hold.*smallest is -0.5"),
        (lambda: kl(torch.ones(1), torch.ones(2) / 2), ValueError, "shapes"),
        (lambda: kl(ONE, torch.ones(1)), TypeError, "got Normal and Tensor"),
        (lambda: kl(ONE, PAIR), ValueError, r"shape \(\), p of \(2,\)"),
        (lambda: fit_forward_kl(square), ValueError, "needs a grid"),
        (lambda: fit_forward_kl(ONE.log_prob, torch.linspace(-1, 1, 50)), ValueError, "take a wider grid"),
        (lambda: fit_forward_kl(ONE.log_prob, torch.tensor([1.0, 0.0, 2.0])), ValueError, "increasing"),
        (lambda: fit_forward_kl(torch.zeros(3), torch.arange(4.0)), ValueError, r"\(3,\), the grid \(4,\)"),
        (lambda: fit_forward_kl(torch.sqrt, torch.linspace(-9, 9, 5)), ValueError, "NaN at -9"),
        (lambda: fit_forward_kl(torch.zeros(1)), ValueError, "S >= 2"),
        (lambda: fit_forward_kl(torch.randn(2, 3)), ValueError, "2 draws of 3 numbers"),
        (lambda: fit_forward_kl(PAIR, family="flow"), ValueError, "full_rank"),
        (lambda: fit_forward_kl(Normal(torch.zeros(2), 1.0)), ValueError, "batch shape"),
        (lambda: fit_forward_kl(Flow(2).settled()), ValueError, "no covariance in closed form"),
        (lambda: importance_evidence(lambda z: z[:, 0] - math.inf, PAIR), ValueError, "-inf at every draw"),
        (lambda: gradient_variance(square, PAIR, repeats=1), ValueError, "repeats"),
    ],
)
def test_divergences_and_fits(call, error, message):
    with pytest.raises(error, match=message):
        call()
