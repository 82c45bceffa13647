"""Folding, estimating anew and drawing statistics: against torch's own helpers and against sums written out."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.optim.swa_utils import update_bn

from bnnlib.batchnorm import BatchNorm, fold, reestimate, sample_statistics


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(layer, n):
    """Evaluation mode, with nothing left at its starting value."""
    state = layer.double().state_dict()
    state.update(weight=normal(n, seed=1), bias=normal(n, seed=2), running_mean=normal(n, seed=3))
    state.update(running_var=normal(n, seed=4).exp())
    layer.load_state_dict(state)
    return layer.eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [BatchNorm, nn.BatchNorm1d])
def test_a_folded_linear_layer_is_the_two_layers(bias, kind):
    linear, bn, x = nn.Linear(4, 3, bias=bias).double(), trained(kind(3), 3), normal(6, 4)
    before = copy.deepcopy(linear.state_dict())
    folded = fold(linear, bn)
    torch.testing.assert_close(folded(x), bn(linear(x)), rtol=0, atol=1e-12)
    assert all(torch.equal(before[k], v) for k, v in linear.state_dict().items())
    if bias:
        theirs = fuse_linear_bn_eval(linear.eval(), trained(nn.BatchNorm1d(3), 3))
        torch.testing.assert_close(folded.weight, theirs.weight)
        torch.testing.assert_close(folded.bias, theirs.bias)


@pytest.mark.parametrize(
    ("conv", "bn", "shape"),
    [
        (nn.Conv1d(2, 3, 3), nn.BatchNorm1d, (5, 2, 8)),
        (nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.BatchNorm2d, (5, 2, 8, 7)),
        (nn.Conv2d(2, 4, 3, groups=2, bias=False), nn.BatchNorm2d, (5, 2, 8, 7)),
        (nn.Conv3d(2, 3, 2, padding=1), nn.BatchNorm3d, (2, 2, 4, 4, 4)),
    ],
)
def test_a_folded_convolution_is_the_two_layers(conv, bn, shape):
    conv, bn, x = conv.double(), trained(bn(conv.out_channels), conv.out_channels), normal(*shape)
    folded = fold(conv, bn)
    torch.testing.assert_close(folded(x), bn(conv(x)), rtol=0, atol=1e-12)
    theirs = fuse_conv_bn_eval(conv.eval(), bn)
    torch.testing.assert_close(folded.weight, theirs.weight)
    torch.testing.assert_close(folded.bias, theirs.bias)


def test_a_batchnorm_without_scale_and_shift_folds_too():
    linear, bn, x = nn.Linear(4, 3).double(), nn.BatchNorm1d(3, affine=False).double(), normal(6, 4)
    bn(linear(x))
    bn.eval()
    torch.testing.assert_close(fold(linear, bn)(x), bn(linear(x)), rtol=0, atol=1e-12)


def net(kind=BatchNorm, p=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), kind(4), nn.Dropout(p), nn.Tanh(), nn.Linear(4, 3), kind(3)).double()


@pytest.mark.parametrize("kind", [BatchNorm, nn.BatchNorm1d])
def test_reestimated_statistics_are_those_of_torchs_helper(kind):
    loader = [normal(8, 2, seed=s) for s in range(5)]
    ours, theirs = net(kind), net(nn.BatchNorm1d)
    theirs.load_state_dict(ours.state_dict())
    for layer in (ours[1], ours[5]):  # What was stored before must not matter.
        layer.running_mean.fill_(torch.nan)
        layer.running_var.fill_(torch.inf)
        layer.num_batches_tracked.fill_(7)
    update_bn(loader, theirs)
    reestimate(ours, [(x, "a label") for x in loader])
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=0, atol=1e-12)


def test_reestimating_keeps_modes_momentum_and_weights_and_drops_nothing_out():
    loader = [normal(8, 2, seed=s) for s in range(5)]
    dropping, plain = net(p=0.5), net()
    dropping[1].eval()
    weights = copy.deepcopy(list(dropping.parameters()))
    reestimate(dropping, loader)
    reestimate(plain, loader)
    torch.testing.assert_close(dropping[5].running_mean, plain[5].running_mean, rtol=0, atol=1e-12)
    assert dropping[1].momentum == dropping[5].momentum == 0.1
    assert dropping.training
    assert not dropping[1].training
    assert all(torch.equal(a, b) for a, b in zip(weights, dropping.parameters(), strict=True))


def test_an_empty_loader_changes_nothing():
    bn = nn.Sequential(trained(BatchNorm(2), 2))
    before = bn[0].running_mean.clone()
    with pytest.raises(ValueError, match="loader is empty"):
        reestimate(bn, [])
    assert torch.equal(bn[0].running_mean, before)
    assert bn[0].momentum == 0.1


@pytest.mark.parametrize("kind", [BatchNorm, nn.BatchNorm1d])
def test_a_draw_is_the_output_with_one_batchs_statistics(kind):
    """With a batch of all inputs, a draw at those inputs is the training-mode output itself: every layer, biased."""
    inputs = normal(12, 2)
    wanted = net(kind)(inputs)
    drawn = sample_statistics(net(kind), inputs, inputs, batch_size=12, n=2)
    torch.testing.assert_close(drawn, wanted.detach().expand(2, -1, -1), rtol=0, atol=1e-12)


def test_each_draw_has_its_own_batch_and_the_generator_fixes_it():
    inputs, x, own = normal(40, 2), normal(7, 2, seed=9), net()
    state = copy.deepcopy(own.state_dict())
    first, again = (
        sample_statistics(own, x, inputs, batch_size=8, n=3, generator=torch.Generator().manual_seed(2)) for _ in "ab"
    )
    assert first.shape == (3, 7, 3)
    assert torch.equal(first, again)
    assert (first[0] - first[1]).abs().max() > 1e-3
    g = torch.Generator().manual_seed(2)
    by_hand = net()
    batch = inputs[torch.randperm(40, generator=g)[:8]]
    for i, layer in enumerate(by_hand):
        if isinstance(layer, BatchNorm):
            before = by_hand[:i](batch)
            layer.running_mean, layer.running_var = before.mean(0).detach(), before.var(0, correction=0).detach()
            layer.eval()
    torch.testing.assert_close(first[0], by_hand.eval()(x).detach(), rtol=0, atol=1e-12)
    assert own.training
    assert all(torch.equal(v, own.state_dict()[k]) for k, v in state.items())


def test_rows_of_x_do_not_influence_each_other():
    inputs, x, g = normal(40, 2), normal(7, 2, seed=9), torch.Generator
    whole = sample_statistics(net(), x, inputs, batch_size=8, n=3, generator=g().manual_seed(2))
    part = sample_statistics(net(), x[:1], inputs, batch_size=8, n=3, generator=g().manual_seed(2))
    torch.testing.assert_close(part, whole[:, :1], rtol=0, atol=1e-12)


def test_layers_that_store_nothing_draw_too():
    inputs, x = normal(40, 2), normal(7, 2, seed=9)
    storing, not_storing = net(), net(lambda n: nn.BatchNorm1d(n, track_running_stats=False))
    a, b = (
        sample_statistics(f, x, inputs, batch_size=8, n=3, generator=torch.Generator().manual_seed(2))
        for f in (storing, not_storing)
    )
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
