"""One flat vector: its order, the network at it, and the joint density over it."""

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Gamma, Laplace, biject_to
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from bnnlib.nets import Categorical, Gaussian, Model, StudentT
from bnnlib.nets.moments import relu_moments

F64 = torch.float64


def made(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 5, num_layers=2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.out = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(self.embed(x)).mean(1))


class Scaled(nn.Module):
    """A parameter without dimensions, another that is used before it is defined."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.factor = nn.Linear(3, 2), nn.Parameter(torch.tensor(1.5))
        self.first = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.last(self.first(x).tanh())


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)
    ).eval()


NETS = [
    (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), made(0, 6, 3)),
    (conv, made(1, 6, 1, 4, 4)),
    (Recurrent, made(2, 6, 4, 3)),
    (Attention, torch.randint(11, (6, 4), generator=torch.Generator().manual_seed(3))),
    (Scaled, made(4, 6, 3)),
]


@pytest.mark.parametrize(("net", "x"), NETS)
def test_w_is_torchs_parameter_vector_and_the_model_is_the_net(net, x):
    """torch.nn.utils.parameters_to_vector and vector_to_parameters; the user's net stays as it was."""
    torch.manual_seed(0)
    own = net().double()
    before = parameters_to_vector(own.parameters()).detach().clone()
    model = Model(own, Gaussian(scale=0.1))
    assert model.size == len(before)
    assert torch.equal(model.start(), before)
    with torch.no_grad():
        torch.testing.assert_close(model(model.start(), x), own(x), rtol=1e-12, atol=1e-12)
        w = made(9, 3, model.size)
        batch = model(w, x)
        assert batch.shape == (3, 6, 2)
        assert torch.equal(parameters_to_vector(own.parameters()), before)
        for row, out in zip(w, batch, strict=True):
            vector_to_parameters(row, own.parameters())
            torch.testing.assert_close(own(x), out, rtol=1e-10, atol=1e-10)


def test_a_parameter_without_dimensions_has_a_prior_like_any_other():
    """scipy's Laplace over all entries, one w or many."""
    model = Model(Scaled().double(), Gaussian(scale=0.1), prior=Laplace(torch.tensor(0.0, dtype=F64), 1.0))
    w = made(0, 4, model.size)
    expected = torch.as_tensor(scipy.stats.laplace().logpdf(w).sum(-1))
    torch.testing.assert_close(model.log_prior(w), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(model.log_prior(w[0]), expected[0], rtol=1e-12, atol=0)
    assert model.unravel(w)["factor"].shape == (4,)


def test_unravel_names_each_tensor_and_gives_the_noise_in_its_own_units():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    model = Model(net, Gaussian(precision=Gamma(2.0, 1.0)))
    w = made(0, 5, model.size)
    named = model.unravel(w)
    assert {k: tuple(v.shape) for k, v in named.items()} == {
        "0.weight": (5, 4, 3), "0.bias": (5, 4), "2.weight": (5, 1, 4), "2.bias": (5, 1), "noise": (5,)
    }  # fmt: skip
    flat = torch.cat([v.reshape(5, -1) for v in named.values()], -1)
    torch.testing.assert_close(flat[:, :-1], w[:, :-1], rtol=0, atol=0)
    torch.testing.assert_close(flat[:, -1], w[:, -1].exp(), rtol=1e-12, atol=0)
    assert {k: tuple(v.shape) for k, v in model.unravel(w[0]).items()}["2.weight"] == (1, 4)


def linear(likelihood) -> Model:
    return Model(nn.Linear(2, 1).double(), likelihood)


def test_log_prior_and_log_likelihood_by_value():
    """scipy: weights N(0, 1/2), bias N(0, 1), precision Gamma(2, rate 3) with the Jacobian u of exp."""
    model = linear(Gaussian(precision=Gamma(torch.tensor(2.0, dtype=F64), torch.tensor(3.0, dtype=F64))))
    w, x, y = made(0, 5, 4), made(1, 7, 2), made(2, 7, 1)
    norm, gamma = scipy.stats.norm, scipy.stats.gamma(2.0, scale=1 / 3)
    prior = norm(0, 0.5**0.5).logpdf(w[:, :2]).sum(-1) + norm(0, 1).logpdf(w[:, 2])
    noise = gamma.logpdf(w[:, 3].exp()) + w[:, 3].numpy()
    torch.testing.assert_close(model.log_prior(w), torch.as_tensor(prior + noise), rtol=1e-11, atol=0)
    f = w[:, None, :2] @ x.T + w[:, None, 2:3]
    sd = (-0.5 * w[:, 3]).exp()
    data = norm(f.squeeze(1), sd[:, None]).logpdf(y.squeeze(-1)).sum(-1)
    torch.testing.assert_close(model.log_likelihood(w, x, y), torch.as_tensor(data), rtol=1e-11, atol=0)
    torch.testing.assert_close(model.log_joint(w, x, y), torch.as_tensor(prior + noise + data), rtol=1e-11, atol=0)
    assert model.log_joint(w[0], x, y).item() == pytest.approx((prior + noise + data)[0], rel=1e-11)


@given(seed=st.integers(0, 10**6), size=st.sampled_from([1, 2, 3, 6, 12]))
def test_the_mean_over_all_mini_batches_is_the_full_joint(seed, size):
    """A partition into equal batches: the scaled likelihoods average to the whole one, exactly."""
    x, y = made(seed, 12, 2), made(seed + 1, 12, 1)
    for likelihood in (Gaussian(scale=0.3), StudentT(3, var=Gamma(2.0, 1.0))):
        model = linear(likelihood)
        w = made(seed + 2, 4, model.size)
        parts = [model.log_joint(w, a, b, n=12) for a, b in zip(x.split(size), y.split(size), strict=True)]
        torch.testing.assert_close(torch.stack(parts).mean(0), model.log_joint(w, x, y), rtol=1e-11, atol=1e-9)


def test_prior_draws_have_the_noise_of_its_prior():
    """Kolmogorov-Smirnov of the drawn precision against scipy's Gamma, of the weights against the normal."""
    model = linear(Gaussian(precision=Gamma(2.0, 3.0)))
    w = model.sample_prior(20000, torch.Generator().manual_seed(0))
    assert w.dtype == F64
    assert scipy.stats.kstest(model.unravel(w)["noise"].numpy(), scipy.stats.gamma(2.0, scale=1 / 3).cdf).pvalue > 1e-3
    assert scipy.stats.kstest(w[:, 0].numpy(), scipy.stats.norm(0, 0.5**0.5).cdf).pvalue > 1e-3
    assert model.sample_prior(2).shape == (2, 4)


def test_a_model_in_another_dtype_is_the_same_model():
    model = Model(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), Gaussian(scale=Laplace(0.0, 1.0).scale))
    double = model.to(dtype=F64)
    w, x, y = made(5, 2, model.size), made(6, 5, 3), made(7, 5, 2)
    assert (model.dtype, double.dtype) == (torch.float32, F64)
    found = model.log_joint(w.float(), x.float(), y.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), double.log_joint(w, x, y), rtol=1e-5, atol=0)
    assert model.signature() != double.signature()


