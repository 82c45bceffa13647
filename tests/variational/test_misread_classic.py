"""The boxes of mean_field.ipynb and vae.ipynb: each test holds for what is true and fails for what is often written."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from bnnlib.normal import positive_inverse
from bnnlib.variational import VAE, cavi_normal

RHO = 0.9
ZERO = torch.zeros(2, dtype=torch.float64)
COV = torch.tensor([[1, RHO], [RHO, 1]], dtype=torch.float64)


def number(value):
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.misreading("S1.15")
def test_more_computing_mends_a_sampler_and_not_a_factorised_q():
    start = torch.tensor([-2.0, 2.0], dtype=torch.float64)
    for sweeps in (1, 10, 1000):
        q = cavi_normal(ZERO, COV, start=start, sweeps=sweeps, tol=0.0).distribution
        assert q.variance.tolist() == pytest.approx([0.19, 0.19], abs=1e-12)
    g = torch.Generator().manual_seed(0)
    chains, errors = 20_000, []
    z = torch.zeros(chains, dtype=torch.float64)
    for sweep in range(1, 41):  # the same conditionals, but drawn from
        for _ in range(2):
            z = RHO * z + math.sqrt(1 - RHO**2) * torch.randn(chains, dtype=torch.float64, generator=g)
        if sweep in (1, 4, 40):
            errors.append(abs(z.var().item() - 1))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 5 * math.sqrt(2 / chains)
    assert 20 * errors[2] < 1 - 0.19


@pytest.mark.misreading("S4.8")
def test_the_family_and_the_objective_are_two_choices():
    target = MultivariateNormal(ZERO, COV)
    v = torch.linspace(0.05, 2, 1951, dtype=torch.float64)
    factorised = MultivariateNormal(ZERO, v.reshape(-1, 1, 1) * torch.eye(2, dtype=torch.float64))
    # One family, two objectives.
    assert v[kl_divergence(factorised, target).argmin()].item() == pytest.approx(0.19, abs=1e-9)
    assert v[kl_divergence(target, factorised).argmin()].item() == pytest.approx(1, abs=1e-9)
    # One objective, two families.
    apart, together = cavi_normal(ZERO, COV), cavi_normal(ZERO, COV, blocks=[[0, 1]])
    assert apart.distribution.covariance_matrix[0].tolist() == pytest.approx([0.19, 0], abs=1e-12)
    assert together.distribution.covariance_matrix[0].tolist() == pytest.approx([1, RHO], abs=1e-12)
    assert apart.elbo[-1].item() == pytest.approx(0.5 * math.log(0.19), abs=1e-12)
    assert together.elbo[-1].item() == pytest.approx(0, abs=1e-12)


@pytest.mark.misreading("S4.5")
def test_the_decoder_is_the_likelihood_and_the_encoder_is_q():
    """z ~ N(0, 1), x | z ~ N(z, 1/4): the posterior is N(0.8 x, 0.2), the evidence N(0, 1.25)."""
    vae = VAE(1, 1, hidden=(), likelihood="gaussian", generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        vae.rho.copy_(positive_inverse(number(0.5)))
        vae.decoder[0].weight.fill_(1.0)
        vae.decoder[0].bias.zero_()
        vae.encoder[0].weight.copy_(number([[0.8], [0.0]]))
        vae.encoder[0].bias.copy_(torch.stack([number(0.0), positive_inverse(number(0.2).sqrt())]))
    x, z = number([[1.3]]), number([[0.7]])
    # The decoder takes a z and gives a distribution over x: it is the model's p(x | z).
    decoded, encoded = vae.decode(z), vae.encode(x)
    assert decoded.log_prob(x).item() == pytest.approx(Normal(number(0.7), 0.5).log_prob(x).item(), abs=1e-9)
    assert (encoded.mean.item(), encoded.variance.item()) == pytest.approx((1.04, 0.2), abs=1e-9)
    # With the decoder as p(x | z) every z gives the evidence.
    evidence = Normal(number(0.0), number(1.25).sqrt()).log_prob(x).item()
    assert evidence == pytest.approx(-1.7065, abs=1e-4)
    drawn = number([-1.0, 0.0, 0.5, 1.0, 2.0]).reshape(5, 1, 1)
    bound = vae.decode(drawn).log_prob(x) + vae.prior(z).log_prob(drawn) - encoded.log_prob(drawn)
    assert bound.reshape(-1).tolist() == pytest.approx([evidence] * 5, abs=1e-9)
    # Read as a function of x, the encoder's q is no decoder: N(z / 0.8, 0.2 / 0.64), and the "bound" is none.
    wrong = Normal(drawn / 0.8, math.sqrt(0.2) / 0.8).log_prob(x).squeeze(-1)
    wrong = wrong + vae.prior(z).log_prob(drawn) - encoded.log_prob(drawn)
    assert wrong.std().item() > 0.1
