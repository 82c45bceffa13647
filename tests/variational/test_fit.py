"""fit: each family's optimum where it is known, and the loop around the steps."""

import sys

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal

from bnnlib.variational import Flow, FullRank, LowRank, MeanField, fit, kl

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def run(log_joint, family, seed=0, **settings):
    return fit(log_joint, family, generator=generator(seed), progress=False, **settings)


def regression():
    """A linear Gaussian model whose three weights depend on each other: log joint, exact posterior, log evidence."""
    mix = torch.tensor([[1.0, 0.8, 0.5], [0.0, 0.5, 0.4], [0.0, 0.0, 0.6]], dtype=F64)
    x = torch.randn(12, 3, generator=generator(1), dtype=F64) @ mix
    y = x @ torch.tensor([1.0, -0.5, 0.3], dtype=F64) + 0.8 * torch.randn(12, generator=generator(2), dtype=F64)

    def log_joint(w):
        return Normal(0.0, 1.0).log_prob(w).sum(-1) + Normal(w @ x.T, 0.8).log_prob(y).sum(-1)

    precision = torch.eye(3, dtype=F64) + x.T @ x / 0.64
    posterior = MultivariateNormal(torch.linalg.solve(precision, x.T @ y / 0.64), precision_matrix=precision)
    marginal = MultivariateNormal(torch.zeros(12, dtype=F64), x @ x.T + 0.64 * torch.eye(12, dtype=F64))
    return log_joint, posterior, float(marginal.log_prob(y))


LOG_JOINT, POSTERIOR, EVIDENCE = regression()
PRECISION = POSTERIOR.precision_matrix
BEST_FACTORISED = Independent(Normal(POSTERIOR.mean, PRECISION.diagonal().rsqrt()), 1)


def test_the_full_rank_optimum_is_the_posterior():
    """There is nothing left to lose: the divergence is zero and the last draws' bounds are the evidence itself."""
    found = run(LOG_JOINT, FullRank(3, dtype=F64), steps=800, lr=0.04, draws=32, decay=0.8)
    q = found.distribution
    assert float(kl(q, POSTERIOR)) < 2e-3
    sd = POSTERIOR.stddev
    assert bool(((q.mean - POSTERIOR.mean).abs() < 0.05 * sd).all())
    torch.testing.assert_close(
        q.covariance_matrix, POSTERIOR.covariance_matrix, rtol=0, atol=0.06 * float(sd.max()) ** 2
    )
    torch.testing.assert_close(found.history["nelbo"][-20:], torch.full((20,), -EVIDENCE, dtype=F64), rtol=0, atol=0.15)


def test_the_mean_field_optimum_is_one_over_the_precisions_diagonal():
    """Source: Bishop (2006), 10.1.2. The divergence at that optimum is a closed form too."""
    q = run(LOG_JOINT, MeanField(3, dtype=F64), steps=800, lr=0.03, draws=32, decay=0.8).distribution
    torch.testing.assert_close(q.variance, 1 / PRECISION.diagonal(), rtol=0.05, atol=0)
    assert bool(((q.mean - POSTERIOR.mean).abs() < 0.1 * BEST_FACTORISED.stddev).all())
    assert bool((q.variance < 0.8 * POSTERIOR.variance).any())
    exact = 0.5 * (PRECISION.diagonal().log().sum() - torch.logdet(PRECISION))
    assert float(kl(BEST_FACTORISED, POSTERIOR)) == pytest.approx(float(exact), rel=1e-9)
    assert exact <= float(kl(q, POSTERIOR)) < float(exact) + 2e-3


def test_low_rank_lies_between():
    """One direction: what is lost is less than without it, and more than nothing."""
    q = run(LOG_JOINT, LowRank(3, 1, dtype=F64), steps=1000, lr=0.03, draws=8, decay=0.8).distribution
    assert 0 <= float(kl(q, POSTERIOR)) < 0.5 * float(kl(BEST_FACTORISED, POSTERIOR))


@pytest.mark.slow
def test_full_low_rank_is_full_rank():
    """With as many directions as unknowns every covariance can be had."""
    q = run(LOG_JOINT, LowRank(3, 3, dtype=F64), steps=1000, lr=0.03, draws=32, decay=0.8).distribution
    assert float(kl(q, POSTERIOR)) < 0.01


