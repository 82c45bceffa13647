"""Mixtures of posteriors: the prediction is the mixture of the members' predictions, and a file holds them all."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import HalfNormal, Independent, MultivariateNormal, Normal

from bnnlib.data import Standardized, quintic
from bnnlib.metrics import coverage
from bnnlib.nets import (
    Categorical,
    Gaussian,
    Model,
    Posterior,
    StudentT,
    ensemble,
    laplace,
    map_estimate,
    mean_field,
    mixture,
    sgld,
)
from bnnlib.nets.empirical import Empirical
from bnnlib.nets.mixture import Mixture, joined
from bnnlib.predictive import Predictive

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def small_net(outputs=1):
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, outputs)).double()
    for i, p in enumerate(net.parameters()):
        p.data = 0.5 * normals(*p.shape, seed=20 + i)
    return net


X, Y, NEW = normals(12, 2), normals(12, 1, seed=1), normals(5, 2, seed=2)
DATA = Standardized(X, 10 * Y + 3)


def model(noise=None):
    return Model(small_net(), Gaussian(scale=HalfNormal(1.0) if noise is None else noise))


def of_laplace(noise=None, **extra):
    return ensemble(
        model(noise), DATA, members=3, method=laplace, settings={"steps": 30, "burn_in": 5}, progress=False,
        generator=generator(), **extra,
    )  # fmt: skip


@pytest.mark.parametrize("noise", [None, 0.4], ids=["learned", "known"])
def test_an_ensemble_of_laplace_predicts_the_mixture_of_its_members(noise):
    """Source: density, mean and variance of the members' own predictions, put together by hand."""
    posterior, y = of_laplace(noise), normals(5, 1, seed=3)
    parts = [m.predict(NEW) for m in posterior.members]
    whole = posterior.predict(NEW)
    density = torch.stack([p.log_prob(y) for p in parts]).logsumexp(0) - math.log(3)
    torch.testing.assert_close(whole.log_prob(y), density, rtol=1e-10, atol=1e-12)
    means = torch.stack([p.mean for p in parts])
    assert float(means.std(0).min()) > 0.01
    torch.testing.assert_close(whole.mean, means.mean(0), rtol=1e-10, atol=1e-12)
    variance = torch.stack([p.epistemic_var for p in parts]).mean(0) + means.var(0, correction=0)
    torch.testing.assert_close(whole.epistemic_var, variance, rtol=1e-9, atol=1e-12)
    moments = posterior.moments(NEW)
    for name in ("mean", "epistemic", "aleatoric", "total"):
        torch.testing.assert_close(getattr(moments, name), getattr(whole, name), rtol=1e-9, atol=1e-12)


def test_each_member_has_its_own_start_and_bootstrap_sample():
    means = [m.mean for m in of_laplace(0.4).members]
    assert not torch.allclose(means[0], means[1])
    assert not torch.allclose(means[0], of_laplace(0.4, bootstrap=True).members[0].mean)


def test_functions_come_from_all_members_equally():
    posterior = of_laplace()
    drawn = posterior.functions(NEW, 6, generator())
    source = generator()
    exact = torch.cat([m.functions(NEW, 2, source) for m in posterior.members])
    assert torch.equal(drawn, exact)
    assert posterior.functions(NEW, 7, generator()).shape == (7, 5, 1)
    assert posterior.sample(2, generator()).shape == (2, posterior.model.size)


def point(w, own):
    return Posterior(own, Empirical(w), "test")


