"""ivon takes the published algorithm's steps, rests at the mean-field optimum, and keeps every method's promises."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.distributions import HalfNormal, Independent, Normal, StudentT
from torch.utils.data import DataLoader, Dataset

from bnnlib.data import Standardized, quintic
from bnnlib.metrics import nll
from bnnlib.nets import Categorical, Gaussian, Model, Posterior, ivon, mean_field

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def network(*sizes, seed=0):
    layers = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).double()


def by_the_paper(model, x, y, draws, lr, beta1, beta2, h, kl_weight=1.0):
    """Algorithm 1 of Shen et al. (2024), line by line, with a prior precision and mean of each weight's own."""
    n = len(x)
    strength, m, g = n / kl_weight, model.start(), 0.0
    rest = torch.zeros(model.size - model.net_size, dtype=F64)  # the noise has its prior in the loss
    d = torch.cat([model.prior.scale.double() ** -2 / strength, rest])
    centre = torch.cat([model.prior.loc.double(), rest])
    h = torch.full_like(m, h)
    h0 = h.clone()
    for t, eps in enumerate(draws, start=1):
        sd = 1 / torch.sqrt(strength * (h + d))
        w = (m + sd * eps).requires_grad_()
        prior = kl_weight * model.likelihood.unknown_log_prior(model.noise(w))
        (slope,) = torch.autograd.grad(-(model.log_likelihood(w, x, y) + prior) / n, w)
        g = beta1 * g + (1 - beta1) * slope
        f = slope * (w.detach() - m) / sd**2
        h = beta2 * h + (1 - beta2) * f + 0.5 * (1 - beta2) ** 2 * (h - f) ** 2 / (h + d)
        m = m - lr * (h0 + d) * (g / (1 - beta1**t) + d * (m - centre)) / (h + d)
    return m, 1 / torch.sqrt(strength * (h + d))


@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
@pytest.mark.parametrize("noise", [0.3, HalfNormal(torch.tensor(0.2, dtype=F64))], ids=["known", "unknown"])
@pytest.mark.parametrize("prior", [None, Normal(torch.tensor(0.2, dtype=F64), 0.7)], ids=["default", "off centre"])
def test_its_steps_are_the_algorithms(prior, noise, kl_weight):
    """Source: the algorithm written line by line, fed with the same standard normal numbers."""
    model, x = Model(network(3, 5, 1), Gaussian(scale=noise), prior), normals(30, 3)
    y, settings = torch.sin(x[:, :1]), {"lr": 0.1, "beta1": 0.8, "beta2": 0.98}
    g = generator(5)
    draws = [torch.empty(model.size, dtype=F64).normal_(generator=g) for _ in range(40)]
    mean, sd = by_the_paper(model, x, y, draws, h=0.5, kl_weight=kl_weight, **settings)
    posterior = ivon(
        model, (x, y), steps=40, init_curvature=0.5, kl_weight=kl_weight, decay=0.0, progress=False,
        generator=generator(5), **settings,
    )  # fmt: skip
    torch.testing.assert_close(posterior.mean, mean, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(posterior.distribution.base_dist.scale, sd, rtol=1e-11, atol=0)
    assert ("TEMPERED" in repr(posterior)) == (kl_weight != 1)


def test_on_a_line_it_rests_at_the_exact_posterior():
    """Source: one weight, normal noise, closed form. The quick sibling of the next test."""
    x, model = normals(50, 1), Model(nn.Linear(1, 1, bias=False).double(), Gaussian(scale=0.5), 1.0)
    y = 0.7 * x + 0.5 * normals(50, 1, seed=1)
    precision = (x.square().sum() / 0.25 + 1).item()
    posterior = ivon(model, (x, y), steps=3000, beta2=0.998, progress=False, generator=generator())
    scale = posterior.distribution.base_dist.scale.item()
    assert scale * precision**0.5 == pytest.approx(1, abs=0.06)
    assert (posterior.mean.item() - (x * y).sum().item() / 0.25 / precision) / scale == pytest.approx(0, abs=0.2)


def linear():
    """A linear regression with correlated inputs: its mean-field optimum is known."""
    x = normals(80, 3)
    x[:, 1] += 0.8 * x[:, 0]
    y = x @ normals(3, 1, seed=1) + 0.3 * normals(80, 1, seed=2)
    phi = torch.cat([x, torch.ones(80, 1, dtype=F64)], 1)
    model = Model(network(3, 1)[0], Gaussian(scale=0.3), 1.0)
    precision = phi.T @ phi / 0.09 + torch.eye(4, dtype=F64)
    return model, x, y, torch.linalg.solve(precision, phi.T @ y[:, 0] / 0.09), precision


def test_a_short_run_forgets_where_its_curvature_began():
    """Source: the mean-field optimum. The curvature starts at 1 and ends near 0.01, a hundredth.

    With a memory longer than the run (beta2 = 0.9995, the value for long ones) the scales end at a quarter.
    """
    _, x, y, _, _ = linear()
    model, phi = Model(network(3, 1)[0], Gaussian(scale=10.0), 1.0), torch.cat([x, torch.ones(80, 1, dtype=F64)], 1)
    sd = (phi.square().sum(0) / 100 + 1).rsqrt()
    settings = {"steps": 1500, "progress": False}
    short, long = (ivon(model, (x, y), generator=generator(), **settings, **k) for k in ({}, {"beta2": 0.9995}))
    torch.testing.assert_close(short.distribution.base_dist.scale, sd, rtol=0.15, atol=0)
    assert (long.distribution.base_dist.scale < 0.3 * sd).all()


@pytest.mark.slow
@pytest.mark.parametrize("batch", [80, 20], ids=["full batch", "mini-batches"])
def test_it_rests_at_the_mean_field_optimum(batch):
    """Source: for a quadratic loss the optimum has the exact mean and the variances 1 / diagonal of the precision."""
    model, x, y, mean, precision = linear()
    data = (x, y) if batch == 80 else DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=batch)
    posterior = ivon(model, data, steps=10000, beta2=0.999, progress=False, generator=generator())
    sd = precision.diagonal().rsqrt()
    assert float(((posterior.mean - mean) / sd).abs().max()) < 0.25
    torch.testing.assert_close(posterior.distribution.base_dist.scale, sd, rtol=0.08, atol=0)


