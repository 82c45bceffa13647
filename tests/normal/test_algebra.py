"""Affine maps, conditioning and products: against grids, the joint density, and each other."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal, Normal

from bnnlib.normal import affine, conditional, log_density, product

numbers = st.floats(-3, 3)
scales = st.floats(0.1, 5)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def mvn(d, seed):
    g = torch.Generator().manual_seed(seed)
    a, loc = torch.randn(d, d, dtype=torch.float64, generator=g), torch.randn(d, dtype=torch.float64, generator=g)
    return MultivariateNormal(loc, a @ a.T + 0.2 * torch.eye(d, dtype=torch.float64))


@given(numbers, scales, st.floats(0.1, 4), numbers)
def test_affine_changes_the_variable(loc, scale, weight, bias):
    """Density of y = w x + b by the rule of substitution: p(x) / |w|, for a weight of either sign."""
    x = f64(-0.7, 0.2, 1.9)
    for w in (weight, -weight):
        mapped = affine(Normal(f64(loc), f64(scale)), w, bias)
        expected = Normal(f64(loc), f64(scale)).log_prob(x) - torch.tensor(abs(w), dtype=torch.float64).log()
        assert torch.allclose(mapped.log_prob(w * x + bias), expected, rtol=1e-10)


def test_affine_of_a_vector_by_substitution():
    joint, w, b = mvn(3, 0), mvn(3, 1).covariance_matrix, f64(1.0, -2.0, 0.5)
    x = joint.loc + 0.3
    mapped = affine(joint, w, b)
    assert torch.allclose(mapped.log_prob(w @ x + b), joint.log_prob(x) - torch.logdet(w), rtol=1e-9)


def test_affine_to_fewer_dimensions_has_the_moments_of_a_double_sum():
    joint, w = mvn(3, 2), f64(1.0, -2.0, 0.5).unsqueeze(0)
    mapped = affine(joint, w, 0.25)
    assert mapped.event_shape == (1,)
    cov = joint.covariance_matrix
    variance = sum(w[0, i] * w[0, j] * cov[i, j] for i, j in itertools.product(range(3), repeat=2))
    assert mapped.variance.item() == pytest.approx(variance.item())
    assert mapped.loc.item() == pytest.approx(sum(w[0, i] * joint.loc[i] for i in range(3)).item() + 0.25)


def test_two_maps_are_one():
    joint, v, w = mvn(2, 3), mvn(2, 4).covariance_matrix, mvn(2, 5).covariance_matrix
    twice, once = affine(affine(joint, v, 1.0), w, -1.0), affine(joint, w @ v, w @ torch.ones(2).double() - 1.0)
    assert torch.allclose(twice.loc, once.loc)
    assert torch.allclose(twice.covariance_matrix, once.covariance_matrix)


@pytest.mark.parametrize(("d", "seen"), [(2, [0]), (2, [1]), (4, [2, 0]), (5, [1, 3, 4])])
def test_conditional_times_marginal_is_the_joint(d, seen):
    joint, x = mvn(d, d), mvn(d, 77).loc
    rest = [i for i in range(d) if i not in seen]
    marginal = log_density(x[seen], loc=joint.loc[seen], cov=joint.covariance_matrix[seen][:, seen])
    given_seen = conditional(joint, seen, x[seen])
    assert (given_seen.log_prob(x[rest]) + marginal).item() == pytest.approx(joint.log_prob(x).item(), rel=1e-10)


def test_conditional_is_a_slice_of_the_joint_on_a_grid():
    joint = MultivariateNormal(f64(0.5, -1.0), torch.tensor([[1.0, 0.9], [0.9, 1.0]]).double())
    grid = torch.linspace(-8, 8, 20001, dtype=torch.float64)
    slice_ = joint.log_prob(torch.stack([grid, torch.full_like(grid, 0.7)], -1)).exp()
    slice_ /= torch.trapezoid(slice_, grid)
    assert torch.allclose(slice_, conditional(joint, 1, 0.7).log_prob(grid.unsqueeze(-1)).exp(), atol=1e-8)


def test_many_values_condition_at_once():
    joint = mvn(3, 8)
    values = torch.randn(5, 4, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    many = conditional(joint, [1], values)
    assert many.batch_shape == (5, 4)
    one = conditional(joint, 1, values[2, 3])
    assert torch.allclose(many.loc[2, 3], one.loc)
    assert torch.allclose(many.covariance_matrix[2, 3], one.covariance_matrix)


def test_one_observation_after_the_other_is_both_at_once():
    joint = mvn(3, 9)
    both = conditional(joint, [0, 1], f64(0.3, -0.4))
    in_turn = conditional(conditional(joint, 0, 0.3), 0, -0.4)
    assert torch.allclose(both.loc, in_turn.loc)
    assert torch.allclose(both.covariance_matrix, in_turn.covariance_matrix)


@given(numbers, scales, numbers, scales)
def test_product_is_the_product_everywhere(m1, s1, m2, s2):
    a, b, x = Normal(f64(m1), f64(s1)), Normal(f64(m2), f64(s2)), f64(-2.0, 0.0, 0.9)
    normal, log_z = product(a, b)
    assert torch.allclose(normal.log_prob(x) + log_z, a.log_prob(x) + b.log_prob(x), rtol=1e-9, atol=1e-9)
    assert (1 / normal.variance).item() == pytest.approx((1 / a.variance + 1 / b.variance).item())


@pytest.mark.parametrize("d", [1, 2, 4])
def test_product_of_vectors_is_the_product_everywhere(d):
    a, b, x = mvn(d, 20), mvn(d, 21), mvn(d, 22).loc
    normal, log_z = product(a, b)
    assert (normal.log_prob(x) + log_z).item() == pytest.approx((a.log_prob(x) + b.log_prob(x)).item(), rel=1e-9)
    assert torch.allclose(normal.precision_matrix, a.precision_matrix + b.precision_matrix, rtol=1e-8)


def test_product_constant_is_the_integral():
    grid = torch.linspace(-20, 20, 40001, dtype=torch.float64)
    a, b = Normal(f64(0.4), f64(1.2)), Normal(f64(-1.0), f64(0.5))
    integral = torch.trapezoid((a.log_prob(grid) + b.log_prob(grid)).exp(), grid)
    assert product(a, b)[1].exp().item() == pytest.approx(integral.item(), rel=1e-9)


def test_a_product_is_what_conditioning_on_a_noisy_copy_gives():
    """Prior N(m, s^2), observation y = x + noise: Bayes by product equals conditioning of (x, y)."""
    m, s, noise, y = 0.8, 1.5, 0.7, 2.0
    joint = MultivariateNormal(f64(m, m), torch.tensor([[s**2, s**2], [s**2, s**2 + noise**2]], dtype=torch.float64))
    posterior, log_z = product(Normal(f64(m), f64(s)), Normal(f64(y), f64(noise)))
    conditioned = conditional(joint, 1, y)
    assert posterior.loc.item() == pytest.approx(conditioned.loc.item())
    assert posterior.variance.item() == pytest.approx(conditioned.variance.item())
    assert log_z.item() == pytest.approx(log_density(f64(y), loc=m, scale=(s**2 + noise**2) ** 0.5).item())
