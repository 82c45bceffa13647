"""kl: against torch, against quadrature, against sums; and what no divergence may do."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from torch.distributions import (
    Beta,
    Categorical,
    Exponential,
    Independent,
    Laplace,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
    kl_divergence,
)

from bnnlib.variational import Estimate, kl

F64 = torch.float64


def f(*values):
    return torch.tensor(values, dtype=F64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def by_quadrature(q, p, low=-60.0, high=60.0):
    """KL of two densities on the line by scipy's adaptive quadrature."""

    def integrand(z):
        z = torch.tensor(z, dtype=F64)
        log_q = q.log_prob(z)
        return float(log_q.exp() * (log_q - p.log_prob(z)))

    return quad(integrand, low, high, limit=400, epsabs=1e-10)[0]


TWO = MixtureSameFamily(Categorical(f(0.5, 0.5)), Normal(f(-3.0, 3.0), f(0.7, 0.7)))
CLOSED = [
    (Normal(f(0.3)[0], 1.7), Normal(f(-1.0)[0], 0.4)),
    (Laplace(f(0.3)[0], 1.7), Laplace(f(-1.0)[0], 0.4)),
    (Normal(f(0.3)[0], 0.9), Laplace(f(-1.0)[0], 1.4)),
]


@pytest.mark.parametrize(("q", "p"), CLOSED, ids=lambda d: type(d).__name__)
def test_a_closed_form_is_the_integral(q, p):
    """Source: scipy.integrate.quad."""
    own = kl(q, p)
    assert own.exact
    assert float(own.standard_error) == 0
    assert float(own) == pytest.approx(by_quadrature(q, p), abs=1e-7)


@pytest.mark.parametrize(
    ("q", "p"),
    [(Normal(f(2.9)[0], 0.6), TWO), (TWO, Normal(f(0.0)[0], 3.08)), (StudentT(f(5.0)[0]), Normal(f(0.0)[0], 2.0))],
    ids=["reverse", "forward", "Student"],
)
def test_without_closed_form_the_draws_say_how_far_off_they_are(q, p):
    """Source: scipy.integrate.quad; five of the standard errors that it gives itself."""
    own, exact = kl(q, p, draws=20_000, generator=generator()), by_quadrature(q, p)
    assert not own.exact
    assert 0 < float(own.standard_error) < 0.02
    assert abs(float(own) - exact) < 5 * float(own.standard_error)
    more = kl(q, p, draws=80_000, generator=generator())
    assert float(more.standard_error) == pytest.approx(float(own.standard_error) / 2, rel=0.15)


def test_the_standard_error_covers_the_truth():
    """Over 200 repeats the error in units of the standard error has mean 0 and sd 1, within five of their errors."""
    q, p = Normal(f(2.9)[0], 0.6), TWO
    exact, source = by_quadrature(q, p), generator(3)
    runs = [kl(q, p, draws=500, generator=source) for _ in range(200)]
    units = torch.tensor([(float(e) - exact) / float(e.standard_error) for e in runs])
    assert abs(float(units.mean())) < 5 / 200**0.5
    assert float(units.std()) == pytest.approx(1, abs=5 / 400**0.5)


def test_factorised_against_correlated_is_closed_both_ways():
    """torch has no rule for the pair; the second source is the formula with explicit inverses."""
    loc, sd, mean = f(0.1, -0.4, 1.0), f(0.5, 1.5, 0.8), f(0.0, 0.3, -0.2)
    factor = f(0.9, -0.3, 0.5)[:, None]
    cov = factor @ factor.T + 0.3 * torch.eye(3, dtype=F64)

    def written_out(m0, c0, m1, c1):
        inverse, shift = torch.linalg.inv(c1), m1 - m0
        log_ratio = torch.logdet(c1) - torch.logdet(c0)
        return 0.5 * (torch.trace(inverse @ c0) + shift @ inverse @ shift - len(m0) + log_ratio)

    single = Independent(Normal(loc, sd), 1)
    low = LowRankMultivariateNormal(mean, factor, torch.full((3,), 0.3, dtype=F64))
    for whole in (MultivariateNormal(mean, cov), low):
        forward, reverse = kl(whole, single), kl(single, whole)
        assert forward.exact
        assert reverse.exact
        torch.testing.assert_close(forward.value, written_out(mean, cov, loc, torch.diag(sd**2)), rtol=1e-12, atol=0)
        torch.testing.assert_close(reverse.value, written_out(loc, torch.diag(sd**2), mean, cov), rtol=1e-12, atol=0)


