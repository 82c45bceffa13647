"""The kernel of an infinitely wide net: against quadrature, and against nets that are only wide."""

import math

import numpy as np
import pytest
import torch

from bnnlib.normal import wide_net_kernel

INPUTS = torch.tensor([[0.3, -1.0], [1.2, 0.4], [-0.5, -0.6], [0.3, -1.0]], dtype=torch.float64)
ACTIVATIONS = {"relu": torch.relu, "erf": torch.erf}


def by_quadrature(x, hidden_layers, phi, weight_var, bias_var):
    """The recursion with E[phi(u) phi(v)] by a product Gauss rule, split at the kink of relu."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    nodes = torch.as_tensor(nodes)
    weights = torch.as_tensor(weights) / math.sqrt(2 * math.pi)
    k = bias_var + weight_var * x @ x.T / x.shape[1]
    for _ in range(hidden_layers):
        new = torch.empty_like(k)
        for i in range(len(k)):
            for j in range(len(k)):
                u = k[i, i].sqrt() * nodes
                rho = (k[i, j] / (k[i, i] * k[j, j]).sqrt()).clamp(-1, 1)
                v = k[j, j].sqrt() * (rho * nodes.unsqueeze(-1) + (1 - rho**2).clamp_min(0).sqrt() * nodes)
                new[i, j] = bias_var + weight_var * (weights * phi(u) * (phi(v) @ weights)).sum()
        k = new
    return k


@pytest.mark.parametrize("hidden_layers", [1, 3])
@pytest.mark.parametrize(("activation", "tolerance"), [("erf", 1e-10), ("relu", 5e-3)])
def test_kernel_is_the_expectation(hidden_layers, activation, tolerance):
    settings = {"weight_var": 1.7, "bias_var": 0.3}
    ours = wide_net_kernel(INPUTS, hidden_layers=hidden_layers, activation=activation, **settings)
    expected = by_quadrature(INPUTS, hidden_layers, ACTIVATIONS[activation], **settings)
    assert torch.allclose(ours, expected, rtol=tolerance)


def test_relu_kernel_by_a_fine_polar_integral():
    """Where the two inputs are a right angle apart, E[relu(u) relu(v)] = s_u s_v / (2 pi)."""
    x = torch.eye(2, dtype=torch.float64)
    k = wide_net_kernel(x, bias_var=0.0, weight_var=2.0)
    assert k[0, 1].item() == pytest.approx(2.0 * 1.0 / (2 * math.pi), rel=1e-12)
    assert k[0, 0].item() == pytest.approx(2.0 * 1.0 / 2, rel=1e-12)


@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_a_wide_net_has_this_covariance(activation):
    g, phi = torch.Generator().manual_seed(0), ACTIVATIONS[activation]
    x, draws, width = INPUTS[:3].float(), 20_000, 64
    total = torch.zeros(3, 3)
    for _ in range(10):
        w1 = torch.randn(draws // 10, width, 2, generator=g) / math.sqrt(2)
        b1 = torch.randn(draws // 10, width, 1, generator=g)
        w2 = torch.randn(draws // 10, 1, width, generator=g) / math.sqrt(width)
        f = (w2 @ phi(w1 @ x.T + b1)).squeeze(1) + torch.randn(draws // 10, 1, generator=g)
        total += f.T @ f
    ours = wide_net_kernel(x, activation=activation)
    assert torch.allclose(total / draws, ours, atol=5 * float(ours.max()) / math.sqrt(draws))


def test_depth_with_variance_one_halves_and_with_two_keeps():
    x = torch.tensor([[2.0]], dtype=torch.float64)
    halved = wide_net_kernel(x, hidden_layers=4, weight_var=1.0, bias_var=0.0)
    kept = wide_net_kernel(x, hidden_layers=4, weight_var=2.0, bias_var=0.0)
    assert halved.item() == pytest.approx(4.0 / 2**4)
    assert kept.item() == pytest.approx(2.0 * 4.0)


@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_it_is_a_covariance_and_cross_blocks_are_blocks(activation):
    k = wide_net_kernel(INPUTS, hidden_layers=2, activation=activation)
    assert torch.allclose(k, k.T)
    assert torch.linalg.eigvalsh(k).min() > -1e-12
    block = wide_net_kernel(INPUTS[:1], INPUTS[1:], hidden_layers=2, activation=activation)
    assert torch.allclose(block, k[:1, 1:])
    assert torch.allclose(k[0], k[3])
