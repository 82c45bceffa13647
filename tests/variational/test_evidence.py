"""Importance sampling: exact where q is the posterior, honest about its error elsewhere."""

import pytest
import torch
from torch.distributions import Independent, Normal

from bnnlib.variational import MeanField, importance_evidence

F64 = torch.float64
EVIDENCE = -1.7065


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def number(value):
    return torch.tensor(value, dtype=F64)


def log_joint(z):
    return Normal(number(0.0), 1.0).log_prob(z) + Normal(z, 0.5).log_prob(number(1.3))


EXACT = float(Normal(number(0.0), number(1.25).sqrt()).log_prob(number(1.3)))


def test_at_the_posterior_two_draws_are_enough():
    found = importance_evidence(log_joint, Normal(number(1.04), number(0.2).sqrt()), 2, generator=generator())
    assert float(found) == pytest.approx(EXACT, abs=1e-12)
    assert found.elbo == pytest.approx(EXACT, abs=1e-12)
    assert found.standard_error < 1e-12
    assert found.ess == pytest.approx(2, abs=1e-9)
    assert found.max_weight == pytest.approx(0.5, abs=1e-9)
    assert pytest.approx(EVIDENCE, abs=5e-5) == EXACT


def test_a_wrong_q_still_finds_the_evidence_and_knows_its_error():
    """100 repeats: the errors in units of the standard error have mean 0 and sd 1, within five of their own errors."""
    q, source = Normal(number(0.6), number(0.8)), generator()
    runs = [importance_evidence(log_joint, q, 2000, generator=source) for _ in range(100)]
    units = torch.tensor([(r.log_evidence - EXACT) / r.standard_error for r in runs])
    assert abs(float(units.mean())) < 5 / 10
    assert float(units.std()) == pytest.approx(1, abs=5 / 200**0.5)
    assert all(r.elbo < EXACT < r.elbo + 1.5 for r in runs)


def test_the_effective_number_of_draws_is_the_closed_form():
    """ESS / S -> E[w]^2 / E[w^2]. For a normal target N(0, 1) and q = N(m, 1) this is exp(-m^2)."""
    q = Normal(number(0.5), number(1.0))
    found = importance_evidence(Normal(number(0.0), 1.0).log_prob, q, 100_000, generator=generator())
    assert found.ess / 100_000 == pytest.approx(torch.exp(number(-0.25)).item(), rel=0.03)
    assert found.standard_error == pytest.approx(((torch.exp(number(0.25)) - 1) / 100_000).sqrt().item(), rel=0.05)


def test_a_narrow_q_is_betrayed_by_its_largest_weight():
    wide = Normal(number(0.0), 5.0)
    narrow = importance_evidence(wide.log_prob, Normal(number(0.0), 0.7), 1000, generator=generator())
    good = importance_evidence(wide.log_prob, Normal(number(0.0), 6.0), 1000, generator=generator())
    assert narrow.max_weight > 0.05 > 0.01 > good.max_weight
    assert narrow.ess < 100 < 800 < good.ess


def test_families_and_torch_distributions_are_alike():
    def joint(z):
        return -0.5 * z.square().sum(-1)

    a = importance_evidence(joint, MeanField(2, scale=0.9, dtype=F64), 50, generator=generator())
    q = Independent(Normal(torch.zeros(2, dtype=F64), torch.full((2,), 0.9, dtype=F64)), 1)
    assert a.log_evidence == pytest.approx(importance_evidence(joint, q, 50, generator=generator()).log_evidence)
