"""laplace in structures keeps the promises of every method; its distributions are the normals they say they are."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.distributions import Gamma, HalfNormal, MultivariateNormal, Normal
from torch.utils.data import DataLoader, Dataset, TensorDataset

from bnnlib.data import Standardized, quintic
from bnnlib.metrics import nll
from bnnlib.nets import Categorical, Gaussian, Model, Posterior, deterministic, laplace
from bnnlib.nets.kronecker import KroneckerNormal, block_of
from bnnlib.nets.last_layer import PartialNormal

F64 = torch.float64
every_structure = pytest.mark.parametrize("structure", ["kronecker", "diagonal", "last_layer"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def network(hidden=6, outputs=1, inputs=1):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def model(**settings):
    return Model(network(**settings), Gaussian(scale=HalfNormal(1.0)))


X = torch.linspace(-1.5, 1.5, 40).unsqueeze(-1)
Y = torch.sin(2 * X) + 0.1 * normals(40, 1).float()


def square(n, seed):
    half = normals(n, n + 2, seed=seed)
    return half @ half.T


def kronecker_normal():
    parts = [(square(4, 0), square(3, 1), 0, True), (square(3, 2), square(2, 3), 12, False)]
    precision = torch.cat([torch.tensor([0.5, 2.0, 1.0], dtype=F64).repeat(3), torch.full((3,), 7.0, dtype=F64)])
    blocks = [
        block_of(*parts[0][:2], precision, *parts[0][2:]),
        block_of(*parts[1][:2], 0 * precision[:6] + 3, 12, False),
    ]
    return KroneckerNormal(normals(20), blocks, torch.tensor([0.3, 2.0], dtype=F64))


def test_a_kronecker_normal_is_a_normal():
    """Source: torch's MultivariateNormal with the covariance written out."""
    q = kronecker_normal()
    covariance = q.covariance_of(torch.eye(20, dtype=F64))
    exact, at = MultivariateNormal(q.mean, covariance), normals(5, 20, seed=8)
    torch.testing.assert_close(q.log_prob(at), exact.log_prob(at), rtol=1e-10, atol=0)
    torch.testing.assert_close(q.entropy(), exact.entropy(), rtol=1e-11, atol=0)
    torch.testing.assert_close(q.variance, covariance.diagonal(), rtol=1e-12, atol=0)
    root = q.from_noise(torch.eye(20, dtype=F64)) - q.mean
    torch.testing.assert_close(root.T @ root, covariance, rtol=1e-10, atol=1e-12)


def test_the_evidence_of_a_block_is_its_determinant():
    """Source: log det (A (x) G + D) - log det D, by numpy's rule for the determinant of the whole."""
    a, g, columns = square(4, 0), square(3, 1), torch.tensor([0.5, 2.0, 1.0, 7.0], dtype=F64)
    precision = torch.cat([columns[:3].repeat(3), columns[3].repeat(3)])
    prior = torch.diag(columns.repeat(3))
    exact = torch.linalg.slogdet(torch.kron(g, a) + prior)[1] - torch.linalg.slogdet(prior)[1]
    assert block_of(a, g, precision, 0, True).log_det == pytest.approx(float(exact), rel=1e-12)


def test_a_partial_normal_is_a_normal_where_it_varies():
    """Source: torch's MultivariateNormal on those entries; the others stay at the mean to the last bit."""
    index, tril = torch.tensor([1, 2, 5]), torch.linalg.cholesky(square(3, 0))
    q, exact = PartialNormal(normals(6), index, tril), MultivariateNormal(normals(6)[index], scale_tril=tril)
    torch.testing.assert_close(q.variance[index], exact.variance)
    assert torch.equal(q.variance[[0, 3, 4]], torch.zeros(3, dtype=F64))
    noise = normals(1000, 3, seed=4)
    drawn = q.from_noise(noise)
    torch.testing.assert_close(drawn[:, index], exact.mean + noise @ tril.T)
    assert torch.equal(drawn[:, 0], q.mean[0].expand(1000))
    torch.testing.assert_close(q.entropy(), exact.entropy())


@every_structure
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_a_file_gives_the_same_draws(structure, dtype, tmp_path):
    m = Model(network().to(dtype), Gaussian(scale=HalfNormal(1.0)))
    posterior = laplace(m, Standardized(X.to(dtype), Y.to(dtype)), structure=structure, steps=100, progress=False)
    posterior.save(tmp_path / "p.pt")
    again = Posterior.load(tmp_path / "p.pt", m)
    assert torch.equal(again.sample(5, generator(1)), posterior.sample(5, generator(1)))
    a, b = again.predict(X.to(dtype)), posterior.predict(X.to(dtype))
    assert torch.equal(a.total, b.total)
    assert a.mean.dtype == dtype
    assert bool(torch.isfinite(posterior.functions(X.to(dtype), 3, generator())).all())


@every_structure
def test_the_net_and_the_global_state_stay_as_they_were(structure, capsys):
    m = model()
    before, seed = [p.clone() for p in m.net.parameters()], torch.get_rng_state()
    first = laplace(m, (X, Y), structure=structure, steps=60, progress=False)
    second = laplace(m, (X, Y), structure=structure, steps=60, progress=False)
    assert all(torch.equal(p, q) for p, q in zip(before, m.net.parameters(), strict=True))
    assert torch.equal(seed, torch.get_rng_state())
    assert torch.equal(first.mean, second.mean)
    assert not any(len(module._forward_hooks) for module in m.net.modules())
    assert capsys.readouterr().err == ""


class Breaking(Dataset):
    """Pairs; after `left` looks at one of them it breaks."""

    def __init__(self, left):
        self.left = left

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return X[i], Y[i]


