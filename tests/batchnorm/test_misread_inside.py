"""The boxes of book/batchnorm/inside.ipynb: each test holds for what is true and fails for what is often written."""

import math
import time

import pytest
import torch
from scipy import integrate, stats
from torch import nn

from bnnlib.batchnorm import backward, forward


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ones_and_zeros(n):
    return torch.ones(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)


@pytest.mark.misreading("S2.10")
def test_relu_changes_the_distribution():
    x = normal(1_000_000).relu()
    # By quadrature against the normal density: no sampling.
    mean = integrate.quad(lambda t: t * stats.norm.pdf(t), 0, 20)[0]
    second = integrate.quad(lambda t: t * t * stats.norm.pdf(t), 0, 20)[0]
    assert mean == pytest.approx(1 / math.sqrt(2 * math.pi), abs=1e-9)
    assert second - mean**2 == pytest.approx(0.5 - 1 / (2 * math.pi), abs=1e-9)
    assert (round(mean, 3), round(second - mean**2, 3)) == (0.399, 0.341)
    assert x.mean().item() == pytest.approx(mean, abs=3e-3)
    assert x.var().item() == pytest.approx(second - mean**2, abs=3e-3)
    assert (x == 0).double().mean().item() == pytest.approx(0.5, abs=3e-3)


@pytest.mark.misreading("S2.12")
@pytest.mark.parametrize(("sd", "expected"), [(1.0, 1.1e12), (1 / 16, 1.0), (0.01, 1.1e-8)])
def test_what_ten_layers_do_depends_on_the_start(sd, expected):
    h = normal(500, 256)
    for layer in range(10):
        h = h @ (sd * normal(256, 256, seed=layer + 1))
    assert h.std().item() == pytest.approx(expected, rel=0.15)
    assert (16 * sd) ** 10 == pytest.approx(expected, rel=0.15)


@pytest.mark.misreading("S2.14")
def test_a_bias_outside_of_the_gradient_runs_away():
    def step(b, through):
        leaf = torch.tensor(b, dtype=torch.float64, requires_grad=True)
        shifted = normal(100) + leaf
        mean = shifted.mean() if through else shifted.mean().detach()
        loss = (shifted - mean - 1).square().mean()
        return loss.item(), b - 0.1 * torch.autograd.grad(loss, leaf)[0].item()

    for through, end in ((False, 40), (True, 0)):
        b, losses = 0.0, []
        for _ in range(200):
            loss, b = step(b, through)
            losses.append(loss)
        assert b == pytest.approx(end, abs=1e-9)
        assert losses[0] == pytest.approx(losses[-1], abs=1e-9)


@pytest.mark.misreading("S2.14")
def test_scale_and_shift_give_back_what_normalising_takes():
    x = 3 * normal(20, 4) + 7
    first = forward(x, *ones_and_zeros(4))
    torch.testing.assert_close(forward(x, torch.sqrt(first.var + first.eps), first.mean).z, x, rtol=0, atol=1e-12)
    assert (first.z - x).abs().max() > 1


@pytest.mark.misreading("S2.14")
def test_whitening_costs_more_than_normalising():
    x = normal(1024, 512)

    def seconds(f):
        runs = []
        for _ in range(3):
            begin = time.perf_counter()
            f()
            runs.append(time.perf_counter() - begin)
        return min(runs)

    root = seconds(lambda: torch.linalg.eigh(x.T @ x))
    assert root > 2 * seconds(lambda: (x - x.mean(0)) / x.var(0, correction=0).sqrt())


@pytest.mark.misreading("S2.19")
def test_backward_computes_gradients_and_moves_nothing():
    x, dz = normal(8, 3) + 1, normal(8, 3, seed=1)
    layer = nn.BatchNorm1d(3).double()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)

    def state():
        return {k: v.clone() for k, v in layer.state_dict().items() if k != "num_batches_tracked"}

    moved = []
    start = state()
    out = layer(x)
    for call in (lambda: None, lambda: out.backward(dz), optimizer.step):
        before = start if not moved else state()
        call()
        moved.append({k for k, v in state().items() if not torch.equal(v, before[k])})
    assert moved == [{"running_mean", "running_var"}, set(), {"weight", "bias"}]


@pytest.mark.misreading("S2.19")
def test_constant_statistics_are_wrong_by_the_root_of_two_over_m():
    for m in (6, 10, 40):
        x, dz = normal(m, 4000), normal(m, 4000, seed=1)
        done = forward(x, *ones_and_zeros(4000))
        # The gradient with mean and variance as constants, by autograd.
        leaf = x.clone().requires_grad_()
        frozen = (leaf - done.mean) / torch.sqrt(done.var + done.eps)
        wrong = torch.autograd.grad(frozen, leaf, dz)[0] * torch.sqrt(done.var + done.eps)
        right = backward(dz, done).x * torch.sqrt(done.var + done.eps)
        share = ((wrong - right).norm() / wrong.norm()).item()
        assert share == pytest.approx(math.sqrt(2 / m), rel=0.05)
        assert ((wrong - right).norm() / right.norm()).item() == pytest.approx(math.sqrt(2 / (m - 2)), rel=0.05)


@pytest.mark.misreading("S2.13")
def test_relu_is_the_larger_of_x_and_zero():
    x = normal(100)
    assert nn.functional.relu(x).tolist() == [max(v, 0.0) for v in x.tolist()]


@pytest.mark.misreading("S2.23")
def test_epsilon_stands_inside_the_root_and_beta_is_the_shift():
    gamma, beta = torch.tensor([2.0]).double(), torch.tensor([0.5]).double()
    constant = forward(torch.full((5, 1), 7.0).double(), gamma, beta)
    assert (constant.z == beta).all()
    x = 0.01 * normal(1000, 1)
    done = forward(x, gamma, beta)
    assert done.unit.var(correction=0).item() == pytest.approx((done.var / (done.var + 1e-5)).item(), rel=1e-9)
    outside = (x - x.mean()) / (x.std(correction=0) + 1e-5)
    assert (outside - done.unit).abs().max() > 0.01
    moved = forward(x, gamma, beta + 3).z - done.z
    torch.testing.assert_close(moved, torch.full_like(moved, 3.0))