def test_w_of_the_wrong_size_is_refused():
    model = linear(Gaussian(scale=1.0))
    for call in (lambda w: model(w, made(0, 2, 2)), model.log_prior, model.unravel):
        with pytest.raises(ValueError, match="w has 4 entries, the model 3 unknowns"):
            call(torch.zeros(4, dtype=F64))
    with pytest.raises(ValueError, match=r"w has shape \(1, 1, 3\); expected \(3,\) or \(draws, 3\)"):
        model(torch.zeros(1, 1, 3, dtype=F64), made(0, 2, 2))


@pytest.mark.misreading("S3.9")
def test_permuting_hidden_units_moves_w_and_not_the_function():
    """More than one set of parameters: permutations, sign flips of tanh units, rescaled ReLU units."""
    x, order = made(0, 20, 3), torch.tensor([3, 0, 1, 2])
    for activation, change in [(nn.Tanh(), (-1.0, -1.0)), (nn.ReLU(), (4.0, 0.25))]:
        model = Model(nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 2)).double(), Categorical())
        w = made(1, model.size)
        part = model.unravel(w)
        permuted = [part["0.weight"][order], part["0.bias"][order], part["2.weight"][:, order], part["2.bias"]]
        scaled = [
            change[0] * part["0.weight"],
            change[0] * part["0.bias"],
            change[1] * part["2.weight"],
            part["2.bias"],
        ]
        for other in (permuted, scaled):
            moved = torch.cat([v.reshape(-1) for v in other])
            assert float((moved - w).abs().max()) > 0.5
            torch.testing.assert_close(model(moved, x), model(w, x), rtol=1e-12, atol=1e-12)


@pytest.mark.misreading("S3.11")
def test_the_mean_function_is_not_the_function_at_the_mean():
    """1-1-1 ReLU, all weights N(0, 1) but the last, N(2, 1): E f = 2 E relu = 2 sqrt((1 + x^2) / 2 pi), f(E w) = 0."""
    model = Model(nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double(), Gaussian(scale=1.0))
    mean, x = torch.tensor([0.0, 0.0, 2.0, 0.0], dtype=F64), torch.tensor([[0.0], [2.0]], dtype=F64)
    exact = 2 * ((1 + x**2) / (2 * torch.pi)).sqrt()
    torch.testing.assert_close(2 * relu_moments(0 * x, 1 + x**2)[0], exact, rtol=1e-12, atol=0)
    f = model(mean + made(3, 20000, 4), x)
    assert bool(((f.mean(0) - exact).abs() < 5 * f.std(0) / 20000**0.5).all())
    assert model(mean, x).tolist() == [[0.0], [0.0]]


def test_the_noise_coordinate_is_torchs_bijection():
    model = linear(Gaussian(var=Gamma(2.0, 1.0)))
    w = model.start()
    assert biject_to(Gamma(2.0, 1.0).support)(model.noise(w)).item() == pytest.approx(2.0)
    assert repr(model) == "Model(4 unknowns, Gaussian(var=Gamma(concentration=2, rate=1)), prior=N(0, 1/fan_in))"
