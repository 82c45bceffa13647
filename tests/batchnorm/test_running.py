"""Stored statistics against torch's buffers, against sums written out, and the layer against torch's layer."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bnnlib.batchnorm import BatchNorm, RunningStatistics

DIMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def batches(shape, n=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(shape, generator=g, dtype=torch.float64) + i for i in range(n)]


def pair(shape, **how):
    """Torch's layer and ours, with the same random scale and shift."""
    g = torch.Generator().manual_seed(5)
    theirs = DIMS[len(shape)](shape[1], **how).double()
    nn.init.normal_(theirs.weight, generator=g)
    nn.init.normal_(theirs.bias, generator=g)
    ours = BatchNorm(shape[1], **how).double()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from([(2, 1), (6, 3), (2, 3, 4), (3, 2, 2, 5), (2, 2, 1, 2, 3)]),
    momentum=st.sampled_from([None, 0.0, 0.1, 0.9, 1.0]),
    eps=st.sampled_from([1e-5, 1e-2, 1.0]),
    seed=st.integers(0, 100),
)
def test_the_layer_is_torchs(shape, momentum, eps, seed):
    ours, theirs = pair(shape, momentum=momentum, eps=eps)
    for x in batches(shape, seed=seed):
        a, b = (x.clone().requires_grad_() for _ in range(2))
        za, zb = ours(a), theirs(b)
        same(za, zb)
        za.pow(3).sum().backward()
        zb.pow(3).sum().backward()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-8)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        same(ours.state_dict()[name], value)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-8)
    ours.eval()
    theirs.eval()
    x = batches(shape, 1, seed + 1)[0]
    same(ours(x), theirs(x))
    # Evaluation stores nothing.
    same(ours.running_mean, theirs.running_mean)
    assert ours.num_batches_tracked == 4


def test_the_average_is_an_average_with_the_unbiased_variance():
    data = batches((5, 3))
    seen = RunningStatistics.start(3, momentum=None, dtype=torch.float64)
    for x in data:
        seen = seen.update(x)
    same(seen.mean, torch.stack([x.mean(0) for x in data]).mean(0))
    same(seen.var, torch.stack([x.var(0, correction=1) for x in data]).mean(0))
    assert seen.batches == 4


def test_the_moving_average_is_its_sum_written_out():
    data = batches((5, 3))
    seen = RunningStatistics.start(3, momentum=0.3, dtype=torch.float64)
    for x in data:
        seen = seen.update(x)
    weights = [0.3 * 0.7 ** (3 - i) for i in range(4)]
    same(seen.mean, sum(w * x.mean(0) for w, x in zip(weights, data, strict=True)))
    rest = torch.full((3,), 0.7**4, dtype=torch.float64)
    same(seen.var, rest + sum(w * x.var(0, correction=1) for w, x in zip(weights, data, strict=True)))


@pytest.mark.parametrize("momentum", [None, 0.1])
def test_images_count_their_pixels(momentum):
    x = batches((3, 2, 4, 5))[0]
    theirs = nn.BatchNorm2d(2, momentum=momentum).double()
    theirs(x)
    seen = RunningStatistics.start(2, momentum, torch.float64).update(x)
    same(seen.mean, theirs.running_mean)
    same(seen.var, theirs.running_var)


def test_an_update_leaves_the_old_statistics_alone():
    start = RunningStatistics.start(2)
    start.update(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)))
    assert start.batches == 0
    assert (start.mean == 0).all()


def test_statistics_carry_no_gradient():
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert not RunningStatistics.start(2).update(x).mean.requires_grad
    layer = BatchNorm(2)
    layer(x)
    assert not layer.running_var.requires_grad


def test_the_layer_can_be_copied_and_moved_to_another_type():
    layer = copy.deepcopy(BatchNorm(2)).double()
    assert layer(torch.ones(3, 2, dtype=torch.float64)).dtype == torch.float64
    assert "momentum=0.1" in repr(layer)


def test_evaluation_may_run_under_vmap():
    layer = BatchNorm(2).eval()
    x = torch.randn(5, 4, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.func.vmap(layer)(x), torch.stack([layer(v) for v in x]))
