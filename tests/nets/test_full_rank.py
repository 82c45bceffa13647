"""full_rank and low_rank: exact where a normal is exact, their gradients autograd's, and what all methods must hold."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.distributions import HalfNormal, Laplace, MultivariateNormal, Normal, kl_divergence
from torch.utils.data import DataLoader, TensorDataset

from bnnlib.data import Standardized, quintic
from bnnlib.nets import Gaussian, Model, Posterior, full_rank, low_rank, mean_field
from bnnlib.nets._variational import Nelbo
from bnnlib.variational import FullRank, LowRank

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def small_net(dtype=F64):
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)
    for i, p in enumerate(net.parameters()):
        p.data = 0.3 * normals(*p.shape, seed=10 + i).to(dtype)
    return net


def regression(features=3, points=40):
    """A linear model whose columns depend on each other: model, data, exact posterior, log evidence."""
    mix = torch.eye(features, dtype=F64) * 0.4
    mix[0] = 0.8
    x = normals(points, features) @ mix
    y = x @ torch.ones(features, 1, dtype=F64) + 0.5 * normals(points, 1, seed=1)
    net = nn.Linear(features, 1, bias=False).double()
    nn.init.constant_(net.weight, 0.1)
    precision = x.T @ x / 0.25 + torch.eye(features, dtype=F64)
    mean = torch.linalg.solve(precision, x.T @ y / 0.25)[:, 0]
    marginal = MultivariateNormal(torch.zeros(points, dtype=F64), x @ x.T + 0.25 * torch.eye(points, dtype=F64))
    model = Model(net, Gaussian(scale=0.5), 1.0)
    return model, (x, y), MultivariateNormal(mean, precision_matrix=precision), marginal.log_prob(y[:, 0])


METHODS = pytest.mark.parametrize("method", [full_rank, low_rank], ids=["full", "low"])


def run(method, model, data, seed=0, **settings):
    if method is low_rank:
        settings = {"rank": 2, **settings}
    return method(model, data, generator=generator(seed), **{"steps": 30, "progress": False, **settings})


def written_out(model, family, x, y, *, draws, weight, ratio, seed):
    """The step by autograd from the formulas, for the same noise: entropy and moments are torch's own."""
    q, source, size = family.distribution(), generator(seed), model.net_size
    closed = size if model.prior.normal else 0
    nll, kl = torch.zeros((), dtype=F64), -q.entropy()
    if closed:
        prior = Normal(model.prior.loc.double(), model.prior.scale.double())
        away = (q.mean[:closed] - prior.loc) ** 2 + q.variance[:closed]
        kl = kl - (prior.log_prob(prior.loc) - 0.5 * away / prior.variance).sum()
    for _ in range(draws):
        h = torch.randn(model.size, generator=source, dtype=F64)
        if isinstance(family, FullRank):
            w = q.loc + q.scale_tril @ h
        else:
            rest = torch.randn(2, generator=source, dtype=F64)
            w = q.loc + q.cov_diag.sqrt() * h + q.cov_factor @ rest
        nll = nll - ratio * model.log_likelihood(w, x, y) / draws
        log_p = model.likelihood.unknown_log_prior(w[size:]) + (0 if closed else model.prior.log_prob(w[:size]))
        kl = kl - log_p / draws
    gradients = torch.autograd.grad(nll + weight * kl, family.parameters)
    return *gradients, torch.stack([nll, kl]).detach()


