"""The boxes of from_inference_to_optimisation.ipynb: each test holds for the true and fails for the often written."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch.distributions import Normal

from bnnlib.normal import product
from bnnlib.variational import MeanField, elbo, fit, kl
from notebooks import ROOT

F64 = torch.float64


def t(*values):
    return torch.tensor(values, dtype=F64)


ZERO, NOISE, X = t(0.0)[0], 0.5, t(1.3)[0]
PRIOR = Normal(ZERO, 1.0)
POSTERIOR = Normal(ZERO + 1.04, math.sqrt(0.2))
# Second source: x is a sum of two independent normals, so x ~ N(0, 1 + 1/4).
LOG_EVIDENCE = stats.norm(0, math.sqrt(1.25)).logpdf(1.3)


def log_joint(z):
    return PRIOR.log_prob(z) + Normal(z, NOISE).log_prob(X)


def under(q, values):
    """E_q[values(z)] by Gauss-Hermite quadrature."""
    node, weight = np.polynomial.hermite_e.hermegauss(40)
    at = q.loc + q.scale * torch.from_numpy(node)
    return float(torch.from_numpy(weight) @ values(at)) / math.sqrt(2 * math.pi)


def bound(q, sign=-1):
    """Reconstruction, plus or minus KL to the prior, the first by quadrature."""
    return under(q, lambda z: Normal(z, NOISE).log_prob(X)) + sign * float(kl(q, PRIOR))


def test_the_numbers_of_the_chapter():
    posterior, log_evidence = product(PRIOR, Normal(X, NOISE))
    assert pytest.approx(-1.7065, abs=5e-5) == LOG_EVIDENCE
    assert log_evidence.item() == pytest.approx(LOG_EVIDENCE, abs=1e-12)
    assert posterior.loc.item() == pytest.approx(1.04, abs=1e-12)
    assert posterior.variance.item() == pytest.approx(0.2, abs=1e-12)


@pytest.mark.misreading("S4.1")
def test_the_divergence_is_subtracted():
    assert bound(POSTERIOR) == pytest.approx(LOG_EVIDENCE, abs=1e-10)
    plus = bound(POSTERIOR, sign=1)
    assert plus == pytest.approx(0.1845, abs=5e-5)
    assert plus > LOG_EVIDENCE + 1  # no lower bound
    heights = [bound(Normal(ZERO + 1.04, 10.0**-k), sign=1) for k in (1, 5, 15, 100)]
    assert heights == sorted(heights)
    assert heights[2] == pytest.approx(34.2, abs=0.05)
    assert heights[3] - heights[2] == pytest.approx(85 * math.log(10), abs=1e-6)  # and no top


@pytest.mark.misreading("S4.2")
@given(st.lists(st.integers(1, 50), min_size=8, max_size=8))
def test_a_divergence_averages_under_its_first_argument(counts):
    q, p = (torch.tensor(half, dtype=F64) / sum(half) for half in (counts[:4], counts[4:]))
    ratio = (q / p).log()
    assert (q @ ratio).item() == pytest.approx(float(kl(q, p)), abs=1e-12)
    assert float(kl(q, p)) == pytest.approx(stats.entropy(q, p), abs=1e-12)
    # Under the second argument it is another divergence with the wrong sign, and so never positive.
    assert (p @ ratio).item() == pytest.approx(-float(kl(p, q)), abs=1e-12)
    assert (p @ ratio).item() <= 1e-15


@pytest.mark.misreading("S4.2")
def test_the_two_averages_of_the_box():
    q, p = t(1 / 2, 1 / 4, 1 / 8, 1 / 8), t(1 / 8, 1 / 2, 1 / 4, 1 / 8)
    assert float(kl(q, p)) == pytest.approx(0.4332, abs=5e-5)
    assert (p @ (q / p).log()).item() == pytest.approx(-0.3466, abs=5e-5)


@pytest.mark.misreading("S4.11")
@given(st.floats(-3, 3), st.floats(0.05, 3))
@settings(max_examples=30)
def test_the_bound_is_reached_by_the_posterior_and_by_it_alone(loc, scale):
    q = Normal(ZERO + loc, scale)
    gap = LOG_EVIDENCE - bound(q)
    assert gap >= -1e-9
    # Second source of the gap: the closed form of KL between two normals.
    ratio = scale**2 / 0.2
    assert gap == pytest.approx(0.5 * (ratio + (loc - 1.04) ** 2 / 0.2 - 1 - math.log(ratio)), rel=1e-6, abs=1e-8)
    single = elbo(log_joint, POSTERIOR, 20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(single, torch.full_like(single, LOG_EVIDENCE), rtol=0, atol=1e-10)


@pytest.mark.misreading("S4.12")
def test_different_distributions_may_be_equally_far_both_ways():
    here, there = Normal(ZERO, 1.0), Normal(ZERO + 3, 1.0)
    assert (float(kl(here, there)), float(kl(there, here))) == (4.5, 4.5)
    assert not torch.equal(here.loc, there.loc)
    table = t(0.2, 0.3, 0.5)  # and two tables that are each other's mirror image
    assert float(kl(table, table.flip(0))) == pytest.approx(float(kl(table.flip(0), table)), abs=1e-15)
    assert float(kl(table, table.flip(0))) > 0.1
    wide = Normal(ZERO, 3.0)
    assert float(kl(here, wide)) == pytest.approx(math.log(3) + 1 / 18 - 0.5, abs=1e-12)
    assert float(kl(wide, here)) == pytest.approx(4.5 - 0.5 - math.log(3), abs=1e-12)


@pytest.mark.misreading("S4.13")
def test_the_evidence_belongs_to_the_model():
    for scale, expected in [(1.0, -1.7065), (3.0, -2.1226)]:
        of_model = product(Normal(ZERO, scale), Normal(X, NOISE))[1].item()
        averaged = integrate.quad(lambda z, s=scale: stats.norm.pdf(z, 0, s) * stats.norm.pdf(1.3, z, 0.5), -30, 30)[0]
        assert of_model == pytest.approx(math.log(averaged), abs=1e-9)
        assert of_model == pytest.approx(expected, abs=5e-5)
    # The reading may truly come from anywhere, say from a uniform on [0, 2]: that density is in neither model.
    assert abs(stats.uniform(0, 2).logpdf(1.3) - of_model) > 1


@pytest.mark.misreading("S4.14")
def test_one_nat_is_1_4427_bits_and_a_divergence_counts_extra_digits():
    words = {"own": ["0", "10", "110", "111"], "borrowed": ["110", "0", "10", "111"]}
    for code in words.values():  # no word begins another: the messages can be told apart
        assert not any(b.startswith(a) for a in code for b in code if a != b)
    q, p = t(1 / 2, 1 / 4, 1 / 8, 1 / 8), t(1 / 8, 1 / 2, 1 / 4, 1 / 8)
    assert sum(2.0 ** -len(w) for w in words["borrowed"]) == 1
    own, borrowed = (sum(share * len(w) for share, w in zip(q.tolist(), code, strict=True)) for code in words.values())
    assert [2.0 ** -len(w) for w in words["borrowed"]] == p.tolist()
    assert borrowed - own == 0.625
    assert pytest.approx(1.4427, abs=5e-5) == 1 / math.log(2)
    assert float(kl(q, p)) / math.log(2) == pytest.approx(0.625, abs=1e-12)
    assert abs(float(kl(q, p)) * math.log(2) - 0.625) > 0.3  # the factor is 1 / ln 2, not ln 2


@pytest.mark.misreading("S4.15")
def test_a_continuous_sum_needs_the_width_of_its_cells():
    q, totals = Normal(ZERO + 0.6, 0.8), []
    for points in (161, 1601):
        z = torch.linspace(-8, 8, points, dtype=F64)
        terms = q.log_prob(z).exp() * (q.log_prob(z) - POSTERIOR.log_prob(z))
        totals.append(terms.sum().item())
        assert totals[-1] * 16 / (points - 1) == pytest.approx(float(kl(q, POSTERIOR)), abs=1e-8)
    assert totals[1] / totals[0] == pytest.approx(10, rel=1e-6)


@pytest.mark.misreading("S4.15")
def test_a_chain_becomes_exact_and_a_fit_in_a_small_family_does_not():
    """The posterior of two entries with correlation 0.9: a chain finds their covariance, mean field does not."""
    cov = t([1, 0.9], [0.9, 1])
    target = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=F64), cov)
    g = torch.Generator().manual_seed(1)
    z = torch.full((20_000, 2), -2.0, dtype=F64)
    for _ in range(200):
        offer = z + 0.8 * torch.randn(z.shape, generator=g, dtype=F64)
        accept = torch.rand(len(z), generator=g, dtype=F64).log() < target.log_prob(offer) - target.log_prob(z)
        z = torch.where(accept[:, None], offer, z)
    # The standard error of a variance of 1 from 20,000 draws is 0.01.
    assert (z.T.cov() - cov).abs().max() < 0.05
    found = fit(target.log_prob, MeanField(2), steps=600, lr=0.05, draws=20, generator=g, progress=False)
    assert (found.distribution.variance - 0.19).abs().max() < 0.03


@pytest.mark.misreading("S4.15")
def test_the_evidence_is_constant_in_phi_so_the_slopes_are_opposite():
    phi = torch.tensor([-0.2, 0.3], dtype=F64, requires_grad=True)
    q = Normal(phi[0], phi[1].exp())
    expected = Normal(q.loc, NOISE).log_prob(X) - q.variance / (2 * NOISE**2)
    of_bound = torch.autograd.grad(expected - kl(q, PRIOR).value, phi, retain_graph=True)[0]
    of_gap = torch.autograd.grad(kl(q, POSTERIOR).value, phi)[0]
    torch.testing.assert_close(of_bound, -of_gap, rtol=0, atol=1e-12)
    assert of_bound.abs().min() > 0.1


@pytest.mark.misreading("S4.15")
def test_a_number_of_the_model_can_be_given_a_prior():
    """The prior's scale is no prior; with one it is one more hidden quantity, with a posterior of its own."""
    hyperprior = stats.halfnorm(scale=2)

    def weight(s0, power):
        return s0**power * hyperprior.pdf(s0) * stats.norm.pdf(1.3, 0, math.sqrt(s0**2 + 0.25))

    evidence, first = (integrate.quad(weight, 0, 30, args=(k,), epsabs=1e-12)[0] for k in (0, 1))
    assert math.log(evidence) == pytest.approx(-2.033, abs=5e-4)
    assert first / evidence == pytest.approx(1.639, abs=5e-4)
    assert hyperprior.mean() == pytest.approx(1.596, abs=5e-4)


