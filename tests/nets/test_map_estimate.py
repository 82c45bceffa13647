"""map_estimate: the maximum of the log joint, against closed forms and autograd; and the loop that it shares."""

import warnings

import pytest
import torch
from torch import nn
from torch.distributions import HalfNormal, Laplace, Normal, StudentT
from torch.utils.data import DataLoader, TensorDataset

from bnnlib.bayes import LinearRegression
from bnnlib.data import Standardized
from bnnlib.nets import Bernoulli, Gaussian, Model, Posterior, map_estimate
from bnnlib.nets._training import NegativeLogJoint

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def small_net(dtype=F64):
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)
    for i, p in enumerate(net.parameters()):
        p.data = 0.5 * normals(*p.shape, seed=20 + i, dtype=dtype)
    return net


X, Y = normals(12, 2), normals(12, 1, seed=1)


def run(model, data=(X, Y), **settings):
    return map_estimate(model, data, **{"steps": 50, "progress": False, **settings})


@pytest.mark.parametrize("noise", [0.3, HalfNormal(1.0), HalfNormal(torch.ones(1))], ids=["known", "one", "per output"])
@pytest.mark.parametrize("prior", [None, {"*": Normal(0.4, 0.7)}, Laplace(0.0, 1.0), {"0.*": StudentT(4.0)}], ids=str)
def test_value_and_gradient_are_those_of_the_models_log_joint(prior, noise):
    """Source: autograd of Model.log_joint."""
    model = Model(small_net(), Gaussian(scale=noise), prior)
    own, w = NegativeLogJoint(model), normals(model.size, seed=3).requires_grad_()
    own.w.copy_(w.detach())
    value = own(X, Y, 2.5)
    exact = -model.log_joint(w, X, Y, n=30)
    (slope,) = torch.autograd.grad(exact, w)
    torch.testing.assert_close(value, exact.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(own.grad, slope, rtol=1e-11, atol=1e-11)


def test_on_a_linear_model_it_is_the_posterior_mean():
    """Source: bnnlib.bayes.LinearRegression, in closed form."""
    exact = LinearRegression(noise_scale=0.4, prior_scale=0.8, features=lambda x: x).fit(X, Y).weights.mean
    net = nn.Linear(2, 1, bias=False).double()
    posterior = run(Model(net, Gaussian(scale=0.4), 0.8), steps=1500, lr=0.05)
    torch.testing.assert_close(posterior.mean, exact, rtol=1e-6, atol=0)
    assert posterior.distribution.values.shape == (1, 2)


def test_the_noise_is_best_in_its_unconstrained_coordinate():
    """With inputs of zero only u = log scale is left: d/du [-n u - S / (2 e^2u) - e^2u / 2 + u] = 0, a quadratic."""
    net = nn.Linear(2, 1, bias=False).double()
    model = Model(net, Gaussian(scale=HalfNormal(1.0)), 1.0)
    posterior = run(model, (torch.zeros(12, 2, dtype=F64), Y), steps=1200, lr=0.05, decay=0.8)
    squares = Y.square().sum()
    variance = (-(12 - 1) + ((12 - 1) ** 2 + 4 * squares).sqrt()) / 2  # v^2 + (n - 1) v - S = 0
    torch.testing.assert_close(posterior.mean[-1], 0.5 * variance.log(), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_end_is_a_maximum():
    """No gradient is left at the end; Source: autograd of Model.log_joint."""
    model = Model(small_net(), Gaussian(scale=HalfNormal(1.0)))
    w = run(model, steps=4000, lr=0.02, decay=0.8).mean.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model.log_joint(w, X, Y), w)
    assert float(slope.abs().max()) < 1e-4


def test_a_loaders_batches_are_scaled_to_all_points():
    """All points are the same, so each batch's scaled likelihood is that of all: also the last, smaller one."""
    model = Model(nn.Linear(2, 1).double(), Gaussian(scale=1.0), 1.0)
    same = TensorDataset(torch.ones(12, 2, dtype=F64), torch.ones(12, 1, dtype=F64))
    loss = run(model, DataLoader(same, batch_size=5), steps=3, lr=1e-12).history["loss"]
    torch.testing.assert_close(loss, loss[:1].expand(3), rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_dtypes_files_and_units(dtype, tmp_path):
    x, y = 10 * X.to(dtype) + 3, 100 * Y.to(dtype) + 500
    posterior = run(Model(small_net(dtype), Gaussian(scale=HalfNormal(1.0))), Standardized(x, y))
    assert posterior.mean.dtype == dtype
    prediction = posterior.predict(x)
    assert prediction.draws == 1
    assert float(prediction.epistemic.max()) == 0
    assert 300 < float(prediction.mean.mean()) < 700
    posterior.save(tmp_path / "p.pt")
    again = Posterior.load(tmp_path / "p.pt", posterior.model)
    assert torch.equal(again.predict(x).mean, prediction.mean)


def test_training_leaves_the_net_and_torchs_generator_alone(capsys):
    net, before = small_net(), torch.random.get_rng_state()
    copy = [p.detach().clone() for p in net.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a, b = (run(Model(net, Gaussian(scale=HalfNormal(1.0)))) for _ in range(2))
    assert torch.equal(a.mean, b.mean)
    assert all(torch.equal(p, c) and p.grad is None for p, c in zip(net.parameters(), copy, strict=True))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert capsys.readouterr() == ("", "")


def test_an_interrupt_returns_what_is_there(monkeypatch):
    model, calls = Model(small_net(), Gaussian(scale=0.5)), []
    original = NegativeLogJoint.__call__

    def breaking(self, *args):
        calls.append(1)
        if len(calls) > 7:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(NegativeLogJoint, "__call__", breaking)
    with pytest.warns(UserWarning, match="map_estimate was interrupted after 7 of 50 steps"):
        posterior = run(model)
    monkeypatch.undo()
    assert torch.equal(posterior.mean, run(model, steps=7, decay=0.0).mean)
    assert "interrupted" in repr(posterior)


def test_a_loss_that_breaks_stops_with_its_step():
    class Breaking(nn.Linear):
        def forward(self, x):
            return super().forward(x) / (self.weight[0, 0] < 0.1)

    net = Breaking(2, 1).double()
    nn.init.constant_(net.weight, 0.0)
    with pytest.raises(FloatingPointError, match=r"loss is (inf|nan) at step \d+; try a smaller lr"):
        run(Model(net, Gaussian(scale=0.5), 1.0), (X, 5 * X[:, :1]), lr=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"steps": 0}, "steps must be a whole number"), ({"lr": -1.0}, "lr must be positive"), ({"decay": 2.0}, "decay")],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        run(Model(small_net(), Bernoulli()), (X, torch.ones(12, 1, dtype=F64)), **settings)
