"""dropout: one draw of w is one thinned network; its objective by enumeration of the masks; what it refuses."""

import itertools

import pytest
import torch
from torch import nn
from torch.distributions import HalfNormal, Normal, StudentT
from torch.utils.data import DataLoader, TensorDataset

from bnnlib.data import Standardized
from bnnlib.nets import Categorical, Gaussian, Model, Posterior, dropout, map_estimate
from bnnlib.nets._training import NegativeLogJoint
from bnnlib.nets.masked import Masked

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def net_of(*layers, dtype=F64):
    net = nn.Sequential(*layers).to(dtype).eval()
    for i, p in enumerate(net.parameters()):
        p.data = 0.5 * normals(*p.shape, seed=20 + i, dtype=dtype)
    return net


def small_net(p=0.2, dtype=F64):
    return net_of(nn.Linear(2, 4), nn.Tanh(), nn.Dropout(p), nn.Linear(4, 1), dtype=dtype)


X, Y = normals(12, 2), normals(12, 1, seed=1)
IMAGES = normals(3, 4, 6, 6)


def run(model, data=(X, Y), seed=0, **settings):
    return dropout(model, data, generator=generator(seed), **{"steps": 50, "progress": False, **settings})


def enumerated():
    """A distribution with three masks, all of its values, and their probabilities."""
    p = torch.tensor([0.2, 0.5, 0.0], dtype=F64)
    q = Masked(normals(7), torch.tensor([0, 0, 1, -1, 2, 1, -1]), p)
    kept = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=F64)
    weight = torch.where(kept == 1, 1 - p, p).prod(-1)
    return q, q.from_noise(torch.where(kept == 1, torch.inf, -torch.inf)), weight


def test_without_data_the_prior_is_met_by_the_mean_square():
    """Inputs of zero: (loc - m)^2 + loc^2 p / (1 - p) is least at loc = (1 - p) m."""
    model = Model(net_of(nn.Dropout(0.3), nn.Linear(2, 1)), Gaussian(scale=0.5), Normal(0.5, 0.6))
    mean = run(model, (torch.zeros_like(X), Y), steps=1500).mean
    torch.testing.assert_close(mean[:2], torch.full((2,), 0.35, dtype=F64), rtol=0, atol=1e-5)


