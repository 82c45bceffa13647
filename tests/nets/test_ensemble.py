"""ensemble: members against one network trained alone, randomised priors against the exact posterior, other methods."""

import pytest
import torch
from torch import nn
from torch.distributions import HalfNormal, Normal, StudentT
from torch.utils.data import DataLoader, TensorDataset

from bnnlib.bayes import LinearRegression
from bnnlib.data import Standardized
from bnnlib.nets import Categorical, Gaussian, Model, Posterior, ensemble, map_estimate, mean_field
from bnnlib.nets._members import Members

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
    settings = {"members": 3, **settings}
    if "method" not in settings:
        settings = {"steps": 50, **settings}
    return ensemble(model, data, generator=generator(seed), progress=False, **settings)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("noise", [0.3, HalfNormal(1.0), HalfNormal(torch.ones(1))], ids=["known", "one", "per output"])
@pytest.mark.parametrize("prior", [None, {"*": Normal(0.4, 0.7)}, {"0.*": StudentT(4.0)}], ids=str)
def test_each_member_has_the_models_own_log_joint(prior, noise, batched):
    """Source: autograd of Model.log_joint, one member after the other."""
    model = Model(small_net(), Gaussian(scale=noise), prior)
    own = Members(model, normals(3, model.size, seed=3))
    own.batched = batched
    value = own(X, Y, 2.5)
    for m in range(3):
        w = own.w[m].clone().requires_grad_()
        exact = -model.log_joint(w, X, Y, n=30)
        torch.testing.assert_close(value[m], exact.detach(), rtol=1e-11, atol=0)
        torch.testing.assert_close(own.w.grad[m], torch.autograd.grad(exact, w)[0], rtol=1e-10, atol=1e-10)


def test_a_bootstrap_member_has_the_log_joint_of_its_sample():
    """A point that was drawn twice counts twice: the same as the data set with it twice."""
    model, picks = (
        Model(small_net(), Gaussian(scale=HalfNormal(1.0))),
        torch.randint(12, (3, 12), generator=generator()),
    )
    own = Members(model, normals(3, model.size, seed=3))
    value = own(X, Y, 1.0, weights=torch.stack([torch.bincount(p, minlength=12) for p in picks]).double())
    for m, pick in enumerate(picks):
        exact = -model.log_joint(own.w[m], X[pick], Y[pick])
        torch.testing.assert_close(value[m], exact, rtol=1e-11, atol=0)


def test_moved_targets_teach_the_weights_and_leave_the_noise():
    """Gradient in the weights: from y + scale * move, around the member's own anchor; in the noise: from y itself."""
    model = Model(small_net(), Gaussian(scale=HalfNormal(1.0)))
    size, anchors, moves = model.net_size, normals(2, 17, seed=6), normals(2, 12, 1, seed=7)
    own = Members(model, normals(2, model.size, seed=3), anchors)
    own(X, Y, 1.0, moves=moves)
    for m in range(2):
        w = own.w[m].clone().requires_grad_()
        scale = model.unravel(w)["noise"].detach()
        moved = -model.log_likelihood(w, X, Y + scale * moves[m])
        moved = moved - Normal(anchors[m], model.prior.scale.double()).log_prob(w[:size]).sum()
        plain = -model.log_joint(w, X, Y)
        exact = torch.cat([torch.autograd.grad(moved, w)[0][:size], torch.autograd.grad(plain, w)[0][size:]])
        torch.testing.assert_close(own.w.grad[m], exact, rtol=1e-10, atol=1e-10)


def linear(prior=0.8):
    net = nn.Linear(2, 1, bias=False).double()
    exact = LinearRegression(noise_scale=0.4, prior_scale=prior, features=lambda x: x).fit(X, Y)
    return Model(net, Gaussian(scale=0.4), prior), exact.weights


def test_randomised_priors_are_exact_draws_on_a_linear_model():
    """Mean and covariance of 800 members against the posterior in closed form, within five standard errors."""
    model, exact = linear()
    values = run(model, members=800, randomised_prior=True, steps=800, lr=0.05).distribution.values
    z = torch.linalg.solve_triangular(exact.scale_tril, (values - exact.mean).T, upper=False)
    assert float(z.mean(1).abs().max()) < 5 / 800**0.5
    covariance = z @ z.T / 800
    error = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=F64).sqrt() / 800**0.5
    assert bool(((covariance - torch.eye(2, dtype=F64)).abs() < 5 * error).all())


def test_without_them_all_members_of_a_linear_model_are_one():
    model, exact = linear()
    values = run(model, steps=800, lr=0.05).distribution.values
    torch.testing.assert_close(values, exact.mean.expand(3, -1), rtol=1e-6, atol=0)


