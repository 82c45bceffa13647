"""Posterior: predictions are averages over its own draws, and a file gives back the same posterior or a clear error."""

import os
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.distributions import Gamma, HalfNormal, Independent, MultivariateNormal, Normal

from bnnlib.data import Scaling, Standardized
from bnnlib.nets import Categorical, Gaussian, Model, Posterior, StudentT, laplace, mean_field
from bnnlib.nets.gauss_newton import LowRankPrecision


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


def network(outputs=1, activation=nn.Tanh, hidden=6):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, hidden), activation(), nn.Linear(hidden, outputs))


SCALING = Scaling(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5]), torch.tensor([10.0]), torch.tensor([4.0]))
KINDS = ["Normal", "MultivariateNormal", "LowRankPrecision"]


def posterior(kind="Normal", likelihood=None, outputs=1, scaling=None, activation=nn.Tanh):
    likelihood = Gaussian(scale=HalfNormal(1.0)) if likelihood is None else likelihood
    model = Model(network(outputs, activation), likelihood)
    size, loc = model.size, model.start()
    if kind == "Normal":
        distribution = Independent(Normal(loc, 0.1 + normals(size).square()), 1)
    elif kind == "MultivariateNormal":
        tril = 0.1 * normals(size, size).tril(-1) + torch.diag(0.2 + normals(size, seed=1).square())
        distribution = MultivariateNormal(loc, scale_tril=tril)
    else:
        distribution = LowRankPrecision(loc, 1 + normals(size).square(), normals(3, size, seed=1))
    history = {"nelbo": torch.arange(3.0)}
    return Posterior(model, distribution, "by hand", history, {"kl_weight": 0.5, "note": "x"}, scaling)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "likelihood", [None, StudentT(4.0, scale=0.3), Categorical()], ids=["Gaussian", "StudentT", "classes"]
)
def test_prediction_is_the_likelihood_at_the_networks_of_the_draws(kind, likelihood):
    """Source: sample with the same generator, run the model at each draw, ask the likelihood."""
    p, x = posterior(kind, likelihood, 3 if isinstance(likelihood, Categorical) else 1), normals(7, 2)
    found = p.predict(x, draws=20, generator=generator(5))
    w = p.sample(20, generator(5))
    exact = p.model.likelihood.predictive(p.model(w, x), p.model.noise(w), None, None)
    torch.testing.assert_close(found.mean, exact.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.epistemic_var, exact.epistemic_var, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.aleatoric_var, exact.aleatoric_var, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_functions_are_the_networks_of_the_draws(kind):
    """The same generator gives the draws that sample() gives."""
    p, x = posterior(kind), normals(3, 2)
    torch.testing.assert_close(
        p.functions(x, 9, generator(5)), p.model(p.sample(9, generator(5)), x), rtol=1e-5, atol=1e-5
    )


def test_many_large_draws_equal_draws_made_at_once():
    """Large w are drawn in chunks that bound the memory; the chunk has no part in the numbers."""
    model, size = Model(nn.Linear(300_000, 1), Gaussian(scale=0.1)), 300_001
    wide = LowRankPrecision(model.start(), torch.ones(size), torch.ones(1, size))
    p, x = Posterior(model, wide, "by hand"), torch.zeros(1, 300_000)
    x[0, 0] = 1.0
    torch.testing.assert_close(p.functions(x, 20, generator(5)), model(p.sample(20, generator(5)), x))


def test_predictions_are_in_the_original_units():
    """Source: standardise x by hand, stretch the network's output by hand."""
    p, x = posterior(scaling=SCALING), 5 * normals(7, 2)
    w = p.sample(20, generator(5))
    exact = 10 + 4 * p.model(w, (x - SCALING.x_loc) / SCALING.x_scale)
    torch.testing.assert_close(p.functions(x, 20, generator(5)), exact, rtol=1e-5, atol=1e-4)
    found = p.predict(x, draws=20, generator=generator(5))
    torch.testing.assert_close(found.mean, exact.mean(0), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(
        found.aleatoric_var, (4 * w[:, -1].exp()).square().mean().expand(7, 1), rtol=1e-5, atol=0
    )


def test_functions_of_a_linearised_posterior_have_the_spread_of_its_prediction():
    """Draws of the function and the band must be of one distribution; the net at draws of w is far outside it."""
    x = torch.linspace(-1.5, 1.5, 40).unsqueeze(-1)
    net = nn.Sequential(nn.Linear(1, 50), nn.Tanh(), nn.Linear(50, 1))
    for i, q in enumerate(net.parameters()):
        q.data = 0.5 * normals(*q.shape, seed=i)
    p = laplace(Model(net, Gaussian(scale=0.2)), (x, torch.sin(2 * x)), progress=False)
    functions, band = p.functions(x, 400, generator()).squeeze(-1), p.predict(x)
    torch.testing.assert_close(functions.std(0), band.epistemic[:, 0], rtol=0.25, atol=0)
    assert bool(((functions.mean(0) - band.mean[:, 0]).abs() < 5 * band.epistemic[:, 0] / 20).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scaling", [None, SCALING], ids=["as given", "standardised"])
def test_a_file_gives_back_the_same_posterior(kind, scaling, tmp_path):
    p, x = posterior(kind, scaling=scaling), normals(4, 2)
    p.save(tmp_path / "p.pt")
    q = Posterior.load(tmp_path / "p.pt", Model(network(), Gaussian(scale=HalfNormal(1.0))))
    assert torch.equal(p.sample(5, generator(1)), q.sample(5, generator(1)))
    assert torch.equal(p.functions(x, 5, generator(1)), q.functions(x, 5, generator(1)))
    assert repr(p) == repr(q)
    assert "TEMPERED" in repr(q)
    assert torch.equal(p.history["nelbo"], q.history["nelbo"])
    assert p.diagnostics == q.diagnostics


def test_results_of_both_methods_survive_a_file(tmp_path):
    """The linearised flag and the units are part of the file: predictions are equal bit by bit."""
    x = torch.linspace(5, 9, 30).unsqueeze(-1)
    data = Standardized(x, 100 * torch.sin(x))
    model = Model(nn.Linear(1, 1), Gaussian(scale=HalfNormal(1.0)))
    for p in (
        laplace(model, data, progress=False),
        mean_field(model, data, steps=20, generator=generator(), progress=False),
    ):
        p.save(tmp_path / "p.pt")
        q = Posterior.load(tmp_path / "p.pt", model)
        a, b = (r.predict(x, draws=10, generator=generator()) for r in (p, q))
        assert torch.equal(a.mean, b.mean)
        assert torch.equal(a.total, b.total)


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (Model(network(hidden=7), Gaussian(scale=HalfNormal(1.0))), "shapes"),
        (Model(network(), Gaussian(scale=0.1)), "likelihood"),
        (Model(network(), Gaussian(precision=Gamma(1.0, 1.0))), "likelihood"),
        (Model(network().double(), Gaussian(scale=HalfNormal(1.0))), "dtype"),
        (Model(network(activation=nn.ReLU), Gaussian(scale=HalfNormal(1.0))), "net"),
        (Model(network(), Gaussian(scale=HalfNormal(torch.ones(2)))), "likelihood|size"),
        (
            Model(
                nn.Sequential(OrderedDict(a=nn.Linear(2, 6), b=nn.Tanh(), c=nn.Linear(6, 1))),
                Gaussian(scale=HalfNormal(1.0)),
            ),
            "shapes",
        ),
    ],
    ids=["width", "known noise", "precision", "dtype", "activation", "two noises", "names"],
)
def test_a_file_for_another_model_is_refused(model, word, tmp_path):
    posterior().save(tmp_path / "p.pt")
    with pytest.raises(ValueError, match=rf"made for another model: its ({word})"):
        Posterior.load(tmp_path / "p.pt", model)


class Bomb:
    """Unpickling an instance makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["pickle", "torch", "text", "empty", "tensors"])
def test_other_files_are_refused_and_never_executed(how, tmp_path):
    path, trap, model = tmp_path / "p.pt", tmp_path / "trap", posterior().model
    if how == "pickle":
        path.write_bytes(pickle.dumps({"format": "bnnlib posterior 1", "model": Bomb(trap)}))
    elif how == "torch":
        torch.save({"format": "bnnlib posterior 1", "model": Bomb(trap)}, path)
    elif how == "tensors":
        torch.save({"weights": torch.zeros(3)}, path)
    else:
        path.write_text("" if how == "empty" else "hello")
    with pytest.raises(ValueError, match="not a saved posterior"):
        Posterior.load(path, model)
    assert not trap.exists()


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        Posterior.load(tmp_path / "none.pt", posterior().model)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    """A write that breaks off leaves the old file and nothing beside it."""
    path, p = tmp_path / "p.pt", posterior()
    p.save(path)
    old = path.read_bytes()

    def broken(content, name):
        with open(name, "wb") as half:
            half.write(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as m:
        m.setattr(torch, "save", broken)
        with pytest.raises(OSError, match="disk full"):
            p.save(path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["p.pt"]


@pytest.mark.parametrize("draws", [0, -1, 2.0, True])
def test_draws_must_be_a_whole_number(draws):
    p, x = posterior(), normals(3, 2)
    for ask in (lambda: p.sample(draws), lambda: p.predict(x, draws=draws), lambda: p.moments(x, draws=draws)):
        with pytest.raises(ValueError, match="draws must be"):
            ask()


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        ([[1.0, 2.0]], TypeError, "torch tensor"),
        (torch.tensor([[1.0, float("nan")]]), ValueError, "NaN"),
        (torch.zeros(1, 2, dtype=torch.float64), ValueError, r"x\.to\(torch\.float32\)"),
    ],
)
def test_bad_inputs_are_refused(x, error, words):
    with pytest.raises(error, match=words):
        posterior().predict(x, draws=2)