@every_structure
def test_an_interrupt_keeps_what_was_reached(structure):
    data = DataLoader(Breaking(500), batch_size=10)
    with pytest.warns(UserWarning, match="interrupted after"):
        posterior = laplace(model(), data, structure=structure, progress=False)
    assert "interrupted" in repr(posterior)
    assert 0 < posterior.diagnostics["steps"] < 3000
    assert bool(torch.isfinite(posterior.predict(X).total).all())


@every_structure
def test_a_diverging_fit_names_its_step(structure):
    with pytest.raises(FloatingPointError, match="at step"):
        laplace(model(), (X, Y), structure=structure, lr=1e38, steps=200, progress=False)


def test_what_a_structure_does_not_know_is_named():
    lstm = nn.Sequential(nn.Conv1d(1, 2, 1), nn.Flatten(), nn.Linear(2, 1))
    with pytest.raises(ValueError, match="0 is a Conv1d"):
        laplace(Model(lstm, Gaussian(scale=0.1)), (torch.ones(3, 1, 1), torch.ones(3, 1)), structure="kronecker")
    groups = nn.Sequential(nn.Conv2d(2, 2, 1, groups=2), nn.Flatten(), nn.Linear(2, 1))
    with pytest.raises(ValueError, match="Conv2d with 2 groups"):
        laplace(Model(groups, Gaussian(scale=0.1)), (torch.ones(3, 2, 1, 1), torch.ones(3, 1)), structure="kronecker")
    ends = nn.Sequential(nn.Linear(1, 2), nn.Tanh())
    with pytest.raises(ValueError, match=r"does not come straight from one Linear.*0 \(Linear\)"):
        laplace(Model(ends, Gaussian(scale=0.1)), (X, X.expand(-1, 2)), structure="last_layer", progress=False)
    with pytest.raises(ValueError, match="structure is 'full', 'kronecker'"):
        laplace(model(), (X, Y), structure="lowrank")
    many = Model(network(outputs=2), Gaussian(precision=Gamma(torch.ones(2), torch.ones(2))))
    with pytest.raises(ValueError, match="one noise an output"):
        laplace(many, (X, Y.expand(-1, 2)), structure="diagonal")
    varying = Model(network(), Gaussian(scale=0.1), {"0.weight": Normal(0.0, torch.linspace(1, 2, 6).unsqueeze(-1))})
    with pytest.raises(ValueError, match=r"0 \(Linear\): the prior precision differs"):
        laplace(varying, (X, Y), structure="kronecker")


def test_a_layer_used_twice_has_no_single_product():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.last = nn.Linear(1, 1), nn.Linear(1, 1)

        def forward(self, x):
            return self.last(self.inner(self.inner(x)))

    with pytest.raises(ValueError, match=r"inner.*ran 2 times"):
        laplace(Model(Twice(), Gaussian(scale=0.1)), (X, Y), structure="kronecker", steps=0, progress=False)


@pytest.mark.slow
@every_structure
def test_the_quintic_is_met(structure):
    """Held-out NLL near the oracle's and a noise near the truth: the evidence works in each structure."""
    train = quintic(500, noise="normal", scale=0.58, generator=generator())
    test = quintic(500, noise="normal", scale=0.58, spacing="random", generator=generator(1))
    posterior = laplace(
        model(hidden=20), Standardized(train.x, train.y), structure=structure, progress=False, generator=generator()
    )
    predictive = posterior.predict(test.x)
    oracle = -Normal(test.curve, 0.58).log_prob(test.y).mean()
    assert float(nll(predictive, test.y) - oracle) < (0.06 if structure == "diagonal" else 0.03)
    assert posterior.history["noise"][-1] * train.y.std() == pytest.approx(0.58, rel=0.1)


@pytest.mark.slow
def test_a_reader_of_digits_keeps_its_classes_in_every_structure():
    """Classes, convolutions and mini-batches: the accuracy of the mode is kept, the evidence does not fall."""
    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1, torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=generator())  # in the file's order, the last digits are by other writers
    x, y = x[order], y[order]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 16), nn.ReLU()]
        m = Model(nn.Sequential(*layers, nn.Linear(16, 10)), Categorical())
    data = TensorDataset(x[:600], y[:600])
    for structure in ("kronecker", "diagonal", "last_layer"):
        loader = DataLoader(data, batch_size=100, shuffle=True, generator=generator())
        posterior = laplace(m, loader, structure=structure, steps=600, progress=False)
        probs = posterior.predict(x[-300:], draws=200, generator=generator(1)).probs
        mode = deterministic(posterior)(x[-300:]).argmax(-1)
        assert float((mode == y[-300:]).double().mean()) > 0.9
        assert float((probs.argmax(-1) == mode).double().mean()) > 0.95
        assert posterior.history["log_evidence"][-1] > posterior.history["log_evidence"][0]


@pytest.mark.parametrize("steps", [2, 20, 60])
def test_a_short_run_finds_prior_and_noise_too(steps):
    """The burn-in, in which both stay where they are, must not be the whole run."""
    train = quintic(40, generator=torch.Generator().manual_seed(1))
    net = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1))
    model = Model(net, Gaussian(scale=HalfNormal(1.0)))
    data = Standardized(train.x, train.y)
    moved, still = (
        laplace(model, data, steps=steps, tolerance=0.0, progress=False, **how) for how in ({}, {"burn_in": steps})
    )
    for name in model.shapes:
        assert moved.diagnostics[f"prior_sd {name}"] != still.diagnostics[f"prior_sd {name}"]