def test_a_member_is_a_map_estimate():
    model = Model(small_net(), Gaussian(scale=HalfNormal(1.0)))
    alone = map_estimate(model, (X, Y), steps=50, progress=False)
    together = run(model, start="model")
    torch.testing.assert_close(together.distribution.values, alone.mean.expand(3, -1), rtol=1e-9, atol=1e-11)
    loader = DataLoader(TensorDataset(X, Y), batch_size=5)
    alone = map_estimate(model, loader, steps=50, progress=False)
    torch.testing.assert_close(run(model, loader, start="model").mean, alone.mean, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("extra", [{"bootstrap": True}, {"randomised_prior": True}], ids=str)
def test_a_loader_keeps_its_batch_size_where_each_member_has_its_data(extra):
    """One batch of all points is the pair; smaller batches are other steps towards the same."""
    model = Model(small_net(), Gaussian(scale=HalfNormal(1.0)))
    whole = run(model, DataLoader(TensorDataset(X, Y), batch_size=12), start="model", **extra)
    assert torch.equal(whole.mean, run(model, start="model", **extra).mean)
    parts = run(model, DataLoader(TensorDataset(X, Y), batch_size=4), start="model", **extra)
    assert not torch.equal(parts.mean, whole.mean)
    assert float(whole.distribution.values.std(0).min()) > 0


def test_each_start_is_of_its_kind():
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(2, 50), nn.BatchNorm1d(50), nn.Linear(50, 1)

        def forward(self, x):
            return self.c(self.b(self.a(x)))

    net = Norm().double().eval()
    net.b.running_mean += 0.3
    model = Model(net, Gaussian(scale=0.5), 3.0)
    starts = {
        kind: run(model, start=kind, steps=1, lr=1e-12).distribution.values for kind in ("init", "prior", "model")
    }
    bound = 2**-0.5  # nn.Linear: uniform on +-1 / sqrt(fan_in)
    first = starts["init"][:, :100]
    assert 0.97 * bound < float(first.abs().max()) <= bound
    assert len(starts["init"][:, 0].unique()) == 3
    assert float(starts["prior"].std()) == pytest.approx(3.0, rel=5 / (2 * starts["prior"].numel()) ** 0.5)
    torch.testing.assert_close(starts["model"], model.start().expand(3, -1))
    torch.testing.assert_close(net.b.running_mean, torch.full((50,), 0.3, dtype=F64))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(1, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        return self.out(self.lstm(x.unsqueeze(-1))[0][:, -1])


def test_a_network_that_cannot_be_batched_is_looped_over():
    """Classes, an LSTM: the same as one after the other."""
    model, labels = Model(Recurrent().double(), Categorical()), torch.arange(12) % 2
    alone = map_estimate(model, (X, labels), steps=5, progress=False)
    together = run(model, (X, labels), steps=5, start="model", members=2)
    torch.testing.assert_close(together.mean, alone.mean, rtol=1e-8, atol=1e-10)
    assert together.predict(X).probs.shape == (12, 2)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_dtypes_files_seeds_and_units(dtype, tmp_path, capsys):
    x, y = 10 * X.to(dtype) + 3, 100 * Y.to(dtype) + 500
    net, before = small_net(dtype), torch.random.get_rng_state()
    model = Model(net, Gaussian(scale=HalfNormal(1.0)))
    copy = model.start()
    for extra in ({}, {"randomised_prior": True}, {"bootstrap": True}):
        posterior, same, other = (run(model, Standardized(x, y), seed, **extra) for seed in (0, 0, 1))
        assert posterior.mean.dtype == dtype
        assert torch.equal(posterior.mean, same.mean)
        assert not torch.equal(posterior.mean, other.mean)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(model.start(), copy)
    assert capsys.readouterr() == ("", "")
    prediction = posterior.predict(x)
    assert prediction.draws == 3
    assert 300 < float(prediction.mean.mean()) < 700
    posterior.save(tmp_path / "p.pt")
    assert torch.equal(Posterior.load(tmp_path / "p.pt", model).predict(x).mean, prediction.mean)


@pytest.mark.parametrize("randomised", [False, True])
def test_an_interrupt_returns_what_is_there(monkeypatch, randomised):
    model, calls, original = Model(small_net(), Gaussian(scale=0.5)), [], Members.__call__

    def breaking(self, *args):
        calls.append(1)
        if len(calls) > 7:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(Members, "__call__", breaking)
    with pytest.warns(UserWarning, match="ensemble was interrupted after 7 of 50 steps"):
        posterior = run(model, randomised_prior=randomised)
    assert posterior.predict(X).draws == 3
    assert posterior.history["loss"].shape == (7, 3)


BAD = {
    "members": ({"members": 0}, "members must be"),
    "start": ({"start": "zero"}, "start is one of"),
    "twice": ({"bootstrap": True, "randomised_prior": True}, "count it twice"),
    "settings": ({"settings": {"steps": 3}}, "settings are for `method`"),
    "method": ({"method": mean_field, "randomised_prior": True}, "leave out `method`"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_named(case):
    settings, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        run(Model(small_net(), Gaussian(scale=0.5)), **settings)


def test_what_cannot_start_or_be_randomised_is_named():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(2, 1, dtype=F64))

        def forward(self, x):
            return x @ self.w

    with pytest.raises(ValueError, match=r"the net \(Own\) has parameters and no reset_parameters"):
        run(Model(Own(), Gaussian(scale=0.5), 1.0))
    with pytest.raises(ValueError, match="randomised_prior needs normal priors"):
        run(Model(small_net(), Gaussian(scale=0.5), StudentT(4.0)), randomised_prior=True)


def test_a_loss_that_breaks_stops_with_its_step():
    class Breaking(nn.Linear):
        def forward(self, x):
            return super().forward(x) / (self.weight[0, 0] < 0.1)

    net = Breaking(2, 1).double()
    nn.init.constant_(net.weight, 0.0)
    with pytest.raises(FloatingPointError, match=r"at step \d+; try a smaller lr"):
        run(Model(net, Gaussian(scale=0.5), 1.0), (X, 5 * X[:, :1]), lr=0.05, start="model")