@pytest.mark.slow
def test_without_data_to_speak_of_it_is_the_prior():
    """Source: one observation with a noise of 1000 says nothing; q = prior, N(0, 1/3) and N(0, 1)."""
    model = Model(network(3, 1)[0], Gaussian(scale=1000.0))
    posterior = ivon(
        model, (normals(1, 3), normals(1, 1)), steps=8000, beta2=0.99, progress=False, generator=generator()
    )
    torch.testing.assert_close(posterior.distribution.base_dist.scale, model.prior.scale.double(), rtol=1e-3, atol=0)
    torch.testing.assert_close(posterior.mean, torch.zeros(4, dtype=F64), rtol=0, atol=0.01)


X = torch.linspace(-1.5, 1.5, 40).unsqueeze(-1)
Y = torch.sin(2 * X) + 0.1 * normals(40, 1).float()


def small(dtype=torch.float32, prior=None):
    return Model(network(1, 6, 1).to(dtype), Gaussian(scale=HalfNormal(1.0)), prior)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("prior", [None, StudentT(3.0)], ids=["normal", "heavy tails"])
def test_a_file_gives_the_same_draws(dtype, prior, tmp_path):
    model = small(dtype, prior)
    posterior = ivon(model, (X.to(dtype), Y.to(dtype)), steps=50, progress=False, generator=generator())
    assert posterior.mean.dtype == dtype
    assert isinstance(posterior.distribution, Independent)
    posterior.save(tmp_path / "p.pt")
    again = Posterior.load(tmp_path / "p.pt", model)
    assert torch.equal(again.sample(5, generator(1)), posterior.sample(5, generator(1)))


def test_the_seed_is_all_that_chance_is(capsys):
    model = small()
    before, state = [p.clone() for p in model.net.parameters()], torch.get_rng_state()
    a, b, c = (ivon(model, (X, Y), steps=30, progress=False, generator=generator(s)) for s in (0, 0, 1))
    assert torch.equal(a.mean, b.mean)
    assert not torch.equal(a.mean, c.mean)
    assert all(torch.equal(p, q) for p, q in zip(before, model.net.parameters(), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert capsys.readouterr().err == ""


class Breaking(Dataset):
    def __init__(self, left):
        self.left = left

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return X[i], Y[i]


def test_an_interrupt_keeps_what_was_reached():
    """Ten points are looked at first, then each step takes ten: the break is in step 7, counted from 0."""
    data = DataLoader(Breaking(10 + 7 * 10 + 1), batch_size=10)
    with pytest.warns(UserWarning, match="interrupted after 7 of 5000 steps"):
        posterior = ivon(small(), data, progress=False, generator=generator())
    assert "interrupted" in repr(posterior)
    assert posterior.history["nll"].shape == (7,)
    assert bool(torch.isfinite(posterior.predict(X, draws=5, generator=generator()).total).all())


def test_a_diverging_fit_names_its_step():
    with pytest.raises(FloatingPointError, match="at step"):
        ivon(small(), (X, Y), lr=1e30, steps=200, progress=False, generator=generator())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 0}, "steps must be a whole number"),
        ({"lr": -1.0}, "lr must be positive"),
        ({"beta2": 1.0}, "beta2 says how much of the past is kept"),
        ({"init_curvature": 0.0}, "init_curvature must be positive"),
        ({"kl_weight": 0.0}, "kl_weight must be positive"),
        ({"decay": 2.0}, "decay is a part of the steps"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        ivon(small(), (X, Y), **settings)


@pytest.mark.slow
def test_for_classes_it_is_as_good_as_mean_field():
    """Source: mean_field, which fits the same family to the same bound by another way."""
    x = torch.randn(200, 2, generator=generator())
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    model = Model(network(2, 16, 3).float(), Categorical())
    found = ivon(model, (x, y), steps=2000, progress=False, generator=generator())
    other = mean_field(model, (x, y), steps=2000, progress=False, generator=generator())
    ours, theirs = (nll(p.predict(x, draws=200, generator=generator()), y) for p in (found, other))
    assert ours == pytest.approx(theirs, abs=0.06)


@pytest.mark.slow
def test_the_quintic_is_met_as_well_as_a_factorised_normal_can():
    """Source: the oracle's NLL on the same held-out points; 20 tanh units in mean field lose about a tenth of a nat."""
    train, test = (
        quintic(500, noise="normal", scale=0.58, spacing=how, generator=generator(s))
        for s, how in enumerate(("even", "random"))
    )
    model = Model(network(1, 20, 1).float(), Gaussian(scale=HalfNormal(1.0)))
    posterior = ivon(model, Standardized(train.x, train.y), progress=False, generator=generator())
    oracle = -Normal(test.curve, 0.58).log_prob(test.y).mean()
    assert float(nll(posterior.predict(test.x, generator=generator()), test.y) - oracle) < 0.2