@pytest.mark.parametrize("kind", ["full", "low"])
@pytest.mark.parametrize("prior", [None, 0.7, Laplace(0.0, 1.0), {"0.weight": Normal(0.5, 2.0)}], ids=str)
@pytest.mark.parametrize("noise", [0.3, HalfNormal(1.0)], ids=["known", "unknown"])
@pytest.mark.parametrize("settings", [(1, 1.0, 1.0), (3, 0.3, 7.5)], ids=["plain", "tempered batches of three draws"])
def test_the_gradient_written_by_hand_is_autograds(kind, prior, noise, settings):
    """Source: autograd through torch's MultivariateNormal and LowRankMultivariateNormal, for the same noise."""
    model, x, y = Model(small_net(), Gaussian(scale=noise), prior), normals(6, 2), normals(6, 1, seed=1)
    start = model.start() + 0.1, normals(model.size, seed=2).exp()
    family = FullRank(model.size, *start) if kind == "full" else LowRank(model.size, 2, *start)
    move = 0.2 * normals(*family.mix.shape, seed=4)
    family.mix.data += move.tril(-1) if kind == "full" else move
    draws, weight, ratio = settings
    exact = written_out(model, family, x, y, draws=draws, weight=weight, ratio=ratio, seed=5)
    record = torch.zeros(2, dtype=F64)
    Nelbo(model, family, draws, generator(5)).step(x, y, ratio, weight, record)
    for a, b in zip([*(p.grad for p in family.parameters), record], exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_the_full_rank_optimum_is_the_exact_posterior():
    model, data, exact, evidence = regression()
    posterior = run(full_rank, model, data, steps=1000, lr=0.06, draws=16, decay=0.8, init_scale=0.1)
    assert isinstance(posterior.distribution, MultivariateNormal)
    assert float(kl_divergence(posterior.distribution, exact)) < 5e-3
    bound = -posterior.history["nelbo"][-50:]
    assert abs(float(bound.mean() - evidence)) < 0.1
    x = normals(5, 3, seed=7)
    closed = (x @ exact.covariance_matrix * x).sum(-1, keepdim=True).sqrt()
    torch.testing.assert_close(
        posterior.predict(x, draws=4000, generator=generator()).epistemic, closed, rtol=0.08, atol=0
    )


@pytest.mark.slow
@METHODS
def test_a_net_with_unknown_noise_is_fitted(method):
    """The noise near its true 0.3, the curve near the true one, the bound within two nats of the factorised one's."""
    x = torch.linspace(-1.5, 1.5, 60, dtype=F64)[:, None]
    y = torch.tanh(2 * x) + 0.3 * normals(60, 1)
    net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    for i, p in enumerate(net.parameters()):
        p.data = 0.5 * normals(*p.shape, seed=20 + i)
    model, settings = Model(net, Gaussian(scale=HalfNormal(1.0))), {"steps": 1000, "lr": 0.02}
    posterior, factorised = run(method, model, (x, y), **settings), run(mean_field, model, (x, y), **settings)
    noise = model.unravel(posterior.sample(500, generator()))["noise"]
    assert 0.2 < float(noise.mean()) < 0.45
    assert float((posterior.predict(x, draws=200, generator=generator()).mean - torch.tanh(2 * x)).abs().max()) < 0.35
    bounds = [float(p.history["nelbo"][-200:].mean()) for p in (posterior, factorised)]
    assert bounds[0] < bounds[1] + 2


@pytest.mark.slow
@METHODS
def test_a_warm_up_keeps_a_fresh_net_from_calling_the_curve_noise(method):
    """Without one the bound ends more than 20 nats lower, whatever the family."""
    task = quintic(200, "normal", 0.58, generator=generator())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1))
    model, data = Model(net, Gaussian(scale=HalfNormal(1.0))), Standardized(task.x, task.y)
    cold, warm = (run(method, model, data, steps=2000, warmup=w).history["nelbo"][-200:].mean() for w in (0, 200))
    assert warm < cold - 20


@METHODS
def test_save_and_load_give_equal_draws(method, tmp_path):
    model, data = Model(small_net(), Gaussian(scale=HalfNormal(1.0))), (normals(12, 2), normals(12, 1, seed=1))
    posterior = run(method, model, data)
    posterior.save(tmp_path / "posterior.pt")
    again = Posterior.load(tmp_path / "posterior.pt", model)
    assert torch.equal(posterior.sample(4, generator(1)), again.sample(4, generator(1)))
    assert type(again.distribution) is type(posterior.distribution)
    assert again.method == method.__name__


