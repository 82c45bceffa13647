"""The boxes of book/normal/why_normal.ipynb: each test holds for what is true and fails for what is often written."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn
from torch.distributions import Cauchy, Laplace, Normal, Uniform, kl_divergence
from torch.nn.functional import softplus

from bnnlib.normal import entropy, kl, max_entropy_table, positive, positive_inverse


@pytest.fixture
def g():
    return torch.Generator().manual_seed(0)


@pytest.mark.misreading("S2.9")
def test_the_normal_has_the_largest_entropy_only_for_its_variance():
    table = max_entropy_table()
    assert next(iter(table)) == "normal"
    expected = {"normal": 1.419, "logistic": 1.405, "Student-t, 5 df": 1.372, "Laplace": 1.347, "uniform": 1.242}
    assert {k: round(table[k], 3) for k in expected} == expected
    # Without "of that variance": a wider normal and a law without variance have more.
    assert entropy(Normal(0.0, 10.0)).item() == pytest.approx(3.72, abs=0.005)
    assert Cauchy(0.0, 1.0).entropy().item() == pytest.approx(2.53, abs=0.005)
    assert Cauchy(0.0, 1.0).entropy().item() > table["normal"]
    assert max_entropy_table(sd=3.0)["uniform"] > table["normal"]


@pytest.mark.misreading("S3.6")
def test_kl_is_no_distance():
    a, b, c = (Normal(torch.tensor(m), torch.tensor(1.0)) for m in (0.0, 1.0, 2.0))
    assert kl(a, c).item() == pytest.approx(2)
    assert kl(a, c).item() > (kl(a, b) + kl(b, c)).item() == pytest.approx(1)
    narrow = Normal(torch.tensor(0.0), torch.tensor(0.5))
    assert kl(narrow, a).item() == pytest.approx(math.log(2) - 0.375, abs=1e-6)
    assert abs(kl(narrow, a) - kl(a, narrow)).item() > 0.4


@pytest.mark.misreading("S3.7")
def test_kl_is_infinite_only_where_q_has_mass_and_p_has_none():
    normal, box = Normal(0.0, 1.0), Uniform(-3.0, 3.0)
    assert kl_divergence(Laplace(0.0, 1.0), normal).item() == pytest.approx(0.2258, abs=1e-4)
    # p is tiny far out, yet not zero: finite. q has none where p has some: finite. The other way: infinite.
    assert kl_divergence(box, normal).item() < 1
    assert kl_divergence(normal, box).item() == math.inf
    # Tails count too: p = normal is positive everywhere, and still too light for a Cauchy.
    parts = [
        integrate.quad(
            lambda x: stats.cauchy.pdf(x) * (stats.cauchy.logpdf(x) - stats.norm.logpdf(x)), -r, r, limit=500
        )[0]
        for r in (10, 100, 1000)
    ]
    assert parts[1] / parts[0] > 8
    assert parts[2] / parts[1] > 8


@pytest.mark.misreading("S0.3")
def test_softplus_of_a_standard_normal_is_no_small_scale(g):
    z = np.linspace(-12, 12, 20_001)
    mean = integrate.trapezoid(np.log1p(np.exp(z)) * stats.norm.pdf(z), z)
    assert mean == pytest.approx(0.806, abs=5e-4)
    assert positive(torch.randn(100_000, generator=g)).mean().item() == pytest.approx(mean, abs=0.01)
    # Noise that 1,024 such weights add to one unit with inputs of size one, against a chosen start of 0.05.
    careless = positive(torch.randn(1024, generator=g)).square().sum().sqrt().item()
    chosen = positive(positive_inverse(torch.full((1024,), 0.05))).square().sum().sqrt().item()
    assert careless > 25
    assert chosen == pytest.approx(0.05 * 32, rel=1e-4)


@pytest.mark.misreading("S0.3")
def test_a_start_that_wide_drowns_the_gradient(g):
    """The gradient of a squared error by one draw of w: its spread over draws, for the two starts."""
    x, y, spread = torch.ones(256) / 16, 1.0, {}
    for scale in (0.806, 0.05):
        w = scale * torch.randn(2_000, 256, generator=g)
        gradient = 2 * (w @ x - y).unsqueeze(-1) * x
        spread[scale] = gradient.std(0).mean().item()
    assert spread[0.806] > 10 * spread[0.05]


@pytest.mark.misreading("S0.4")
def test_softplus_is_positive_on_paper_and_zero_in_float32():
    rho = torch.tensor([-50.0, -104.0])
    assert softplus(rho)[0].item() > 0
    assert softplus(rho)[1].item() == 0
    with pytest.raises(ValueError, match="scale"):
        Normal(0.0, softplus(rho)[1], validate_args=True)
    assert Normal(0.0, positive(rho)[1], validate_args=True).scale.item() > 0


def prior_draws(weight_sd, bias_sd, g, draws=30):
    """Mean of the largest class probability of random 784-1024-10 nets, and the sd of a hidden unit's input."""
    x, sure, spread = torch.rand(16, 784, generator=g), [], []
    for _ in range(draws):
        w1 = weight_sd(784) * torch.randn(784, 1024, generator=g)
        w2 = weight_sd(1024) * torch.randn(1024, 10, generator=g)
        b1, b2 = (bias_sd * torch.randn(k, generator=g) for k in (1024, 10))
        hidden = x @ w1 + b1
        spread.append(hidden.std().item())
        sure.append((hidden.relu() @ w2 + b2).softmax(-1).max(-1).values.mean().item())
    return np.mean(sure), np.mean(spread)


@pytest.mark.misreading("S0.6")
def test_standard_normal_weights_are_huge_for_a_large_fan_in(g):
    sure, spread = prior_draws(lambda fan_in: 1.0, 1.0, g)
    assert spread == pytest.approx(math.sqrt(784 / 3 + 1), rel=0.02)  # 16.2
    assert sure > 0.98
    modest, spread = prior_draws(lambda fan_in: fan_in**-0.5, 0.0, g)
    assert spread == pytest.approx(math.sqrt(1 / 3), rel=0.02)
    assert modest < 0.25
    with_biases, _ = prior_draws(lambda fan_in: fan_in**-0.5, 1.0, g)
    assert modest < with_biases < 0.45


@pytest.mark.misreading("S0.11")
def test_torch_starts_biases_with_either_sign_and_a_threshold_is_minus_the_bias():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bias = nn.Linear(64, 10_000).bias.detach()
    assert bias.abs().max().item() <= 1 / 8
    assert bias.abs().max().item() == pytest.approx(1 / 8, abs=1e-4)
    assert (bias < 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    x = torch.linspace(-2, 2, 4001, dtype=torch.float64)
    fires = x[(x + 0.7) > 0]
    assert fires[0].item() == pytest.approx(-0.7, abs=2e-3)
