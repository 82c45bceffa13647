"""The continuous ranked probability score against its definition and its closed forms."""

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, StudentT

from bnnlib._crps import _normal_spread, _spread_by_pairs
from bnnlib.predictive import Predictive

F64 = torch.float64


def made(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def distance(shift: Tensor, sd: Tensor) -> Tensor:
    """E|N(shift, sd^2)|."""
    z = (shift / sd).numpy()
    return 2 * sd * torch.as_tensor(scipy.stats.norm.pdf(z)) + shift * torch.as_tensor(2 * scipy.stats.norm.cdf(z) - 1)


def by_pairs(loc: Tensor, scale: Tensor, y: Tensor) -> Tensor:
    """E|Y - y| - 1/2 E|Y - Y'| over all S^2 pairs (Grimit et al. 2006)."""
    pairs = distance(loc.unsqueeze(0) - loc.unsqueeze(1), torch.hypot(scale.unsqueeze(0), scale.unsqueeze(1)))
    return distance(y - loc, scale).mean(0) - 0.5 * pairs.mean((0, 1))


def test_one_normal_has_the_closed_form():
    """Gneiting et al. (2005), eq. 5."""
    y = torch.linspace(-30, 30, 41, dtype=F64).reshape(-1, 1)
    loc, scale = torch.full((1, 41, 1), 0.4, dtype=F64), torch.full((1, 41, 1), 1.7, dtype=F64)
    z = ((y - 0.4) / 1.7).numpy()
    closed = 1.7 * (z * (2 * scipy.stats.norm.cdf(z) - 1) + 2 * scipy.stats.norm.pdf(z) - 1 / math.sqrt(math.pi))
    torch.testing.assert_close(Predictive(Normal(loc, scale)).crps(y), torch.as_tensor(closed), rtol=1e-12, atol=0)


@pytest.mark.parametrize("narrow", [1.0, 0.1, 0.003])
@pytest.mark.parametrize("draws", [2, 9, 150])
def test_a_mixture_of_normals_is_the_sum_over_pairs(draws, narrow):
    """The O(S^2) formula; both ways to compute are met, components that overlap and components that do not."""
    loc, scale, y = 3 * made(0, draws, 4, 2) + 50, narrow * made(1, draws, 4, 2).exp(), 4 * made(2, 4, 2) + 50
    expected = by_pairs(loc, scale, y)
    torch.testing.assert_close(Predictive(Normal(loc, scale)).crps(y), expected, rtol=1e-11, atol=0)
    single = Predictive(Normal(loc.float(), scale.float())).crps(y.float())
    torch.testing.assert_close(
        single.double(),
        by_pairs(loc.float().double(), scale.float().double(), y.float().double()),
        rtol=2e-5,
        atol=2e-5,
    )


@given(seed=st.integers(0, 10**6), wide=st.floats(0.5, 20.0))
def test_the_two_ways_to_compute_the_spread_agree(seed, wide):
    loc, scale = wide * made(seed, 80, 2, 1), (0.3 * made(seed + 1, 80, 2, 1)).exp()
    torch.testing.assert_close(_normal_spread(loc, scale), _spread_by_pairs(loc, scale), rtol=1e-10, atol=0)


def student(df: float, loc: Tensor, scale: Tensor) -> Predictive:
    return Predictive(StudentT(torch.full_like(loc, df), loc, scale))


@pytest.mark.parametrize("df", [1.05, 1.5, 3.0, 10.0, 150.0, 1e5])
def test_one_student_t_has_the_closed_form(df):
    """Jordan, Krüger and Lerch (2019), appendix A.2."""
    y = torch.tensor([-30.0, -1.0, 0.0, 0.7], dtype=F64)
    z, beta = y.numpy() / 2, scipy.special.beta
    F, f = scipy.stats.t.cdf(z, df), scipy.stats.t.pdf(z, df)
    # B(1/2, df - 1/2) / B(1/2, df/2)^2 by logarithms, for large df
    ratio = math.exp(scipy.special.betaln(0.5, df - 0.5) - 2 * scipy.special.betaln(0.5, df / 2))
    assert df > 100 or ratio == pytest.approx(beta(0.5, df - 0.5) / beta(0.5, df / 2) ** 2)
    closed = z * (2 * F - 1) + 2 * f * (df + z**2) / (df - 1) - 2 * math.sqrt(df) / (df - 1) * ratio
    found = student(df, torch.zeros(1, 4, 1, dtype=F64), torch.full((1, 4, 1), 2.0, dtype=F64)).crps(y.unsqueeze(-1))
    torch.testing.assert_close(found.flatten(), 2 * torch.as_tensor(closed), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("df", "wide"), [(2.5, 1.0), (5.0, 6.0)])
def test_a_mixture_of_student_ts_is_the_integral_of_the_definition(df, wide):
    """(F - 1[z >= y])^2 with scipy's F, by 200 Gauss-Legendre nodes between knots that spread out to 1e6."""
    loc, scale, y = wide * made(3, 5, 1, 1), made(4, 5, 1, 1).exp(), 0.9
    m, s = loc.reshape(5, 1).numpy(), scale.reshape(5, 1).numpy()
    nodes, weights = np.polynomial.legendre.leggauss(200)
    area = 0.0
    for side in (-1, 1):
        for near, far in pairwise([0, 0.5, 1, 2, 4, 8, 16, 32, 64, 200, 1e3, 1e4, 1e5, 1e6]):
            z = y + side * (0.5 * (near + far) + 0.5 * (far - near) * nodes)
            outside = scipy.special.stdtr(df, -side * (z - m) / s).mean(0)
            area += 0.5 * (far - near) * float(weights @ outside**2)
    found = student(df, loc, scale).crps(torch.tensor([[y]], dtype=F64)).item()
    assert found == pytest.approx(area, rel=1e-8)


def test_without_a_mean_there_is_no_score_by_distances():
    one = torch.ones(1, 1, 1)
    assert bool(student(1.0, one, one).crps(torch.zeros(1, 1)).isnan())
    assert bool(student(1.1, one, one).crps(torch.zeros(1, 1)).isfinite())


@given(seed=st.integers(0, 10**6), shift=st.floats(-1e3, 1e3), factor=st.floats(0.01, 100.0))
def test_the_score_has_the_units_of_y_and_does_not_depend_on_their_origin(seed, shift, factor):
    loc, scale, y = made(seed, 12, 3, 1), made(seed + 1, 12, 3, 1).exp(), made(seed + 2, 3, 1)
    here = Predictive(Normal(loc, scale)).crps(y)
    there = Predictive(Normal(shift + factor * loc, factor * scale)).crps(shift + factor * y)
    torch.testing.assert_close(there, factor * here, rtol=1e-7, atol=0)
    assert float(here.min()) > 0


def test_the_true_law_has_the_best_expected_score():
    """Proper: the mean score over draws from N(0, 1) is least for N(0, 1) itself."""
    y = torch.special.ndtri((torch.arange(2001, dtype=F64) + 0.5) / 2001).reshape(-1, 1)
    score = {
        (m, s): float(Predictive(Normal(torch.full((1, 2001, 1), m, dtype=F64), s)).crps(y).mean())
        for m in (-0.2, 0.0, 0.2)
        for s in (0.8, 1.0, 1.25)
    }
    assert min(score, key=score.get) == (0.0, 1.0)
    assert score[0.0, 1.0] == pytest.approx(1 / math.sqrt(math.pi), rel=1e-3)


def test_a_point_forecast_has_the_absolute_error():
    loc = torch.full((3, 1, 1), 2.0, dtype=F64)
    narrow = Predictive(Normal(loc, torch.full_like(loc, 1e-9)))
    assert narrow.crps(torch.tensor([[5.0]], dtype=F64)).item() == pytest.approx(3.0, abs=1e-8)
