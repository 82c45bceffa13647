"""What a home-made loss stands for: by algebra, by the values in the book, and by gradients."""

import math

import numpy as np
import pytest
import torch
import torchbnn
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bnnlib.nets import audit_loss

F64 = torch.float64
SIZE = 2 * 3 + 3 + 3 * 2 + 2


@pytest.mark.misreading("S3.1")
def test_the_recipe_stands_for_a_noise_of_0_029_and_is_400_times_too_cold():
    """sigma^2 = kl_weight n / (2 size) = 0.01 * 500 / 6002; T = that over the true 1/3."""
    audit = audit_loss("mse + kl", kl_weight=0.01, kl_reduction="mean", n=500, size=3001)
    assert audit.noise_sd == pytest.approx(math.sqrt(0.01 * 500 / (2 * 3001)), rel=1e-12)
    assert audit.noise_sd == pytest.approx(0.0289, abs=5e-5)
    assert 1 / audit.temperature(1 / math.sqrt(3)) == pytest.approx(400, rel=2e-3)
    assert str(audit) == "negative ELBO of normal noise with standard deviation 0.0289"


def torchbnn_net() -> nn.Module:
    torch.manual_seed(0)
    layers = [torchbnn.BayesLinear(0, 0.3, 2, 3), nn.Tanh(), torchbnn.BayesLinear(0, 0.3, 3, 2)]
    net = nn.Sequential(*layers).double()
    torchbnn.utils.freeze(net)  # one draw for both losses
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return net


def gradient(net: nn.Module, loss: Tensor) -> Tensor:
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(net.parameters()))])


def exact_kl(net: nn.Module) -> Tensor:
    """torch's own divergence, layer by layer."""
    total = torch.zeros((), dtype=F64)
    for m in net:
        if isinstance(m, torchbnn.BayesLinear):
            prior = torch.distributions.Normal(m.prior_mu, m.prior_sigma)
            for mu, log_sd in ((m.weight_mu, m.weight_log_sigma), (m.bias_mu, m.bias_log_sigma)):
                q = torch.distributions.Normal(mu, log_sd.exp())
                total = total + torch.distributions.kl_divergence(q, prior).sum()
    return total


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("loss", ["mse + kl", "sse + kl", "nll + kl", "nll_sum + kl"])
def test_the_loss_is_the_tempered_elbo_up_to_a_factor(loss, reduction):
    """Gradients of a torchbnn net's loss against those of E + T KL, E and KL by torch.distributions: proportional."""
    net, weight, sd, n = torchbnn_net(), 0.07, 0.6, 40
    x, y = torch.randn(n, 2, dtype=F64), torch.randn(n, 2, dtype=F64)
    f = net(x)
    nll = -torch.distributions.Normal(f, sd).log_prob(y).sum()
    error = {
        "mse + kl": (y - f).square().mean(),
        "sse + kl": (y - f).square().sum(),
        "nll + kl": nll / n,
        "nll_sum + kl": nll,
    }[loss]
    audit = audit_loss(loss, kl_weight=weight, kl_reduction=reduction, n=n, size=SIZE, outputs=2)
    home_made = gradient(net, error + weight * exact_kl(net) / (SIZE if reduction == "mean" else 1))
    f = net(x)
    nll = -torch.distributions.Normal(f, sd).log_prob(y).sum()
    elbo = gradient(net, nll + audit.temperature(sd) * exact_kl(net))
    factor = (home_made @ elbo) / (elbo @ elbo)
    torch.testing.assert_close(home_made, factor * elbo, rtol=1e-9, atol=1e-12)


@given(weight=st.floats(1e-6, 1e3), n=st.integers(1, 10**6), size=st.integers(1, 10**6), outputs=st.integers(1, 9))
def test_at_its_own_noise_a_squared_error_loss_has_temperature_1(weight, n, size, outputs):
    for loss in ("mse + kl", "sse + kl"):
        for reduction in ("sum", "mean"):
            audit = audit_loss(loss, kl_weight=weight, kl_reduction=reduction, n=n, size=size, outputs=outputs)
            assert audit.temperature(audit.noise_sd) == pytest.approx(1.0, rel=1e-12)
            assert audit.temperature(2 * audit.noise_sd) == pytest.approx(0.25, rel=1e-12)


def test_an_elbo_is_found_to_be_one():
    """Mean nll with the KL over n, and the sum with the KL whole."""
    for audit in (
        audit_loss("nll + kl", kl_weight=1 / 60000, n=60000, size=9),
        audit_loss("nll_sum + kl", n=60000, size=9),
    ):
        assert audit.temperature() == pytest.approx(1.0, rel=1e-12)
        assert math.isnan(audit.noise_sd)
        assert str(audit) == "negative ELBO at temperature 1"


def test_torchbnns_mean_is_its_sum_over_the_number_of_weights():
    net = torchbnn_net()
    total, mean = (torchbnn.BKLLoss(reduction=r)(net).item() for r in ("sum", "mean"))
    assert mean == pytest.approx(total / SIZE, rel=1e-6)
    assert total == pytest.approx(exact_kl(net).item(), rel=1e-6)


@pytest.mark.misreading("S3.13")
def test_transform_model_is_not_in_torchbnn():
    """The converter of the recipe belongs to another package, torchhk."""
    modules = [torchbnn, torchbnn.utils, torchbnn.modules, torchbnn.functional]
    assert [m.__name__ for m in modules if hasattr(m, "transform_model")] == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"loss": "mse - kl"}, "loss must be one of 'mse \\+ kl'"),
        ({"kl_reduction": "batchmean"}, '"sum" or "mean"'),
        ({"n": 0}, "n must be a whole number, at least 1, got 0"),
        ({"size": 2.5}, "size must be a whole number"),
        ({"outputs": True}, "outputs must be a whole number"),
        ({"kl_weight": 0.0}, "kl_weight must be positive and finite"),
        ({"kl_weight": math.nan}, "kl_weight must be positive and finite"),
    ],
)
def test_losses_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        audit_loss(**{"n": 10, "size": 10, **wrong})


def test_a_temperature_needs_the_noise_and_counts_may_be_numpys():
    for noise in (None, 0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="needs the noise's standard deviation"):
            audit_loss(n=10, size=10).temperature(noise)
    assert audit_loss(n=np.int64(10), size=np.int64(10)) == audit_loss(n=10, size=10)