def test_the_priors_part_of_the_loss_is_its_mean_over_all_masks():
    """E_q[-log p(w)] by enumeration; the data are removed by a ratio of zero. Its gradient by autograd in loc."""
    net, loc = nn.Linear(6, 1).double(), normals(7, seed=8)
    model = Model(net, Gaussian(scale=1.0), {"weight": Normal(0.3, 0.6), "bias": 2.0})
    q, values, weight = enumerated()
    loc.requires_grad_()
    exact = -weight @ model.log_prior(values / q.loc * loc)
    loss = NegativeLogJoint(model, q.excess)
    loss.w.copy_(loc.detach())
    found = loss(normals(3, 6), normals(3, 1), 0.0)
    torch.testing.assert_close(found, exact.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(loss.grad, torch.autograd.grad(exact, loc)[0], rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_on_a_linear_model_it_is_a_ridge_with_the_masks_variance():
    """E|y - X w|^2 = |y - X loc|^2 + p / (1 - p) sum_j loc_j^2 |x_j|^2, so loc solves a linear system. Five sigma."""
    net = net_of(nn.Dropout(0.3), nn.Linear(2, 1, bias=False))
    y = X @ torch.tensor([[1.5], [-1.0]], dtype=F64)
    settings = {"steps": 1500, "lr": 0.03, "decay": 0.9}
    found = torch.stack([run(Model(net, Gaussian(scale=0.5), 0.8), (X, y), s, **settings).mean for s in range(10)])
    gram, right, odds = X.T @ X, (X.T @ y)[:, 0] / 0.25, 0.3 / 0.7
    system = gram / 0.25 + odds * torch.diag(gram.diagonal()) / 0.25 + torch.eye(2, dtype=F64) / 0.64 / 0.7
    exact = torch.linalg.solve(system, right)
    assert bool(((found.mean(0) - exact).abs() < 5 * found.std(0) / 10**0.5).all())
    without = torch.linalg.solve(gram / 0.25 + torch.eye(2, dtype=F64) / 0.64, right)
    assert float((without - exact).abs().min()) > 0.2
    assert float(found.std(0).max()) < 0.05


def test_only_dropout_is_switched_on():
    """At p = 0 the result is the map_estimate's: a BatchNorm that looked at its batch would change it."""
    norm = nn.BatchNorm1d(4)
    net = net_of(nn.Linear(2, 4), norm, nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 1))
    norm.running_mean += 0.7
    model = Model(net, Gaussian(scale=HalfNormal(1.0)))
    assert torch.equal(run(model, p=0.0).mean, map_estimate(model, (X, Y), steps=50, progress=False).mean)
    assert not torch.equal(run(model).mean, run(model, p=0.0).mean)
    torch.testing.assert_close(norm.running_mean, torch.full((4,), 0.7, dtype=F64))
    assert not any(m.training for m in net.modules())


def test_a_list_is_chosen_from_by_held_out_data():
    """Many points and a clear signal: half of the units missing is worse than none. All data are trained on then."""
    x = normals(200, 2)
    y = x[:, :1] - x[:, 1:]
    model = Model(small_net(), Gaussian(scale=0.3))
    posterior = run(model, (x, y), steps=300, p=[0.5, 0.0])
    scores = {k: v for k, v in posterior.diagnostics.items() if k.startswith("held_out")}
    assert posterior.diagnostics["p"] == 0.0
    assert scores["held_out_nll p=0"] < scores["held_out_nll p=0.5"]
    loaded = run(model, DataLoader(TensorDataset(x, y), batch_size=64), steps=20, p=[0.5, 0.0])
    assert len(loaded.history["loss"]) == 20


def test_functions_are_functions():
    """One draw has one mask: equal inputs have equal values, different draws have not."""
    posterior = run(Model(small_net(0.5), Gaussian(scale=0.5)))
    f = posterior.functions(torch.cat([X, X]), 20, generator())
    torch.testing.assert_close(f[:, :12], f[:, 12:], rtol=0, atol=1e-12)
    assert float(f.std(0).min()) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_dtypes_files_seeds_and_units(dtype, tmp_path, capsys):
    x, y = 10 * X.to(dtype) + 3, 100 * Y.to(dtype) + 500
    net, before = small_net(dtype=dtype), torch.random.get_rng_state()
    model = Model(net, Gaussian(scale=HalfNormal(1.0)))
    posterior, same, other = (run(model, Standardized(x, y), seed) for seed in (0, 0, 1))
    assert posterior.mean.dtype == posterior.sample(2, generator()).dtype == dtype
    assert torch.equal(posterior.mean, same.mean)
    assert not torch.equal(posterior.mean, other.mean)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(model.start()[:8], 0.5 * normals(4, 2, seed=20, dtype=dtype).reshape(-1))
    assert net[2].p == 0.2
    assert capsys.readouterr() == ("", "")
    assert 300 < float(posterior.predict(x, draws=20, generator=generator()).mean.mean()) < 700
    posterior.save(tmp_path / "p.pt")
    again = Posterior.load(tmp_path / "p.pt", model)
    assert torch.equal(again.sample(3, generator(5)), posterior.sample(3, generator(5)))


def test_classes_and_an_interrupt(monkeypatch):
    net = net_of(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    model, labels, calls = Model(net, Categorical()), torch.arange(12) % 3, []
    assert run(model, (X, labels)).predict(X, draws=30, generator=generator()).probs.shape == (12, 3)
    original = NegativeLogJoint.__call__

    def breaking(self, *args):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(NegativeLogJoint, "__call__", breaking)
    with pytest.warns(UserWarning, match="dropout was interrupted after 7 of 50 steps"):
        assert "interrupted" in repr(run(model, (X, labels)))
    calls.clear()
    with pytest.warns(UserWarning, match="dropout was interrupted after 7 of 50 steps"):
        posterior = run(model, (X, labels), p=[0.1, 0.3])
    assert len(calls) == 8  # the search among the p is over, too
    assert "interrupted" in repr(posterior)
    assert posterior.diagnostics["p"] == pytest.approx(0.1)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop, self.a, self.b = nn.Dropout(0.1), nn.Linear(2, 1), nn.Linear(2, 1)

    def forward(self, x):
        h = self.drop(x)
        return self.a(h) + self.b(h)


class Twice(Branching):
    def forward(self, x):
        return self.a(self.drop(x)) + self.a(x) + self.b(x)


class Looks(Branching):
    def forward(self, x):
        return self.a(self.drop(x)) if x.sum() > 0 else self.b(x)


REFUSED = {
    "none": (nn.Linear(2, 1), X, "no Dropout layer"),
    "at the end": (nn.Sequential(nn.Linear(2, 1), nn.Dropout(0.1)), X, r"1 \(Dropout\) goes into output"),
    "before tanh": (nn.Sequential(nn.Dropout(0.1), nn.Tanh(), nn.Linear(2, 1)), X, r"0 \(Dropout\) goes into Tanh"),
    "two readers": (Branching(), X, r"drop \(Dropout\) goes into 2 places"),
    "used twice": (Twice(), X, "goes into a, which is used 2 times"),
    "depends on values": (Looks(), X, "cannot follow the data"),
    "not to zero": (nn.Sequential(nn.AlphaDropout(0.1), nn.Linear(2, 1)), X, r"0 \(AlphaDropout\) does not switch"),
    "pixels": (nn.Sequential(nn.Dropout(0.1), nn.Conv2d(4, 1, 6), nn.Flatten()), IMAGES, "use nn.Dropout2d"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_net_whose_dropout_is_no_mask_of_w_is_refused_by_name(case):
    net, x, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        run(Model(net.double().eval(), Gaussian(scale=1.0)), (x, normals(len(x), 1)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"p": 1.0}, r"in \[0, 1\)"), ({"p": []}, "or a list"), ({"held_out": 1.0}, "held_out"), ({"steps": 0}, "steps")],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        run(Model(small_net(), Gaussian(scale=0.5)), **settings)
    with pytest.raises(ValueError, match="needs normal priors"):
        run(Model(small_net(), Gaussian(scale=0.5), StudentT(4.0)))