def test_members_of_different_kinds_weigh_the_same():
    """Two values, one value, and a linearised band: each member has a third of the mixture."""
    own = model(0.4)
    members = [point(normals(2, own.size), own), point(normals(1, own.size, seed=4), own)]
    members.append(laplace(own, (X, Y), steps=20, burn_in=2, progress=False))
    whole, y = mixture(members).predict(NEW, draws=6), normals(5, 1, seed=3)
    density = torch.stack([m.predict(NEW, draws=2).log_prob(y) for m in members]).logsumexp(0) - math.log(3)
    torch.testing.assert_close(whole.log_prob(y), density, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("likelihood", [Categorical(), StudentT(4.0, scale=0.3)], ids=str)
def test_other_likelihoods(likelihood):
    outputs = 3 if isinstance(likelihood, Categorical) else 1
    own = Model(small_net(outputs), likelihood)
    y = torch.arange(5) % 3 if outputs == 3 else normals(5, 1)
    members = [point(normals(2, own.size, seed=s), own) for s in range(3)]
    density = torch.stack([m.predict(NEW).log_prob(y) for m in members]).logsumexp(0) - math.log(3)
    torch.testing.assert_close(mixture(members).predict(NEW).log_prob(y), density, rtol=1e-10, atol=1e-12)


def test_the_distribution_is_the_mixture():
    """Source: torch's MixtureSameFamily."""
    loc, scale = normals(3, 4), normals(3, 4, seed=1).exp()
    q = Mixture([Independent(Normal(m, s), 1) for m, s in zip(loc, scale, strict=True)])
    pick = torch.distributions.Categorical(torch.ones(3, dtype=F64))
    exact = torch.distributions.MixtureSameFamily(pick, Independent(Normal(loc, scale), 1))
    w = normals(6, 4, seed=2)
    for a, b in ((q.log_prob(w), exact.log_prob(w)), (q.mean, exact.mean), (q.variance, exact.variance)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert q.sample((2, 3)).shape == (2, 3, 4)


def test_unequal_numbers_of_draws_weigh_each_draw_of_a_member_the_same():
    """Source: the mean of the members' means, by hand."""
    sets = [torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([[10.0], [20.0]])]
    parts = [Predictive(Normal(v.unsqueeze(-1), torch.ones(1, 1, 1))) for v in sets]
    assert joined(parts).mean.item() == pytest.approx((3.0 + 15.0) / 2, rel=1e-6)


@pytest.mark.parametrize("method", [laplace, mean_field, map_estimate])
def test_files_give_equal_predictions(method, tmp_path):
    own = model()
    posterior = ensemble(
        own, DATA, members=2, method=method, settings={"steps": 20}, progress=False, generator=generator()
    )
    mixture([posterior, posterior]).save(tmp_path / "p.pt")
    again = Posterior.load(tmp_path / "p.pt", own)
    assert again.method == f"mixture of ensemble of {method.__name__}"
    assert len(again.members[0].members) == 2
    a, b = (p.predict(NEW, draws=8, generator=generator()) for p in (again, mixture([posterior, posterior])))
    assert torch.equal(a.mean, b.mean)
    assert torch.equal(a.epistemic_var, b.epistemic_var)
    assert torch.equal(again.sample(3, generator()), mixture([posterior, posterior]).sample(3, generator()))


def test_tempering_and_interrupts_are_named(monkeypatch):
    own, settings = model(), {"steps": 10, "kl_weight": 0.5}
    cold = ensemble(own, DATA, members=2, method=mean_field, settings=settings, progress=False, generator=generator())
    assert "TEMPERED: kl_weight=0.5" in repr(cold)
    walk = {"draws": 3, "warmup": 4, "chains": 1, "temperature": 0.1}
    cold = ensemble(own, DATA, members=2, method=sgld, settings=walk, progress=False, generator=generator())
    assert "TEMPERED: temperature=0.1" in repr(cold)
    assert "TEMPERED" not in repr(mixture([map_estimate(own, DATA, steps=3, progress=False)]))
    runs = []

    def interrupted(own, data, **settings):
        runs.append(1)
        found = map_estimate(own, data, steps=3, progress=False)
        found.diagnostics["interrupted"] = float(len(runs) == 2)
        return found

    posterior = ensemble(own, DATA, members=5, method=interrupted, progress=False)
    assert len(posterior.members) == 2
    assert "interrupted" in repr(posterior)


def test_what_does_not_belong_together_is_refused():
    a, b = model(), Model(small_net(), Gaussian(scale=0.1))
    with pytest.raises(ValueError, match="at least one"):
        mixture([])
    with pytest.raises(ValueError, match="number 1 belongs to another model: its likelihood differs"):
        mixture([point(normals(1, a.size), a), point(normals(1, b.size), b)])
    with pytest.raises(ValueError, match="in other units"):
        mixture([map_estimate(a, d, steps=1, progress=False) for d in (DATA, Standardized(X, Y))])
    with pytest.raises(TypeError, match="number 0 is a Model, not a Posterior"):
        mixture([a])
    with pytest.raises(TypeError, match="number 1 is a MultivariateNormal"):
        mixture([point(normals(1, a.size), a), MultivariateNormal(torch.zeros(2), torch.eye(2))])


@pytest.mark.slow
def test_on_a_curve_with_a_gap_an_ensemble_comes_near_laplace():
    """Held-out nats a point outside the gap; the ensemble has the default prior, laplace one fitted by its evidence."""
    source, gaps, covered = generator(), [], []
    for seed in range(2):
        train = quintic(500, "normal", 0.58, generator=source)
        test = quintic(2000, "normal", 0.58, spacing="random", generator=source)
        seen, asked = (((d.x < 0.2) | (d.x > 1.2))[:, 0] for d in (train, test))
        data, x, y = Standardized(train.x[seen], train.y[seen]), test.x[asked], test.y[asked]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1))
        own = Model(net, Gaussian(scale=HalfNormal(1.0)))
        best = laplace(own, data, progress=False).predict(x)
        found = ensemble(own, data, generator=source, progress=False).predict(x)
        gaps.append(float((best.log_prob(y) - found.log_prob(y)).mean()))
        covered.append(coverage(found, y))
    assert -0.01 < sum(gaps) / 2 < 0.06
    assert 0.92 < sum(covered) / 2 < 0.98