@pytest.mark.misreading("S4.16")
def test_the_words_mean_what_the_table_says():
    # log is natural; the likelihood is no density of z (of a scale, say); the first argument of KL hands out weights.
    assert t(math.e).log().item() == pytest.approx(1, abs=1e-15)
    over_scale = integrate.quad(lambda s: stats.norm.pdf(1.3, 0, s), 0, 2000, points=[1, 10, 100], limit=400)[0]
    assert over_scale > 2
    top = torch.linspace(-1, 3, 4001, dtype=F64)
    assert top[Normal(top, NOISE).log_prob(X).argmax()].item() == pytest.approx(1.3, abs=1e-9)
    assert top[log_joint(top).argmax()].item() == pytest.approx(1.04, abs=1e-9)
    p, q = Normal(ZERO, 3.0), Normal(ZERO, 1.0)
    assert float(kl(p, q)) == pytest.approx(under(p, lambda z: p.log_prob(z) - q.log_prob(z)), abs=1e-8)


@pytest.mark.misreading("S4.16")
def test_no_page_uses_the_words_of_the_machine():
    debris = r"phosphorus|striker's KL|possibility for likelihood|always go down|[\u4e00-\u9fff]"
    for path in [*(ROOT / "book").rglob("*.ipynb"), *(ROOT / "book").rglob("*.md")]:
        if path.name == "misreadings.md" or ".ipynb_checkpoints" in path.parts:
            continue
        text = path.read_text("utf8")
        found = set(re.findall(debris, text))
        assert found == set() or "Misreading S4.16" in text, f"{path.name}: {found}"
