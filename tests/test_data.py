"""The book's data, and standardisation there and back."""

import math

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Independent, Normal
from torch.utils.data import DataLoader

from bnnlib.data import Standardized, check_pair, quintic
from bnnlib.nets import Categorical, Gaussian, HeteroscedasticGaussian, Model, Posterior, StudentT

F64 = torch.float64


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("noise", "scale"), [("uniform", 2.0), ("normal", 0.7)])
def test_quintics_noise_has_the_stated_law(noise, scale):
    """Kolmogorov-Smirnov against scipy's law around the noise-free curve; mean and standard deviation by formula."""
    task = quintic(20000, noise, scale, generator=generator(0))
    residual = (task.y - task.curve).flatten().numpy()
    law = scipy.stats.uniform(-scale / 2, scale) if noise == "uniform" else scipy.stats.norm(0, scale)
    assert task.noise_sd == pytest.approx(law.std())
    assert scipy.stats.kstest(residual, law.cdf).pvalue > 1e-3
    assert residual.mean() == pytest.approx(0, abs=5 * law.std() / math.sqrt(20000))
    shift = scale / 2 if noise == "uniform" else 0.0
    torch.testing.assert_close(task.curve, task.x**5 - 10 * task.x + shift)


@pytest.mark.misreading("S3.15")
def test_one_sd_of_uniform_noise_covers_less_than_the_normals_68_percent():
    """P(|2u - 1| < 2 / sqrt(12)) = 1 / sqrt(3) = 0.577 exactly, where a normal has 0.683."""
    task = quintic(40000, generator=generator(1))
    inside = ((task.y - task.curve).abs() < task.noise_sd).double().mean().item()
    exact = 1 / math.sqrt(3)
    assert task.noise_sd == pytest.approx(exact)
    assert inside == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / 40000))
    assert inside < scipy.stats.norm.cdf(1) - scipy.stats.norm.cdf(-1) - 0.08


def test_quintic_by_default_is_the_task_of_the_chapter():
    task = quintic(generator=generator(2))
    assert task.x.shape == task.y.shape == task.curve.shape == (500, 1)
    assert (task.x.min().item(), task.x.max().item()) == (-2.0, 2.0)
    assert repr(task) == "Quintic(n=500, noise_sd=0.577)"
    assert torch.equal(task.y, quintic(generator=generator(2)).y)
    spread = quintic(1000, spacing="random", low=-4, high=4, generator=generator(3)).x
    assert scipy.stats.kstest(spread.flatten().numpy(), scipy.stats.uniform(-4, 8).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": 0}, "at least one point"),
        ({"noise": "gamma"}, '"uniform" or "normal"'),
        ({"spacing": "log"}, '"even" or "random"'),
        ({"scale": -1.0}, "cannot be negative"),
        ({"scale": math.nan}, "cannot be negative"),
        ({"low": 2.0, "high": 2.0}, "low < high"),
    ],
)
def test_quintic_refuses(wrong, message):
    with pytest.raises(ValueError, match=message):
        quintic(**wrong)


