"""Forward and backward of a batch against torch's own layers, against autograd and against finite differences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import batch_norm

from bnnlib.batchnorm import backward, forward

SHAPES = [(5, 3), (2, 1), (7, 4, 6), (3, 2, 4, 5), (2, 3, 2, 2, 2)]


def draws(shape, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(shape, generator=g, dtype=dtype) + 2
    gamma, beta = torch.randn(2, shape[1], generator=g, dtype=dtype)
    return x, gamma, beta, torch.randn(shape, generator=g, dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_forward_is_torchs_in_training(shape, eps):
    x, gamma, beta, _ = draws(shape)
    z = forward(x, gamma, beta, eps).z
    torch.testing.assert_close(z, batch_norm(x, None, None, gamma, beta, True, 0.1, eps), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_backward_is_torchs_own(shape, eps):
    """Torch's kernel has its backward pass written by hand too: no common code."""
    x, gamma, beta, dz = draws(shape)
    wanted = [v.clone().requires_grad_() for v in (x, gamma, beta)]
    batch_norm(wanted[0], None, None, wanted[1], wanted[2], True, 0.1, eps).backward(dz)
    ours = backward(dz, forward(x, gamma, beta, eps))
    for got, v in zip((ours.x, ours.gamma, ours.beta), wanted, strict=True):
        torch.testing.assert_close(got, v.grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_backward_is_autograds_through_forward(shape):
    x, gamma, beta, dz = draws(shape, 1)
    leaves = [v.clone().requires_grad_() for v in (x, gamma, beta)]
    wanted = torch.autograd.grad(forward(*leaves).z, leaves, dz)
    ours = backward(dz, forward(x, gamma, beta))
    for got, want in zip((ours.x, ours.gamma, ours.beta), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_forward_passes_gradcheck():
    leaves = [v.requires_grad_() for v in draws((4, 3))[:3]]
    assert torch.autograd.gradcheck(lambda *v: forward(*v).z, leaves)


def test_backward_agrees_with_finite_differences():
    x, gamma, beta, dz = draws((4, 3))
    grad, h = backward(dz, forward(x, gamma, beta)).x, 1e-5
    for i in range(x.numel()):
        step = torch.zeros(x.numel(), dtype=x.dtype)
        step[i] = h
        up, down = (forward(x + s * step.reshape(x.shape), gamma, beta).z for s in (1, -1))
        slope = ((up - down) * dz).sum() / (2 * h)
        assert slope.item() == pytest.approx(grad.reshape(-1)[i].item(), abs=1e-7)


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(2, 40),
    n=st.integers(1, 12),
    scale=st.floats(1e-1, 1e3),
    shift=st.floats(-1e2, 1e2),
    seed=st.integers(0, 1000),
)
def test_what_holds_for_every_batch(m, n, scale, shift, seed):
    x, gamma, beta, dz = draws((m, n), seed)
    x = scale * x + shift
    done = forward(x, gamma, beta)
    # Mean beta; variance a little below gamma squared, by exactly what eps takes.
    torch.testing.assert_close(done.z.mean(0), beta, rtol=0, atol=1e-9)
    unit_var = done.var / (done.var + done.eps)
    torch.testing.assert_close(done.unit.square().mean(0), unit_var, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(done.var, ((x - x.mean(0)) ** 2).sum(0) / m, rtol=1e-9, atol=0)
    # No gradient along what the layer ignores: a shift of the batch.
    grad = backward(dz, done).x
    bound = 1e-9 * (1 + grad.abs().max().item())
    assert grad.sum(0).abs().max() < bound * m
    # Along a scaling of the batch there is a gradient only because of eps.
    along_scaling = (grad * (x - done.mean)).sum(0)
    expected = gamma * (dz * done.unit).sum(0) * done.eps / (done.var + done.eps)
    torch.testing.assert_close(along_scaling, expected, rtol=1e-4, atol=1e-7)


def test_a_constant_feature_is_mapped_to_beta():
    done = forward(torch.full((4, 1), 7.0), torch.ones(1), torch.tensor([0.5]))
    assert (done.z == 0.5).all()
    assert torch.isfinite(backward(torch.ones(4, 1), done).x).all()


def test_order_of_the_batch_does_not_matter():
    x, gamma, beta, _ = draws((9, 3))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(forward(x[order], gamma, beta).z, forward(x, gamma, beta).z[order], rtol=0, atol=1e-12)


def test_the_layer_of_torch_starts_with_scale_one_and_shift_zero():
    x = draws((6, 3), dtype=torch.float32)[0]
    torch.testing.assert_close(forward(x, torch.ones(3), torch.zeros(3)).z, nn.BatchNorm1d(3)(x))
