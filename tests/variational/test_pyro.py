"""bnnlib's bound and fit against Pyro's: the same model written twice."""

import warnings

import pytest
import torch
from torch.distributions import Bernoulli, Normal

from bnnlib.variational import FullRank, MeanField, elbo, fit, gradient_variance

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pyro
    import pyro.distributions as dist
    from pyro.distributions import constraints
    from pyro.infer import SVI, Trace_ELBO
    from pyro.poutine import condition, replay, trace

F64 = torch.float64
ZEROS = torch.zeros(3, dtype=F64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


X = torch.randn(60, 3, generator=generator(1), dtype=F64)
Y = torch.bernoulli(torch.sigmoid(X @ torch.tensor([1.0, -2.0, 0.5], dtype=F64)), generator=generator(2))
LOC, SCALE = torch.tensor([0.5, -1.0, 0.2], dtype=F64), torch.tensor([0.3, 0.4, 0.2], dtype=F64)


@pytest.fixture(autouse=True)
def clean():
    pyro.clear_param_store()
    with torch.random.fork_rng():
        pyro.set_rng_seed(0)
        yield
    pyro.clear_param_store()


def log_joint(z):
    return Normal(ZEROS, 2.0).log_prob(z).sum(-1) + Bernoulli(logits=z @ X.T).log_prob(Y).sum(-1)


def model(batch=None):
    w = pyro.sample("w", dist.Normal(ZEROS, 2.0).to_event(1))
    with pyro.plate("data", len(X), subsample_size=batch) as rows:
        pyro.sample("y", dist.Bernoulli(logits=X[rows] @ w), obs=Y[rows])


def guide(batch=None):
    loc = pyro.param("loc", LOC.clone())
    scale = pyro.param("scale", SCALE.clone(), constraint=constraints.positive)
    pyro.sample("w", dist.Normal(loc, scale).to_event(1))


@pytest.mark.parametrize("estimator", ["reparameterised", "score"])
def test_the_bound_of_one_draw_is_equal(estimator):
    seen = []

    def watched(z):
        seen.append(z.detach())
        return log_joint(z)

    family = MeanField(3, loc=LOC, scale=SCALE)
    ours = elbo(watched, family, 5, estimator=estimator, generator=generator(7)).detach()
    for z, value in zip(seen[0], ours, strict=True):
        given = {"w": z}
        with torch.no_grad():
            p, q = (trace(condition(f, given)).get_trace().log_prob_sum() for f in (model, guide))
        assert (p - q).item() == pytest.approx(value.item(), abs=1e-10)


def test_the_expected_bound_is_equal():
    theirs = -torch.tensor([Trace_ELBO().loss(model, guide) for _ in range(1500)], dtype=F64)
    with torch.no_grad():
        ours = elbo(log_joint, MeanField(3, loc=LOC, scale=SCALE), 40_000, generator=generator(3))
    error = (theirs.var() / len(theirs) + ours.var() / len(ours)).sqrt()
    assert abs(theirs.mean() - ours.mean()) < 5 * error


@pytest.mark.slow
def test_the_expected_gradient_is_equal():
    svi, drawn = Trace_ELBO(), []
    guide()
    free = [pyro.get_param_store()._params[name] for name in ("loc", "scale")]  # scale is stored as its logarithm
    for _ in range(1500):
        for p in free:
            p.grad = None
        svi.loss_and_grads(model, guide)
        drawn.append(torch.cat([-p.grad for p in free]))
    theirs = torch.stack(drawn)
    ours = gradient_variance(log_joint, MeanField(3, loc=LOC, scale=SCALE), repeats=1500, generator=generator(4))
    error = (theirs.var(0) / len(theirs) + ours.variance / 1500).sqrt()
    assert ((theirs.mean(0) - ours.mean).abs() < 5 * error).all()
    # One reparameterised draw each: the same estimator, so the same scatter.
    assert ((theirs.var(0) / ours.variance).log().abs() < 5 * (2 * 4 / 1500) ** 0.5).all()


def test_mini_batches_are_scaled_alike():
    with torch.no_grad():
        drawn = trace(guide).get_trace()
        w = drawn.nodes["w"]["value"][None]
        for batch in (6, 20, 60):
            seen = trace(replay(model, drawn)).get_trace(batch)
            rows = seen.nodes["data"]["value"]
            ll = Bernoulli(logits=w @ X[rows].T).log_prob(Y[rows]).sum()
            expected = Normal(ZEROS, 2.0).log_prob(w).sum() + 60 / batch * ll
            assert seen.log_prob_sum().item() == pytest.approx(expected.item(), abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mean field", "full rank"])
def test_the_fits_are_equal(family):
    from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal

    auto = {"mean field": AutoDiagonalNormal, "full rank": AutoMultivariateNormal}[family](model, init_scale=0.5)
    adam = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.998}
    schedule = pyro.optim.ExponentialLR(adam)
    torch.set_default_dtype(F64)
    try:
        svi = SVI(model, auto, schedule, Trace_ELBO())
        for _ in range(2500):
            svi.step()
            schedule.step()
        theirs = auto.get_posterior()
    finally:
        torch.set_default_dtype(torch.float32)
    start = (MeanField if family == "mean field" else FullRank)(3, scale=0.5, dtype=F64)
    ours = fit(log_joint, start, lr=0.03, steps=2000, draws=8, generator=generator(5), progress=False).distribution
    sd = ours.stddev
    assert ((theirs.mean - ours.mean).abs() < 0.15 * sd).all()
    assert ((theirs.variance.sqrt() / sd - 1).abs() < 0.1).all()
    with torch.no_grad():
        bounds = [elbo(log_joint, q, 40_000, generator=generator(6)).mean().item() for q in (ours, theirs)]
    assert bounds[0] == pytest.approx(bounds[1], abs=0.03)