@given(seed=st.integers(0, 10**6), n=st.integers(2, 30), shift=st.floats(-1e3, 1e3), scale=st.floats(1e-2, 1e3))
def test_standardized_columns_have_mean_0_and_sd_1(seed, n, shift, scale):
    x = shift + scale * torch.randn(n, 3, generator=generator(seed), dtype=F64)
    data = Standardized(x, x[:, :1])
    torch.testing.assert_close(data.x.mean(0), torch.zeros(3, dtype=F64), rtol=0, atol=1e-8)
    torch.testing.assert_close(data.x.std(0), torch.ones(3, dtype=F64), rtol=1e-8, atol=0)
    torch.testing.assert_close(data.x * data.scaling.x_scale + data.scaling.x_loc, x, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(data.y, data.x[:, :1])


def test_a_constant_column_is_only_shifted_and_labels_stay():
    x = torch.stack([torch.full((9,), 0.1), torch.arange(9.0)], -1)
    data = Standardized(x, torch.arange(9))
    assert data.x[:, 0].abs().max() < 1e-6
    assert torch.equal(data.y, torch.arange(9))
    assert (data.scaling.y_loc, data.scaling.y_scale) == (None, None)
    images = Standardized(torch.randn(8, 2, 3, 3, generator=generator(0)), torch.arange(8))
    assert images.scaling.x_loc.shape == (2, 3, 3)


def test_a_loader_over_standardized_data_gives_its_batches():
    data = Standardized(torch.arange(6.0).reshape(6, 1), torch.arange(6.0).reshape(6, 1))
    batches = list(DataLoader(data, batch_size=4))
    assert [len(x) for x, _ in batches] == [4, 2]
    assert torch.equal(torch.cat([x for x, _ in batches]), data.x)
    assert repr(data) == "Standardized(n=6, x=(1,), y=(1,))"


def trained(likelihood, outputs: int) -> tuple[Posterior, Standardized]:
    x = 30 + 5 * torch.randn(40, 2, generator=generator(4), dtype=F64)
    y = torch.stack([100 * x[:, 0], -0.01 * x[:, 1]], -1)
    data = Standardized(x, y)
    model = Model(nn.Linear(2, outputs).double(), likelihood)
    w = 0.3 * torch.randn(model.size, generator=generator(5), dtype=F64)
    return Posterior(model, Independent(Normal(w, 0.1 * torch.ones_like(w)), 1), "test", scaling=data.scaling), data


@pytest.mark.parametrize(
    ("likelihood", "outputs"), [(Gaussian(scale=0.3), 2), (StudentT(4, scale=0.3), 2), (HeteroscedasticGaussian(), 4)]
)
def test_a_prediction_in_original_units_is_the_change_of_variables(likelihood, outputs):
    """y = loc + scale z: means and sds scale, quantiles and draws map, densities take the Jacobian -sum log scale."""
    posterior, data = trained(likelihood, outputs)
    x_new = 30 + 5 * torch.randn(7, 2, generator=generator(6), dtype=F64)
    y_new = torch.stack([100 * x_new[:, 0], -0.01 * x_new[:, 1]], -1)
    loc, scale = data.scaling.y_loc, data.scaling.y_scale
    there = posterior.predict(x_new, draws=20, generator=generator(7))
    plain = Posterior(posterior.model, posterior.distribution, "test")
    here = plain.predict((x_new - data.scaling.x_loc) / data.scaling.x_scale, draws=20, generator=generator(7))
    z = (y_new - loc) / scale
    torch.testing.assert_close(there.mean, loc + scale * here.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(there.epistemic, scale * here.epistemic, rtol=1e-10, atol=0)
    torch.testing.assert_close(there.aleatoric, scale * here.aleatoric, rtol=1e-10, atol=0)
    torch.testing.assert_close(there.log_prob(y_new), here.log_prob(z) - scale.log().sum(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(there.quantile(0.9), loc + scale * here.quantile(0.9), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(there.crps(y_new), scale * here.crps(z), rtol=1e-8, atol=0)
    f_there, f_here = (p.functions(v, 3, generator(8)) for p, v in ((posterior, x_new), (plain, data.scaling.x(x_new))))
    torch.testing.assert_close(f_there, loc + scale * f_here[..., :2], rtol=1e-10, atol=1e-10)


def test_labels_have_no_units_to_undo():
    x = 5 * torch.randn(20, 2, generator=generator(9))
    data = Standardized(x, torch.arange(20) % 3)
    model = Model(nn.Linear(2, 3), Categorical())
    q = Independent(Normal(torch.zeros(model.size), torch.ones(model.size)), 1)
    there = Posterior(model, q, "test", scaling=data.scaling).predict(x, draws=5, generator=generator(1))
    here = Posterior(model, q, "test").predict(data.x, draws=5, generator=generator(1))
    assert torch.equal(there.probs, here.probs)


def test_pairs_that_are_no_pairs_are_refused():
    x = torch.zeros(3, 1)
    for bad, message in [
        ((x, torch.zeros(4, 1)), "x has 3 rows, y has 4"),
        (
            (x, torch.tensor([[math.nan], [0.0], [1.0]])),
            "y has NaN or infinite values in 1 of 3 rows, the first is row 0",
        ),
        ((torch.zeros(0, 1), torch.zeros(0, 1)), "x is empty"),
        ((torch.zeros(()), torch.zeros(())), "x is empty"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_pair(*bad)
    with pytest.raises(TypeError, match=r"use torch\.as_tensor\(x\)"):
        check_pair([1.0], torch.zeros(1, 1))
    with pytest.raises(ValueError, match="at least two points"):
        Standardized(torch.zeros(1, 1), torch.zeros(1, 1))
    with pytest.raises(ValueError, match="whole numbers have no scale"):
        Standardized(torch.arange(3).reshape(3, 1), torch.zeros(3, 1))