def banana(z):
    """A normal bent along a parabola: normalised, so that the best bound is zero."""
    return Normal(0.0, 1.0).log_prob(z[:, 0]) + Normal(z[:, 0] ** 2, 0.5).log_prob(z[:, 1])


@pytest.mark.slow
def test_a_flow_bends_where_normals_cannot():
    """The best normal stays more than 0.5 nats below the evidence, which is 0; the flow less than 0.1."""
    normal = run(banana, FullRank(2, dtype=F64), steps=1500, lr=0.02, draws=8)
    flow = run(banana, Flow(2, dtype=F64, generator=generator(1)), steps=2500, lr=0.02, draws=16)
    assert float(normal.history["nelbo"][-300:].mean()) > 0.5
    assert float(flow.history["nelbo"][-300:].mean()) < 0.1


@pytest.mark.parametrize("settings", [{"estimator": "analytic_entropy"}, {"estimator": "score", "draws": 20}], ids=str)
def test_the_other_estimators_arrive_there_too(settings):
    if settings["estimator"] == "score":
        settings = {**settings, "baseline": "leave_one_out"}
    q = run(LOG_JOINT, MeanField(3, scale=0.3, dtype=F64), steps=1000, lr=0.03, decay=0.7, **settings).distribution
    assert float(kl(q, BEST_FACTORISED)) < 0.02


def test_mini_batches_lead_to_the_same_optimum():
    """A log joint that picks its own batch, scaled by n / batch."""
    x = torch.randn(40, 2, generator=generator(1), dtype=F64)
    y, picks = x @ torch.tensor([1.0, -0.5], dtype=F64), generator(3)

    def log_joint(w):
        rows = torch.randint(40, (8,), generator=picks)
        return Normal(0.0, 1.0).log_prob(w).sum(-1) + 5 * Normal(w @ x[rows].T, 0.8).log_prob(y[rows]).sum(-1)

    precision = torch.eye(2, dtype=F64) + x.T @ x / 0.64
    q = run(log_joint, MeanField(2, dtype=F64), steps=1500, lr=0.03, decay=0.7).distribution
    best = Independent(Normal(torch.linalg.solve(precision, x.T @ y / 0.64), precision.diagonal().rsqrt()), 1)
    assert float(kl(q, best)) < 0.1


def test_the_family_stays_and_the_result_can_go_on():
    family = MeanField(3, dtype=F64)
    first = run(LOG_JOINT, family, steps=50, lr=0.03)
    assert bool((family.loc == 0).all())
    assert not first.distribution.mean.requires_grad
    assert first.history["nelbo"].shape == (50,)
    assert first.diagnostics == {"steps": 50.0, "interrupted": 0.0}
    second = run(LOG_JOINT, first.family, steps=500, lr=0.03)
    assert float(kl(second.distribution, POSTERIOR)) < float(kl(first.distribution, POSTERIOR))


def test_equal_seeds_give_equal_results_in_both_precisions(capsys):
    before = torch.random.get_rng_state()
    for dtype in (torch.float32, F64):
        a, b, c = (run(lambda z: -z.square().sum(-1), MeanField(2, dtype=dtype), s, steps=20) for s in (0, 0, 1))
        assert torch.equal(a.history["nelbo"], b.history["nelbo"])
        assert not torch.equal(a.history["nelbo"], c.history["nelbo"])
        assert a.distribution.mean.dtype == dtype
    assert torch.equal(torch.random.get_rng_state(), before)
    assert capsys.readouterr() == ("", "")


def test_an_interrupt_keeps_what_is_there():
    calls = []

    def log_joint(z):
        calls.append(0)
        if len(calls) == 32:  # the first call is the look before the steps
            raise KeyboardInterrupt
        return LOG_JOINT(z)

    with pytest.warns(UserWarning, match="interrupted after 30 of 500 steps") as caught:
        found = run(log_joint, MeanField(3, dtype=F64), steps=500)
    assert caught[0].filename == __file__
    assert repr(found) == "Fit(MeanField(3), 30 steps, interrupted)"
    assert found.history["nelbo"].shape == (30,)


def test_the_bar_is_seen_unless_switched_off(capsys, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    fit(LOG_JOINT, MeanField(3, dtype=F64), steps=3, generator=generator())
    assert "fit" in capsys.readouterr().err
    assert sys.stderr is not None