def test_of_tables_it_is_the_sum():
    q, p = [0.5, 0.25, 0.25, 0.0], [0.25, 0.25, 0.4, 0.1]
    exact = sum(a * math.log(a / b) for a, b in zip(q, p, strict=True) if a > 0)
    assert float(kl(f(*q), f(*p))) == pytest.approx(exact, abs=1e-15)
    assert float(kl(f(*q).reshape(2, 2), f(*p).reshape(2, 2))) == pytest.approx(exact, abs=1e-15)
    assert float(kl(Categorical(f(*q)), Categorical(f(*p)))) == pytest.approx(exact, abs=1e-12)
    assert float(kl(f(*p), f(*q))) == math.inf


def test_a_fine_grid_gives_the_closed_form():
    """Cells of width 0.005: the width cancels in the ratio, the sum is the midpoint rule."""
    grid = torch.linspace(-30, 30, 12_001, dtype=F64)
    q, p = Normal(f(0.3)[0], 1.7), Normal(f(-1.0)[0], 1.4)
    tables = [d.log_prob(grid).softmax(0) for d in (q, p)]
    assert float(kl(*tables)) == pytest.approx(float(kl(q, p)), abs=1e-10)


def test_where_p_has_no_support_it_is_infinite():
    assert float(kl(Normal(0.0, 1.0), Exponential(1.0))) == math.inf
    both_sides = MixtureSameFamily(Categorical(torch.ones(2)), Normal(torch.tensor([-1.0, 1.0]), 1.0))
    assert float(kl(both_sides, Exponential(1.0), generator=generator())) == math.inf


def test_the_gradient_goes_through_both_ways_of_computing():
    """Minimising needs it: closed form against torch's, draws against the difference quotient of the integral."""
    loc = f(2.5)[0].requires_grad_()
    kl(Normal(loc, 0.6), Normal(0.0, 2.0)).value.backward()
    assert float(loc.grad) == pytest.approx(2.5 / 4, abs=1e-12)
    loc.grad = None
    kl(Normal(loc, 0.6), TWO, draws=40_000, generator=generator()).value.backward()
    up, down = (by_quadrature(Normal(f(2.5 + h)[0], 0.6), TWO) for h in (1e-4, -1e-4))
    assert float(loc.grad) == pytest.approx((up - down) / 2e-4, abs=0.05)


def test_batches_keep_their_shape():
    q, p = Normal(f(0.0, 1.0), f(1.0, 2.0)), Normal(f(1.0)[0], 1.0)
    torch.testing.assert_close(kl(q, p).value, kl_divergence(q, p), rtol=0, atol=0)
    spread = kl(q, StudentT(f(3.0)[0]), generator=generator())
    assert spread.value.shape == spread.standard_error.shape == (2,)
    assert "shape=(2,)" in repr(spread)


PROBABILITIES = st.lists(st.floats(1e-6, 1.0), min_size=4, max_size=4).map(lambda v: f(*v) / f(*v).sum())


@settings(max_examples=50, deadline=None)
@given(PROBABILITIES, PROBABILITIES)
def test_it_is_never_negative_and_zero_for_equals(q, p):
    assert float(kl(q, p)) >= -1e-12
    assert float(kl(q, q)) == 0
    # Pinsker's inequality: no divergence is smaller than half the squared total variation.
    assert float(kl(q, p)) >= 0.5 * float((q - p).abs().sum()) ** 2 - 1e-12


def test_equal_seeds_give_equal_estimates_and_torchs_state_stays():
    before = torch.random.get_rng_state()
    q, p = Beta(f(2.0)[0], 3.0), MixtureSameFamily(Categorical(torch.ones(1)), Beta(f(1.0), f(2.0)))
    a, b = (kl(q, p, generator=generator(4)) for _ in range(2))
    assert float(a) == float(b)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert abs(float(a) - float(kl_divergence(q, Beta(f(1.0)[0], 2.0)))) < 5 * float(a.standard_error)


def test_an_estimate_says_how_it_was_made():
    assert repr(kl(Normal(0.0, 1.0), Normal(1.0, 1.0))) == "Estimate(0.5, exact)"
    assert repr(Estimate(torch.tensor(0.25), torch.tensor(0.0125), False)) == "Estimate(0.25, standard_error=0.013)"
