"""Positive scales from free parameters, and back."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import softplus

from bnnlib.normal import positive, positive_inverse


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


@given(st.floats(-30, 30))
def test_values_by_hand(rho):
    # Above 20 torch's softplus returns rho itself, which is short by e^-20 = 2e-9.
    assert positive(f64(rho)).item() == pytest.approx(math.log1p(math.exp(rho)), rel=2e-10)
    assert positive(f64(rho)).item() == pytest.approx(softplus(f64(rho)).item(), rel=1e-12)
    assert positive(f64(rho), how="exp").item() == pytest.approx(math.exp(rho), rel=1e-12)


@pytest.mark.parametrize("how", ["softplus", "exp"])
@given(st.floats(1e-12, 1e3))
def test_there_and_back(how, value):
    rho = positive_inverse(f64(value), how=how)
    assert positive(rho, how=how).item() == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize("how", ["softplus", "exp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_always_a_legal_scale(how, dtype):
    rho = torch.tensor([-1e4, -800.0, -200.0, -104.0, 0.0], dtype=dtype)
    value = positive(rho, how=how)
    assert value.dtype == dtype
    assert bool((value > 0).all())
    torch.distributions.Normal(0.0, value)


def test_slopes():
    """d softplus = sigmoid(rho), d exp = exp(rho): the step sizes that an optimiser sees."""
    for how, slope in (("softplus", lambda r: 1 / (1 + math.exp(-r))), ("exp", math.exp)):
        rho = f64(-2.0, 0.5).requires_grad_()
        positive(rho, how=how).sum().backward()
        assert rho.grad.tolist() == pytest.approx([slope(-2.0), slope(0.5)])