@METHODS
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_equal_seeds_in_both_precisions_and_nothing_else_moves(method, dtype, capsys):
    net = small_net(dtype)
    before, kept = torch.random.get_rng_state(), copy.deepcopy(net.state_dict())
    model, data = Model(net, Gaussian(scale=HalfNormal(1.0))), (normals(12, 2).to(dtype), normals(12, 1).to(dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a, b, c = (run(method, model, data, seed) for seed in (0, 0, 1))
    assert torch.equal(a.history["nelbo"], b.history["nelbo"])
    assert torch.equal(a.mean, b.mean)
    assert not torch.equal(a.mean, c.mean)
    assert a.mean.dtype == a.predict(data[0], draws=3, generator=generator()).mean.dtype == dtype
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(v, kept[k]) for k, v in net.state_dict().items())
    assert capsys.readouterr() == ("", "")
    assert run(method, model, data, device="cpu").mean.device.type == "cpu"


@METHODS
def test_loaders_and_standardised_data(method):
    x, y = normals(12, 2).float(), normals(12, 1, seed=1).float()
    model = Model(small_net(torch.float32), Gaussian(scale=HalfNormal(1.0)))
    whole = run(method, model, DataLoader(TensorDataset(x, y), batch_size=12))
    assert torch.equal(whole.mean, run(method, model, (x, y)).mean)
    scaled = run(method, model, Standardized(10 * x + 3, 100 * y + 500), steps=300)
    prediction = scaled.predict(10 * x + 3, draws=50, generator=generator()).mean
    assert abs(float(prediction.mean()) - float((100 * y + 500).mean())) < 60


class Breaking(TensorDataset):
    """Interrupts when a point is asked for the 40th time."""

    left = 40

    def __getitem__(self, i):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return super().__getitem__(i)


@METHODS
def test_interrupts_and_losses_that_break(method):
    model, x, y = Model(small_net(), Gaussian(scale=HalfNormal(1.0))), normals(12, 2), normals(12, 1, seed=1)
    with pytest.warns(UserWarning, match=f"{method.__name__} was interrupted after .* of 30 steps") as caught:
        posterior = run(method, model, DataLoader(Breaking(x, y), batch_size=4))
    assert caught[0].filename == __file__
    assert "interrupted" in repr(posterior)
    assert posterior.predict(x, draws=3, generator=generator()).mean.shape == (12, 1)
    with pytest.raises(FloatingPointError, match=r"the loss is .* at step \d+; try a smaller lr \(now 10000"):
        run(method, model, (x, y), steps=200, lr=1e4)


@METHODS
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be"),
        ({"draws": 0}, "draws must be"),
        ({"kl_weight": -1.0}, "kl_weight must not be negative"),
        ({"warmup": -1}, "warmup must be a whole number, at least 0"),
        ({"warmup": 30}, "the full objective would never be seen"),
        ({"init_scale": 0.0}, "init_scale must be positive"),
    ],
    ids=str,
)
def test_bad_settings(method, settings, message):
    with pytest.raises(ValueError, match=message):
        run(method, Model(small_net(), Gaussian(scale=1.0)), (normals(4, 2), normals(4, 1)), **settings)


def test_a_net_too_large():
    large = Model(nn.Sequential(nn.Linear(2, 4000), nn.Tanh(), nn.Linear(4000, 1)).double(), Gaussian(scale=1.0))
    with pytest.raises(ValueError, match="10,000 unknowns take a low rank"):
        full_rank(large, (normals(4, 2), normals(4, 1)), progress=False)


def test_tempering_is_named():
    model, data = Model(small_net(), Gaussian(scale=1.0)), (normals(12, 2), normals(12, 1))
    assert "TEMPERED: kl_weight=0.5" in repr(run(full_rank, model, data, kl_weight=0.5))
    q = run(full_rank, model, data, warmup=10)
    assert "TEMPER" not in repr(q)
    expected = (torch.arange(30) + 1).clamp_max(11) / 11
    torch.testing.assert_close(q.history["kl_weight"], expected, check_dtype=False)
