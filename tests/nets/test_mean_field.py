"""mean_field: its gradient against autograd, its bound against the evidence, its optimum in closed form."""

import warnings

import pytest
import torch
from torch import nn
from torch.distributions import HalfNormal, Independent, Laplace, MultivariateNormal, Normal, StudentT, kl_divergence
from torch.utils.data import DataLoader, TensorDataset

from bnnlib.nets import Bernoulli, Gaussian, Model, mean_field
from bnnlib.nets._variational import Nelbo
from bnnlib.variational import MeanField

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def small_net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def line(inputs, outputs):
    net = nn.Linear(inputs, outputs, bias=False).double()
    nn.init.constant_(net.weight, 0.1)
    return net


def run(model, data, seed=0, **settings):
    return mean_field(model, data, generator=generator(seed), **{"steps": 50, "progress": False, **settings})


def one_step(model, loc, log_scale, x, y, *, draws=1, kl_weight=1.0, ratio=1.0, seed=0):
    """Gradients in loc and log_scale, and (nll, kl), as the library computes them."""
    family, record = MeanField(model.size, loc, log_scale.exp()), torch.zeros(2, dtype=F64)
    Nelbo(model, family, draws, generator(seed)).step(x, y, ratio, kl_weight, record)
    return family.loc.grad, family.log_scale.grad, record


def written_out(model, loc, log_scale, x, y, *, draws=1, kl_weight=1.0, ratio=1.0, seed=0):
    """The same by autograd from the formula: KL in closed form where there is one, else by the same draws."""
    loc, log_scale = loc.clone().requires_grad_(), log_scale.clone().requires_grad_()
    scale, source, size = log_scale.exp(), generator(seed), model.net_size
    nll = kl = torch.zeros((), dtype=F64)
    for _ in range(draws):
        w = loc + scale * torch.randn(len(loc), generator=source, dtype=F64)
        nll = nll - ratio * model.log_likelihood(w, x, y) / draws
        closed = size if model.prior.normal else 0
        # E_q[log q] is minus the entropy, E_q[log p] of what has no closed form is taken at the draw.
        kl = kl - Normal(loc[closed:], scale[closed:]).entropy().sum() / draws
        kl = (
            kl
            - (model.likelihood.unknown_log_prior(w[size:]) + (0 if closed else model.prior.log_prob(w[:size]))) / draws
        )
    if model.prior.normal:
        prior = Normal(model.prior.loc.double(), model.prior.scale.double())
        kl = kl + kl_divergence(Normal(loc[:size], scale[:size]), prior).sum()
    return *torch.autograd.grad(nll + kl_weight * kl, (loc, log_scale)), torch.stack([nll, kl]).detach()


