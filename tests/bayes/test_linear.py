"""Linear regression: two routes to each number, least squares as a limit, and what bad input is told."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.distributions import MultivariateNormal, Normal

from bnnlib.bayes import LinearRegression, bayes_rule
from bnnlib.predictive import Predictive

F64 = torch.float64


def task(n=12, d=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=F64)
    y = x @ torch.randn(d, 1, generator=g, dtype=F64) + 0.7 + 0.4 * torch.randn(n, 1, generator=g, dtype=F64)
    return x, y


def design(x):
    return np.column_stack([np.ones(len(x)), x.numpy()])


SCALES = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=F64)
BELIEF = LinearRegression(noise_scale=0.4, prior_scale=SCALES)


@pytest.mark.parametrize("n", [1, 3, 12, 300])
def test_the_evidence_by_two_routes(n):
    x, y = task(n)
    phi = design(x)
    covariance = phi @ np.diag(SCALES.numpy() ** 2) @ phi.T + 0.4**2 * np.eye(n)
    in_function_space = stats.multivariate_normal(np.zeros(n), covariance).logpdf(y[:, 0].numpy())
    assert BELIEF.log_evidence(x, y).item() == pytest.approx(in_function_space, abs=1e-8)


def test_the_evidence_with_a_number_as_prior_scale():
    x, y = task()
    covariance = 0.1**2 * design(x) @ design(x).T + 0.3**2 * np.eye(len(x))
    belief = LinearRegression(noise_scale=0.3, prior_scale=0.1)
    in_function_space = stats.multivariate_normal(np.zeros(len(x)), covariance).logpdf(y[:, 0].numpy())
    assert belief.log_evidence(x, y).item() == pytest.approx(in_function_space, abs=1e-8)


def test_the_prediction_equals_its_gaussian_process():
    (x, y), (new, _) = task(), task(5, seed=1)
    phi, ahead = torch.tensor(design(x)), torch.tensor(design(new))
    prior = torch.diag(SCALES**2)
    gain = ahead @ prior @ phi.T @ torch.linalg.inv(phi @ prior @ phi.T + 0.16 * torch.eye(len(x), dtype=F64))
    mean = gain @ y
    var = (ahead @ prior @ ahead.T - gain @ phi @ prior @ ahead.T).diagonal()
    prediction = BELIEF.fit(x, y).predict(new)
    assert isinstance(prediction, Predictive)
    torch.testing.assert_close(prediction.mean, mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(prediction.epistemic_var[:, 0], var, rtol=0, atol=1e-10)
    torch.testing.assert_close(prediction.aleatoric_var, torch.full_like(mean, 0.16), rtol=0, atol=1e-12)
    torch.testing.assert_close(prediction.total_var[:, 0], var + 0.16, rtol=0, atol=1e-10)


def test_one_weight_against_a_grid():
    x, y = task(6, 1)
    belief = LinearRegression(noise_scale=0.4, prior_scale=1.5, features=lambda x: x)
    grid = torch.linspace(-12, 12, 60_001, dtype=F64)
    log_likelihood = Normal(x * grid, 0.4).log_prob(y).sum(0)
    on_grid = bayes_rule(Normal(0 * grid, 1.5).log_prob(grid), log_likelihood, log=True)
    exact = belief.fit(x, y).weights
    torch.testing.assert_close(
        exact.log_prob(grid[:, None]).exp(), on_grid.posterior / (24 / 60_000), rtol=0, atol=1e-6
    )
    assert on_grid.log_evidence.item() == pytest.approx(belief.log_evidence(x, y).item(), abs=1e-8)


def test_a_flat_prior_is_least_squares():
    x, y = task(20)
    phi = design(x)
    fitted = LinearRegression(noise_scale=0.4, prior_scale=math.inf).fit(x, y).weights
    solution = np.linalg.lstsq(phi, y[:, 0].numpy(), rcond=None)[0]
    np.testing.assert_allclose(fitted.loc, solution, atol=1e-10)
    np.testing.assert_allclose(fitted.covariance_matrix, 0.16 * np.linalg.inv(phi.T @ phi), atol=1e-10)


def test_the_mean_is_ridge_regression():
    from sklearn.linear_model import Ridge

    x, y = task(20)
    fitted = LinearRegression(noise_scale=0.4, prior_scale=0.5, features=lambda x: x).fit(x, y).weights
    ridge = Ridge(alpha=(0.4 / 0.5) ** 2, fit_intercept=False, solver="cholesky").fit(x, y[:, 0])
    np.testing.assert_allclose(fitted.loc, ridge.coef_, atol=1e-10)


@given(st.integers(1, 11), st.integers(0, 5))
def test_two_parts_equal_the_whole_and_their_evidences_add(cut, seed):
    x, y = task(seed=seed)
    first = BELIEF.fit(x[:cut], y[:cut])
    whole, parts = BELIEF.fit(x, y), first.fit(x[cut:], y[cut:])
    torch.testing.assert_close(parts.weights.loc, whole.weights.loc, rtol=0, atol=1e-10)
    torch.testing.assert_close(parts.weights.covariance_matrix, whole.weights.covariance_matrix, rtol=0, atol=1e-10)
    added = BELIEF.log_evidence(x[:cut], y[:cut]) + first.log_evidence(x[cut:], y[cut:])
    assert added.item() == pytest.approx(BELIEF.log_evidence(x, y).item(), abs=1e-8)
    assert (parts.n, whole.n, BELIEF.n) == (len(x), len(x), 0)


def test_drawn_functions_have_the_predicted_moments():
    (x, y), (new, _) = task(), task(4, seed=2)
    fitted = BELIEF.fit(x, y)
    draws = fitted.sample_functions(new, 40_000, torch.Generator().manual_seed(1))
    assert draws.shape == (40_000, 4, 1)
    prediction = fitted.predict(new)
    torch.testing.assert_close(draws.mean(0), prediction.mean, rtol=0, atol=0.01)
    torch.testing.assert_close(draws.std(0), prediction.epistemic, rtol=0.02, atol=0)
    state = torch.get_rng_state()
    again = fitted.sample_functions(new, 40_000, torch.Generator().manual_seed(1))
    assert torch.equal(draws, again)
    assert torch.equal(state, torch.get_rng_state())


def test_the_belief_before_the_data_predicts_too():
    new = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=F64)
    prediction = BELIEF.predict(new)
    torch.testing.assert_close(prediction.epistemic_var[:, 0], torch.tensor([0.25, 1.25], dtype=F64))
    torch.testing.assert_close(BELIEF.weights.covariance_matrix, torch.diag(SCALES**2))


def test_ignorance_shrinks_and_noise_stays():
    new = torch.zeros(1, 3, dtype=F64)
    predictions = [BELIEF.fit(*task(n)).predict(new) for n in (10, 100, 1000, 10_000)]
    epistemic = torch.cat([p.epistemic for p in predictions])
    assert ((epistemic[1:] / epistemic[:-1] - 10**-0.5).abs() < 0.12).all()
    torch.testing.assert_close(torch.cat([p.aleatoric for p in predictions]), torch.full((4, 1), 0.4, dtype=F64))


def test_its_95_percent_intervals_hold_95_percent():
    g = torch.Generator().manual_seed(7)
    hits, tasks = 0, 400
    for _ in range(tasks):  # truth drawn from the prior: then the coverage is exact on average
        x = torch.randn(9, 3, generator=g, dtype=F64)
        w = SCALES * torch.randn(4, generator=g, dtype=F64)
        y = (torch.tensor(design(x)) @ w + 0.4 * torch.randn(9, generator=g, dtype=F64))[:, None]
        low, high = BELIEF.fit(x[:8], y[:8]).predict(x[8:]).interval(0.95)
        hits += int(low <= y[8:] <= high)
    assert hits / tasks == pytest.approx(0.95, abs=0.03)


def test_columns_of_very_different_units_are_no_singularity():
    x, y = task(30, 1)
    for unit in (1e-9, 1e9):
        fitted = LinearRegression(noise_scale=0.4, prior_scale=math.inf).fit(unit * x, y).weights
        reference = LinearRegression(noise_scale=0.4, prior_scale=math.inf).fit(x, y).weights
        assert fitted.loc[1].item() * unit == pytest.approx(reference.loc[1].item(), rel=1e-9)


def test_its_weights_are_a_torch_distribution():
    fitted = BELIEF.fit(*task())
    assert isinstance(fitted.weights, MultivariateNormal)
    assert "n=12" in repr(fitted)


X, Y = task()
FLAT = LinearRegression(noise_scale=1.0, prior_scale=math.inf)


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda: LinearRegression(noise_scale=0.0), ValueError, "noise_scale"),
        (lambda: LinearRegression(noise_scale=math.nan), ValueError, "noise_scale"),
        (lambda: LinearRegression(noise_scale=1.0, prior_scale=-1.0), ValueError, "prior_scale"),
        (lambda: LinearRegression(noise_scale=1.0, prior_scale=torch.ones(2, 2)), ValueError, "shape"),
        (lambda: LinearRegression(noise_scale=1.0).weights, ValueError, "after fit"),
        (lambda: BELIEF.fit(X, Y[:5]), ValueError, "12 rows"),
        (lambda: BELIEF.fit(X, Y[:, 0]), ValueError, "reshape"),
        (lambda: BELIEF.fit(X[:, 0], Y), ValueError, "reshape"),
        (lambda: BELIEF.fit(X[:0], Y[:0]), ValueError, "empty"),
        (lambda: BELIEF.fit(X, Y * math.nan), ValueError, "NaN"),
        (lambda: BELIEF.fit(X, Y.float()), TypeError, "convert"),
        (lambda: BELIEF.fit(X.long(), Y), TypeError, "floating-point"),
        (lambda: BELIEF.fit(X[:, :1], Y), ValueError, "for 4 weights"),
        (lambda: BELIEF.fit(X, Y).predict(X[:, :1]), ValueError, "the fit had 4"),
        (lambda: BELIEF.predict(X[:, :1] * math.nan), ValueError, "features"),
        (lambda: LinearRegression(noise_scale=1.0, features=lambda x: x[0]).fit(X, Y), ValueError, "return"),
        (lambda: FLAT.fit(X[:2], Y[:2]), ValueError, "rank 2 for 4"),
        (lambda: FLAT.fit(torch.cat([X, X[:, :1]], -1), Y), ValueError, "singular design"),
        (lambda: FLAT.log_evidence(X, Y), ValueError, "no evidence"),
        (lambda: FLAT.predict(X), ValueError, "singular"),
        (lambda: BELIEF.sample_functions(X, 0), ValueError, "at least one"),
    ],
)
def test_bad_input(call, kind, says):
    with pytest.raises(kind, match=says):
        call()
