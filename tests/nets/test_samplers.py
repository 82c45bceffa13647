"""What all samplers promise: the density they draw from, exactness on the linear model, seeds, files, interrupts."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import Gamma, HalfNormal, LogNormal, StudentT
from torch.utils.data import DataLoader, TensorDataset

from bnnlib.data import Standardized
from bnnlib.nets import Categorical, Gaussian, Model, Posterior, bayesian, convergence, hmc, nuts, sghmc, sgld
from bnnlib.nets._sampling import Density, metric

SHORT = {
    hmc: {"draws": 6, "warmup": 8, "chains": 2, "leapfrog_steps": 3},
    nuts: {"draws": 5, "warmup": 5, "chains": 2, "max_tree_depth": 3},
    sgld: {"draws": 6, "warmup": 8, "chains": 2, "thin": 2},
    sghmc: {"draws": 3, "cycles": 2, "cycle_steps": 10, "warmup": 8, "chains": 2},
}
METHODS = list(SHORT)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def numbers(n=24, k=2, seed=0, dtype=torch.float32):
    return torch.randn(n, k, generator=seeded(seed), dtype=torch.float64).to(dtype)


def model(dtype=torch.float32):
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)
    return Model(net, Gaussian(scale=HalfNormal(1.0)))


def data(dtype=torch.float32):
    return numbers(dtype=dtype), numbers(k=1, seed=1, dtype=dtype)


def short(method, m=None, d=None, seed=3, **more):
    return method(m or model(), d or data(), **(SHORT[method] | {"progress": False, "generator": seeded(seed)} | more))


# the density -----------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.out = nn.GRU(1, 3, batch_first=True), nn.Linear(3, 1)

    def forward(self, x):
        return self.out(self.gru(x)[0][:, -1])


conv = nn.Sequential(nn.Unflatten(1, (1, 2)), nn.Conv1d(1, 3, 2), nn.Flatten(), nn.Tanh(), nn.Linear(3, 3))
CASES = {
    "dense": (nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), Gaussian(precision=Gamma(2.0, 1.0)), None),
    "no bias": (nn.Sequential(nn.Linear(2, 3, bias=False), nn.Tanh(), nn.Linear(3, 1)), Gaussian(scale=0.3), 2.0),
    "one input": (nn.Sequential(nn.Linear(1, 3), nn.Sigmoid(), nn.Linear(3, 1)), Gaussian(scale=0.3), 0.7),
    "heavy tails": (nn.Sequential(nn.Linear(2, 3), nn.Softplus(), nn.Linear(3, 1)), Gaussian(scale=0.5), StudentT(3.0)),
    "classes": (conv, Categorical(), None),
    "shared": (nn.Sequential(nn.Linear(2, 3), g := nn.Tanh(), nn.Linear(3, 3), g, nn.Linear(3, 1)), Gaussian(var=1), 1),
    "recurrent": (Recurrent(), Gaussian(scale=LogNormal(0.0, 1.0)), None),
}
for part in ("2.*", "*.weight"):  # all else is constant
    CASES[part] = (bayesian(CASES["dense"][0], Gaussian(scale=0.3), layers=part).model.net, Gaussian(scale=0.3), None)


@pytest.mark.parametrize("name", CASES)
def test_the_batched_density_is_the_model_s(name):
    """Value and gradient of every row against `Model.log_joint` and autograd, one row at a time."""
    net, likelihood, prior = CASES[name]
    m = Model(copy.deepcopy(net).double(), likelihood, prior)
    x = numbers(7, 1 if name in ("one input", "recurrent") else 2, dtype=torch.float64)
    x = x.unsqueeze(-1).expand(7, 4, 1) if name == "recurrent" else x
    y = torch.arange(7) % 3 if name == "classes" else numbers(7, 1, seed=1, dtype=torch.float64)
    w = m.sample_prior(5, seeded(4)).double()
    value, slope = Density(m, temperature=0.5)(w, x, y, 3.0)
    for c in range(5):
        row = w[c].clone().requires_grad_()
        alone = m.log_joint(row, x, y, n=21) / 0.5
        (g,) = torch.autograd.grad(alone, row)
        torch.testing.assert_close(value[c], alone.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(slope[c], g, rtol=1e-10, atol=1e-10)


def test_a_proposal_far_away_is_no_error():
    for likelihood in (Gaussian(scale=HalfNormal(1.0)), Gaussian(scale=LogNormal(0.0, 1.0))):
        m = Model(nn.Linear(2, 1).double(), likelihood)
        w = torch.full((3, 4), 1e200, dtype=torch.float64)
        w[1] = math.nan
        assert not torch.isfinite(Density(m)(w, *data(torch.float64))[0]).any()


def test_metric_by_value():
    """On a linear model the Hessian is known: lengths of its rows, and the largest eigenvalue of the scaled one."""
    x, y = numbers(50, 3, dtype=torch.float64), numbers(50, 1, seed=1, dtype=torch.float64)
    x = x * torch.tensor([3.0, 1.0, 0.2])
    m = Model(nn.Linear(3, 1).double(), Gaussian(scale=0.5), {"weight": 1.0, "bias": 0.1})
    ones = torch.cat([x, torch.ones(50, 1)], 1)
    h = ones.T @ ones / 0.25 + torch.diag(torch.tensor([1.0, 1, 1, 100]))
    rows = h.square().sum(1)
    exact = torch.stack([*[rows[:3].mean()] * 3, rows[3]]).rsqrt()
    found, largest = metric(Density(m), m.start().repeat(60, 1), lambda: (x, y, 1.0), True, seeded(), rounds=60)
    torch.testing.assert_close(found, exact, rtol=0.1, atol=0)
    root = found.sqrt()
    eigen = torch.linalg.eigvalsh(root[:, None] * h * root)[-1]
    torch.testing.assert_close(largest[0], eigen, rtol=1e-6, atol=0)
    plain, top = metric(Density(m), m.start().repeat(2, 1), lambda: (x, y, 1.0), False, seeded(), rounds=60)
    assert bool((plain == 1).all())
    torch.testing.assert_close(top[1], torch.linalg.eigvalsh(h)[-1], rtol=1e-6, atol=0)


# the linear model ------------------------------------------------------------------------------------

# What each needs for about a thousand effective draws; sgld and sghmc with steps whose bias is below the error.
LONG = {
    hmc: {"draws": 600, "warmup": 200, "leapfrog_steps": 4},
    nuts: {"draws": 400, "warmup": 100, "chains": 2},
    sgld: {"draws": 1000, "warmup": 1000, "thin": 10, "step": 0.02, "chains": 8},
    sghmc: {"cycles": 5, "cycle_steps": 1600, "draws": 200, "step": 0.02, "chains": 8},
}


def linear():
    """Four correlated features: the posterior is a normal with a known mean and covariance."""
    x = numbers(40, 4, dtype=torch.float64) @ torch.tensor(
        [[1.0, 0.5, 0, 0], [0, 1, 0.5, 0], [0, 0, 1, 0.5], [0, 0, 0, 1]], dtype=torch.float64
    )
    y = x.sum(1, keepdim=True) + 0.5 * numbers(40, 1, seed=1, dtype=torch.float64)
    m = Model(nn.Linear(4, 1, bias=False).double(), Gaussian(scale=0.5), 1.0)
    covariance = torch.linalg.inv(x.T @ x / 0.25 + torch.eye(4))
    return m, x, y, covariance @ x.T @ y[:, 0] / 0.25, covariance


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_linear_model_within_monte_carlo_error(method):
    """Means and variances of function values at new points against the closed form: 5 standard errors from the ESS."""
    m, x, y, loc, covariance = linear()
    posterior = method(m, (x, y), progress=False, generator=seeded(5), **LONG[method])
    new = numbers(6, 4, seed=2, dtype=torch.float64)
    mean, var = new @ loc, ((new @ covariance) * new).sum(1)
    ess = convergence(posterior, new).ess[:, 0]
    assert float(ess.min()) > 200
    f = posterior.functions(new, len(posterior.distribution.values))[..., 0]
    assert bool(((f.mean(0) - mean).abs() < 5 * (var / ess).sqrt()).all())
    # Variance: relative standard error sqrt(2 / ess), and the bias of a finite step where there is one.
    bias = 0.02 if method in (sgld, sghmc) else 0.0
    assert bool(((f.var(0) / var - 1).abs() < 5 * (2 / ess).sqrt() + bias).all())
    predictive = posterior.predict(new, draws=10_000)
    torch.testing.assert_close(predictive.aleatoric, torch.full_like(predictive.aleatoric, 0.5))


# one shape for all -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_posterior_with_chains(method, dtype, tmp_path, capsys):
    m = model(dtype)
    before, state = copy.deepcopy(m.net.state_dict()), torch.get_rng_state()
    posterior = short(method, m, data(dtype))
    values = posterior.distribution.values
    assert values.dtype == dtype
    assert posterior.method == method.__name__
    assert posterior.diagnostics["chains"] * posterior.diagnostics["draws"] == len(values)
    assert len(values.unique(dim=0)) > len(values) // 3
    assert torch.equal(short(method, m, data(dtype)).distribution.values, values)
    assert not torch.equal(short(method, m, data(dtype), seed=4).distribution.values, values)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in m.net.state_dict().items())
    assert capsys.readouterr().err == ""
    posterior.save(tmp_path / "p.pt")
    again = Posterior.load(tmp_path / "p.pt", m)
    assert torch.equal(again.sample(20, seeded(6)), posterior.sample(20, seeded(6)))
    assert again.diagnostics == posterior.diagnostics or math.isnan(posterior.diagnostics.get("accept", 0))
    assert posterior.predict(data(dtype)[0]).mean.shape == (24, 1)


@pytest.mark.parametrize("method", METHODS)
def test_a_loader_and_standardised_data(method):
    x, y = 30 * numbers() + 5, 100 * numbers(k=1, seed=1)
    posterior = short(method, d=DataLoader(Standardized(x, y), batch_size=7))
    assert posterior.scaling is not None
    assert 5 < float(posterior.predict(x).total.mean()) < 1000
    plain = short(method, d=DataLoader(TensorDataset(*data()), batch_size=7))
    assert plain.scaling is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("early", [True, False])
def test_an_interrupt_keeps_what_is_there(method, early, monkeypatch):
    """In the first iterations nothing is kept yet and the last states come back; later, the draws so far."""
    calls, limit, original = [0], [10**9], Density.log_prob

    def counted(self, *args):
        calls[0] += 1
        if calls[0] > limit[0]:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(Density, "log_prob", counted)
    begin = model().sample_prior(2, seeded(8))
    short(method, start=begin)
    calls[0], limit[0] = 0, 16 if early else calls[0] - 4
    with pytest.warns(UserWarning, match=f"{method.__name__} was interrupted after"):
        posterior = short(method, start=begin)
    assert "interrupted" in repr(posterior)
    assert posterior.diagnostics["interrupted"] == 1
    assert posterior.predict(data()[0]).mean.isfinite().all()
    assert len(posterior.distribution.values) == posterior.diagnostics["chains"] * posterior.diagnostics["draws"]


@pytest.mark.parametrize("method", METHODS)
def test_starts(method):
    begin = model().sample_prior(2, seeded(7))
    assert short(method, start=begin).distribution.values.shape[1] == model().size
    for bad, message in [
        (begin[:1], r"start must have shape \(chains, unknowns\) = \(2, 18\), got \(1, 18\)"),
        (begin * math.nan, "start has NaN or infinite entries"),
        (begin.tolist(), "start must have shape .*, got list"),
    ]:
        with pytest.raises(ValueError, match=message):
            short(method, start=bad)
    with pytest.raises(FloatingPointError, match=f"{method.__name__}: the log density of chain 0 is .* at step 0"):
        short(method, start=torch.full((2, 18), 1e38), **({"warmup": 0} if method in (sgld, sghmc) else {}))


@pytest.mark.parametrize("method", [hmc, sgld, sghmc])
def test_tempering_is_named(method):
    assert "TEMPERED: temperature=0.1" in repr(short(method, temperature=0.1))
    assert "TEMPERED" not in repr(short(method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draws": 0}, "draws must be a whole number, at least 1, got 0"),
        ({"chains": 1.5}, "chains must be a whole number, at least 1, got 1.5"),
        ({"warmup": -1}, "warmup must be a whole number, at least 0, got -1"),
    ],
)
def test_settings_that_cannot_be(method, settings, message):
    with pytest.raises(ValueError, match=message):
        short(method, **settings)
