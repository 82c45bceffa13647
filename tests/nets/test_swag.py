"""swag: the covariance as published, what its temperature is tied to, and the loop's manners."""

import pytest
import torch
from torch import nn
from torch.distributions import HalfNormal
from torch.utils.data import DataLoader, TensorDataset

from bnnlib.data import Standardized
from bnnlib.nets import Gaussian, Model, Posterior, swag
from bnnlib.nets._training import NegativeLogJoint
from bnnlib.nets.swag import _largest_curvature, _Moments

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


def run(model, data=(X, Y), seed=0, **settings):
    settings = {"steps": 50, "iterates": 8, "rank": 4, "batch_size": 4, "progress": False, **settings}
    return swag(model, data, generator=generator(seed), **settings)


def test_the_covariance_is_half_diagonal_and_half_of_the_last_iterates():
    """Source: the formula written out over all iterates at once."""
    iterates = normals(9, 5)
    moments = _Moments(torch.zeros(5, dtype=F64), 4)
    for w in iterates:
        moments.add(w.clone())
    q = moments.normal(torch.device("cpu"))
    last = (iterates[-4:] - iterates.mean(0)).T
    exact = iterates.var(0).diag() / 2 + last @ last.T / (2 * 3)
    torch.testing.assert_close(q.mean, iterates.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(q.covariance_matrix, exact, rtol=1e-10, atol=1e-12)


def test_the_iterates_are_plain_gradient_descent():
    """Four steps by hand from the same batches; their mean is the posterior's."""
    model, start = Model(small_net(), Gaussian(scale=0.5)), normals(17, seed=5)
    posterior = run(model, start=start, iterates=2, rank=2, every=2, lr=0.01)
    order = torch.cat([torch.randperm(12, generator=(g := generator())), torch.randperm(12, generator=g)])
    w, kept = start.clone(), []
    for step, pick in enumerate(order.split(4)[:4]):
        w = w.requires_grad_()
        (slope,) = torch.autograd.grad(model.log_joint(w, X[pick], Y[pick], n=12), w)
        w = (w + 0.01 / 12 * slope).detach()
        if step % 2:
            kept.append(w)
    torch.testing.assert_close(posterior.mean, torch.stack(kept).mean(0), rtol=1e-12, atol=1e-13)


def test_its_largest_curvature_is_the_hessians():
    """Source: the Hessian by autograd, at the best w of a linear model and of a net near a minimum."""
    model = Model(nn.Linear(2, 1).double(), Gaussian(scale=HalfNormal(1.0)), 1.0)
    loss, w = NegativeLogJoint(model), normals(model.size, seed=2)
    loss.w.copy_(w)
    hessian = torch.autograd.functional.hessian(lambda v: -model.log_joint(v, X, Y), w)
    exact = torch.linalg.eigvalsh(hessian).abs().max()
    found = _largest_curvature(loss, X, Y, 12, rounds=200)
    torch.testing.assert_close(torch.tensor(found, dtype=F64), exact, rtol=1e-5, atol=0)
    assert torch.equal(loss.w, w)


@pytest.mark.slow
def test_the_temperature_is_the_steps_and_the_batchs_not_the_datas():
    """AR(1) with slope 1 - lr: variance lr / (2 - lr) * noise variance / batch, whatever n; the posterior has 1 / n.

    Drawn without replacement, an epoch's batches cancel in part; n is large, so that few iterates share an epoch. The
    low-rank half knows four iterates only, so it is the diagonal's half that is held: twice cov_diag.
    """
    for n, lr, batch in ((20_000, 0.2, 4), (20_000, 0.4, 4), (20_000, 0.2, 16), (80_000, 0.2, 4)):
        x = torch.ones(n, 1, dtype=F64)
        y = normals(n, 1, seed=n)
        model = Model(nn.Linear(1, 1, bias=False).double(), Gaussian(scale=1.0), 1e3)
        q = run(model, (x, y), start=y.mean(0), lr=lr, batch_size=batch, every=10, iterates=1500, rank=2)
        found = 2 * float(q.distribution._unbroadcasted_cov_diag)
        exact = lr / (2 - lr) * float(y.var()) / batch
        # Nearly independent iterates: a variance of 1500 has a relative error of sqrt(2 / 1500), 3.7 %.
        assert found == pytest.approx(exact, rel=5 * (2 / 1500) ** 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_dtypes_files_seeds_and_units(dtype, tmp_path, capsys):
    x, y = 10 * X.to(dtype) + 3, 100 * Y.to(dtype) + 500
    net, before = small_net(dtype), torch.random.get_rng_state()
    copy = [p.detach().clone() for p in net.parameters()]
    model = Model(net, Gaussian(scale=HalfNormal(1.0)))
    posterior, same, other = (run(model, Standardized(x, y), seed) for seed in (0, 0, 1))
    assert posterior.mean.dtype == dtype
    assert torch.equal(posterior.mean, same.mean)
    assert not torch.equal(posterior.mean, other.mean)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(p, c) and p.grad is None for p, c in zip(net.parameters(), copy, strict=True))
    assert capsys.readouterr() == ("", "")
    assert 300 < float(posterior.predict(x, draws=20, generator=generator()).mean.mean()) < 700
    posterior.save(tmp_path / "p.pt")
    again = Posterior.load(tmp_path / "p.pt", model)
    assert torch.equal(again.sample(3, generator(5)), posterior.sample(3, generator(5)))


def test_a_loaders_batches_are_the_mini_batches():
    model, loader = Model(small_net(), Gaussian(scale=0.5)), DataLoader(TensorDataset(X, Y), batch_size=5)
    posterior = run(model, loader, lr=0.01)
    assert posterior.diagnostics["batch"] == 5
    assert posterior.diagnostics["steps"] == 8 * 3  # three batches an epoch


@pytest.mark.parametrize("after", [0, 1, 14])
def test_an_interrupt_returns_a_usable_fit(monkeypatch, after):
    model, calls, original = Model(small_net(), Gaussian(scale=0.5)), [], NegativeLogJoint.__call__
    start = model.start()

    def breaking(self, *args):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(NegativeLogJoint, "__call__", breaking)
    with pytest.warns(UserWarning, match=f"swag was interrupted after {after} of 24 steps"):
        posterior = run(model, start=start, lr=0.01)
    assert bool(torch.isfinite(posterior.predict(X, draws=5, generator=generator()).mean).all())
    assert posterior.diagnostics["iterates"] == after // 3


def test_an_interrupt_of_the_search_for_the_best_w_ends_the_run(monkeypatch):
    calls, original = [], NegativeLogJoint.__call__

    def breaking(self, *args):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(NegativeLogJoint, "__call__", breaking)
    with pytest.warns(UserWarning, match="map_estimate was interrupted after 7 of 50 steps"):
        posterior = run(Model(small_net(), Gaussian(scale=0.5)), lr=0.01)
    assert len(calls) == 8
    assert "interrupted" in repr(posterior)
    assert float(posterior.distribution.stddev.max()) < 1e-12


def test_a_step_too_long_stops_with_its_number():
    model = Model(nn.Linear(2, 1).double(), Gaussian(scale=0.1), 1.0)
    with pytest.raises(FloatingPointError, match=r"at step \d+; try a smaller lr \(now 50"):
        run(model, lr=50.0, iterates=100)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterates": 1}, "iterates must be a whole number, at least 2"),
        ({"rank": 1}, "rank must be"),
        ({"every": 0}, "every must be"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"batch_size": 12}, "no noise to learn a spread from"),
        ({"start": [0.0]}, "start has type list; expected"),
        ({"start": torch.zeros(3)}, r"start has shape \(3,\); expected \(17,\)"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        run(Model(small_net(), Gaussian(scale=0.5)), **settings)