@pytest.mark.parametrize(
    "settings", [{}, {"draws": 3}, {"kl_weight": 0.3}, {"draws": 3, "kl_weight": 0.3, "ratio": 7.5}]
)
@pytest.mark.parametrize("noise", [0.3, HalfNormal(1.0), HalfNormal(torch.ones(1))], ids=["known", "one", "per output"])
@pytest.mark.parametrize("prior", [None, 0.7, Laplace(0.0, 1.0), StudentT(4.0), {"0.*": StudentT(4.0)}], ids=str)
def test_the_gradient_written_by_hand_is_autograds(prior, noise, settings):
    """Source: autograd of the NELBO, written with torch.distributions, for the same noise of the draw."""
    model, x, y = Model(small_net(), Gaussian(scale=noise), prior), normals(6, 2), normals(6, 1, seed=1)
    loc, log_scale = model.start() + 0.1, normals(model.size, seed=2)
    own = one_step(model, loc, log_scale, x, y, **settings)
    exact = written_out(model, loc, log_scale, x, y, **settings)
    for a, b in zip(own, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("prior", [None, 0.7, {"0.weight": Normal(0.5, 2.0)}], ids=str)
def test_the_recorded_kl_is_torchs(prior):
    """Source: torch.distributions.kl_divergence."""
    model = Model(small_net(), Bernoulli(), prior)
    loc, log_scale = model.start() - 0.2, normals(model.size)
    kl = one_step(model, loc, log_scale, normals(3, 2), torch.ones(3, 1, dtype=F64))[2][1]
    exact = kl_divergence(Normal(loc, log_scale.exp()), Normal(model.prior.loc, model.prior.scale)).sum()
    torch.testing.assert_close(kl, exact, rtol=1e-12, atol=1e-12)


def orthogonal():
    """A regression with orthogonal columns, so that its exact posterior factorises: model, data, mean, sd, evidence."""
    x = torch.linalg.qr(normals(20, 3))[0] * torch.tensor([1.0, 2.0, 5.0], dtype=F64)
    y = x @ normals(3, 1, seed=1) + 0.4 * normals(20, 1, seed=2)
    model = Model(line(3, 1), Gaussian(scale=0.4), 0.8)
    precision = (x.T @ x).diagonal() / 0.16 + 1 / 0.64
    mean = (x.T @ y)[:, 0] / 0.16 / precision
    marginal = MultivariateNormal(torch.zeros(20, dtype=F64), 0.64 * x @ x.T + 0.16 * torch.eye(20, dtype=F64))
    return model, x, y, mean, precision.rsqrt(), marginal.log_prob(y[:, 0])


def test_at_the_posterior_the_bound_is_the_evidence():
    """E_q[log p(D | w)] - KL = log p(D) where q is the posterior; the draw-wise form holds for each single draw."""
    model, x, y, mean, sd, evidence = orthogonal()
    q = Independent(Normal(mean, sd), 1)
    for w in mean + sd * normals(5, 3, seed=9):
        torch.testing.assert_close(model.log_joint(w, x, y) - q.log_prob(w), evidence, rtol=1e-11, atol=0)
    # A step takes the KL in closed form, so its bound moves with the draw: the mean, within five standard errors.
    log_scale = sd.log()
    records = torch.stack([one_step(model, mean, log_scale, x, y, seed=s)[2].sum() for s in range(2000)])
    assert abs(float(records.mean() + evidence)) < 5 * float(records.std()) / 2000**0.5


def correlated():
    """A regression whose columns depend on each other: model, data, exact mean and precision of the posterior."""
    x = normals(40, 2) @ torch.tensor([[1.0, 0.9], [0.0, 0.3]], dtype=F64)
    y = x @ torch.tensor([[1.0], [-0.5]], dtype=F64) + 0.5 * normals(40, 1, seed=1)
    precision = x.T @ x / 0.25 + torch.eye(2, dtype=F64)
    mean = torch.linalg.solve(precision, x.T @ y / 0.25)[:, 0]
    return Model(line(2, 1), Gaussian(scale=0.5), 1.0), x, y, mean, precision


@pytest.mark.parametrize("case", ["orthogonal", "correlated"])
def test_the_gradient_at_the_optimum_has_no_mean(case):
    """Source: Bishop (2006), 10.1.2: loc = exact mean, variance = 1 / diagonal of the precision."""
    if case == "orthogonal":
        model, x, y, mean, sd, _ = orthogonal()
    else:
        model, x, y, mean, precision = correlated()
        sd = precision.diagonal().rsqrt()
    steps = [one_step(model, mean, sd.log(), x, y, seed=s)[:2] for s in range(2000)]
    for gradients in (torch.stack(g) for g in zip(*steps, strict=True)):
        assert bool((gradients.mean(0).abs() < 5 * gradients.std(0) / 2000**0.5).all())


def test_training_finds_the_optimum_and_it_is_narrower_than_the_marginals():
    """The same optimum, now reached by steps; a tenth of a standard deviation is what Adam leaves."""
    model, x, y, mean, precision = correlated()
    q = run(model, (x, y), steps=1500, lr=0.02, draws=4, decay=0.8).distribution
    sd = precision.diagonal().rsqrt()
    assert bool(((q.mean - mean).abs() < 0.1 * sd).all())
    torch.testing.assert_close(q.stddev, sd, rtol=0.05, atol=0)
    assert bool((q.stddev < 0.8 * torch.linalg.inv(precision).diagonal().sqrt()).all())


def test_without_data_the_posterior_is_the_prior():
    """The KL alone is zero at q = prior. The data are removed by inputs of zero to a net without biases."""
    model = Model(line(3, 2), Gaussian(scale=1.0), {"weight": Normal(0.3, 0.6)})
    x, y = torch.zeros(5, 3, dtype=F64), normals(5, 2)
    posterior = run(model, (x, y), steps=1500, lr=0.05)
    torch.testing.assert_close(posterior.mean, torch.full((6,), 0.3, dtype=F64), rtol=0, atol=1e-4)
    torch.testing.assert_close(posterior.distribution.stddev, torch.full((6,), 0.6, dtype=F64), rtol=1e-4, atol=0)
    assert float(posterior.history["kl"][-1]) < 1e-6


def test_the_mean_of_mini_batches_is_the_full_step():
    """For the same draw, the gradients of the batches of a partition average to the gradient of all data."""
    model, x, y = Model(small_net(), Gaussian(scale=HalfNormal(1.0))), normals(12, 2), normals(12, 1, seed=1)
    loc, log_scale = model.start(), normals(model.size, seed=2)
    full = one_step(model, loc, log_scale, x, y)
    parts = [one_step(model, loc, log_scale, a, b, ratio=3.0) for a, b in zip(x.split(4), y.split(4), strict=True)]
    for own, batches in zip(full, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(torch.stack(batches).mean(0), own, rtol=1e-12, atol=1e-12)


def test_equal_seeds_give_equal_results():
    model, x, y = Model(small_net(), Gaussian(scale=HalfNormal(1.0))), normals(12, 2), normals(12, 1, seed=1)
    a, b, c = (run(model, (x, y), seed) for seed in (0, 0, 1))
    assert torch.equal(a.mean, b.mean)
    assert torch.equal(a.history["nelbo"], b.history["nelbo"])
    assert not torch.equal(a.mean, c.mean)


def test_a_loader_of_one_batch_is_the_pair():
    """Also the loader's last, smaller batch is scaled by its own size: the recorded nll is of all n points."""
    model, x, y = Model(small_net(), Gaussian(scale=HalfNormal(1.0))), normals(12, 2), normals(12, 1, seed=1)
    whole = run(model, DataLoader(TensorDataset(x, y), batch_size=12))
    assert torch.equal(whole.mean, run(model, (x, y)).mean)
    flat, same = line(2, 1), TensorDataset(torch.zeros_like(x), torch.ones(12, 1, dtype=F64))
    history = run(
        Model(flat, Gaussian(scale=1.0), 1.0), DataLoader(same, batch_size=5), steps=3, init_scale=1e-9, lr=1e-12
    ).history
    torch.testing.assert_close(history["nll"], history["nll"][:1].expand(3), rtol=1e-9, atol=0)


def test_history_adds_up_and_tempering_is_named():
    model, x, y = Model(small_net(), Gaussian(scale=0.5)), normals(12, 2), normals(12, 1, seed=1)
    cold, true = run(model, (x, y), kl_weight=0.25), run(model, (x, y))
    h = cold.history
    torch.testing.assert_close(h["nelbo"], h["nll"] + 0.25 * h["kl"])
    assert h["nelbo"].shape == (50,)
    assert "TEMPERED: kl_weight=0.25" in repr(cold)
    assert "TEMPER" not in repr(true)


def test_training_leaves_the_net_and_torchs_generator_alone(capsys):
    net, before = small_net(), torch.random.get_rng_state()
    copy = [p.detach().clone() for p in net.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(Model(net, Gaussian(scale=HalfNormal(1.0))), (normals(12, 2), normals(12, 1)))
    assert all(
        torch.equal(p, c) and p.grad is None and p.requires_grad for p, c in zip(net.parameters(), copy, strict=True)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert capsys.readouterr() == ("", "")
