"""Bayes' rule against exact fractions and against itself under changes that must not matter."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bnnlib.bayes import Update, bayes_rule

F64 = torch.float64
weights = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=6)


def table(*rows):
    return torch.tensor(rows, dtype=F64)


def test_a_table_against_exact_fractions():
    prior = [Fraction(1, 100), Fraction(99, 100)]
    likelihood = [Fraction(9, 10), Fraction(9, 100)]
    joint = [p * q for p, q in zip(prior, likelihood, strict=True)]
    update = bayes_rule(table(*map(float, prior)), table(*map(float, likelihood)))
    assert update.evidence.item() == pytest.approx(float(sum(joint)), rel=1e-14)
    assert update.posterior.tolist() == pytest.approx([float(j / sum(joint)) for j in joint], rel=1e-14)


@given(weights, st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_the_posterior_is_normalised_and_scales_cancel(values, a, b):
    prior, likelihood = table(*values), table(*reversed(values)) ** 2
    update = bayes_rule(prior, likelihood)
    assert update.posterior.sum().item() == pytest.approx(1, rel=1e-12)
    scaled = bayes_rule(a * prior, b * likelihood)
    torch.testing.assert_close(scaled.posterior, update.posterior, rtol=1e-12, atol=0)
    torch.testing.assert_close(scaled.evidence, b * update.evidence, rtol=1e-12, atol=0)


@given(weights)
def test_order_of_hypotheses_does_not_matter(values):
    prior, likelihood = table(*values), table(*values).roll(1)
    there = bayes_rule(prior.flip(0), likelihood.flip(0)).posterior.flip(0)
    torch.testing.assert_close(there, bayes_rule(prior, likelihood).posterior, rtol=1e-13, atol=0)


def test_two_steps_equal_one_and_evidences_multiply():
    prior, first, second = table(0.2, 0.3, 0.5), table(0.9, 0.1, 0.4), table(0.3, 0.3, 0.7)
    one = bayes_rule(prior, first)
    two = bayes_rule(one.posterior, second)
    both = bayes_rule(prior, first * second)
    torch.testing.assert_close(two.posterior, both.posterior, rtol=1e-13, atol=0)
    assert (one.evidence * two.evidence).item() == pytest.approx(both.evidence.item(), rel=1e-13)


def test_logarithms_do_not_underflow():
    prior, log_likelihood = table(0.5, 0.5), table(-9000.0, -9001.0)
    update = bayes_rule(prior.log(), log_likelihood, log=True)
    assert update.posterior[0].item() == pytest.approx(1 / (1 + torch.tensor(-1.0).exp().item()), rel=1e-6)
    assert update.log_evidence.item() == pytest.approx(-9000 + float(torch.tensor(0.5 + 0.5 / torch.e).log()), rel=1e-9)
    with pytest.raises(ValueError, match="log=True"):
        bayes_rule(prior, log_likelihood.exp())


def test_a_two_dimensional_grid_is_one_problem_and_dim_makes_many():
    prior, likelihood = table([0.1, 0.2], [0.3, 0.4]), table([0.5, 0.6], [0.7, 0.8])
    together = bayes_rule(prior, likelihood)
    assert together.evidence.item() == pytest.approx(0.1 * 0.5 + 0.2 * 0.6 + 0.3 * 0.7 + 0.4 * 0.8, rel=1e-13)
    rows = bayes_rule(prior, likelihood, dim=-1)
    assert rows.evidence.shape == (2,)
    for i in range(2):
        torch.testing.assert_close(rows.posterior[i], bayes_rule(prior[i], likelihood[i]).posterior)


def test_one_prior_for_many_observations_broadcasts():
    update = bayes_rule(table(0.5, 0.5), table([0.9, 0.1], [0.2, 0.8], [0.5, 0.5]), dim=-1)
    torch.testing.assert_close(update.posterior[:, 0], table(0.9, 0.2, 0.5))


def test_an_impossible_hypothesis_stays_impossible():
    assert bayes_rule(table(0.0, 0.4, 0.6), table(1.0, 0.1, 0.1)).posterior[0] == 0
    assert isinstance(bayes_rule(table(1.0), table(0.3)), Update)


@pytest.mark.parametrize(
    ("prior", "likelihood", "kind", "says"),
    [
        (torch.tensor([1, 2]), table(0.1, 0.2), TypeError, "floating-point"),
        ([0.5, 0.5], table(0.1, 0.2), TypeError, "list"),
        (torch.empty(0), torch.empty(0), ValueError, "empty"),
        (table(0.5, float("nan")), table(0.1, 0.2), ValueError, "NaN"),
        (table(0.5, 0.5), table(0.1, float("inf")), ValueError, "infinity"),
        (table(-0.5, 1.5), table(0.1, 0.2), ValueError, "negative"),
        (table(0.5, 0.5), table(-3.0, -2.0), ValueError, "log=True"),
        (table(0.2, 0.3, 0.5), table(0.1, 0.2), ValueError, "broadcast"),
        (table(0.0, 0.0), table(0.1, 0.2), ValueError, "prior is zero"),
        (table(1.0, 0.0), table(0.0, 0.2), ValueError, "impossible"),
    ],
)
def test_bad_input(prior, likelihood, kind, says):
    with pytest.raises(kind, match=says):
        bayes_rule(prior, likelihood)
