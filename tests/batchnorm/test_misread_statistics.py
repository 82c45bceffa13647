"""The boxes of book/batchnorm/statistics.ipynb: each test holds for the truth and fails for what is often written."""

import copy

import pytest
import torch
from torch import nn

from bnnlib.batchnorm import BatchNorm, RunningStatistics, fold

KINDS = [BatchNorm, nn.BatchNorm1d]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(kind):
    layer = kind(3).double()
    nn.init.normal_(layer.weight, 1, 0.3, generator=torch.Generator().manual_seed(7))
    nn.init.normal_(layer.bias, generator=torch.Generator().manual_seed(8))
    for seed in range(5):
        layer(2 * normal(16, 3, seed=seed) + 1)
    return layer


@pytest.mark.misreading("S2.15")
@pytest.mark.parametrize("kind", KINDS)
def test_training_mode_is_neither_linear_nor_affine(kind):
    layer = trained(kind).train()
    x, u = normal(16, 3), normal(16, 3, seed=1)
    torch.testing.assert_close(layer(2 * x), layer(x), rtol=0, atol=1e-4)
    assert (layer(x + u) - layer(x) - layer(u)).abs().max() > 0.5
    mixed = layer(0.3 * x + 0.7 * u) - 0.3 * layer(x) - 0.7 * layer(u)
    assert mixed.abs().max() > 0.1
    # Rows are coupled: change one, and another moves.
    other = x.clone()
    other[1:] += torch.arange(15)[:, None]
    assert (layer(other)[0] - layer(x)[0]).abs().max() > 0.1


@pytest.mark.misreading("S2.15")
@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_is_affine_and_folds(kind):
    layer, linear = trained(kind).eval(), nn.Linear(4, 3).double()
    x, u = normal(16, 3), normal(16, 3, seed=1)
    torch.testing.assert_close(layer(0.3 * x + 0.7 * u), 0.3 * layer(x) + 0.7 * layer(u), rtol=0, atol=1e-12)
    assert (layer(2 * x) - 2 * layer(x)).abs().max() > 0.1  # affine, not linear
    v = normal(6, 4)
    torch.testing.assert_close(fold(linear, layer)(v), layer(linear(v)), rtol=0, atol=1e-12)


@pytest.mark.misreading("S2.16")
@pytest.mark.parametrize("kind", KINDS)
def test_it_normalises_with_the_biased_and_stores_the_unbiased_variance(kind):
    x, layer = 2 * normal(5, 3) + 1, kind(3, momentum=1.0).double()
    torch.testing.assert_close(layer(x).var(0, correction=0), torch.ones(3).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(layer.running_var, x.var(0, correction=1))
    assert not torch.allclose(layer.running_var, x.var(0, correction=0))


@pytest.mark.misreading("S2.16")
def test_a_moving_average_passes_the_bias_on():
    seen, biased, late = RunningStatistics.start(500, 0.1, torch.float64), torch.ones(500).double(), []
    pairs = normal(400, 2, 500)
    for step, pair in enumerate(pairs):
        seen = seen.update(pair)
        biased = 0.9 * biased + 0.1 * pair.var(0, correction=0)
        if step >= 100:
            late.append((biased.mean().item(), seen.var.mean().item()))
    of_biased, of_unbiased = torch.tensor(late).mean(0).tolist()
    assert of_biased == pytest.approx(0.5, abs=0.02)
    assert of_unbiased == pytest.approx(1.0, abs=0.03)


@pytest.mark.misreading("S2.17")
def test_for_batches_of_two_the_factor_is_two():
    plain, seen = torch.zeros(3).double(), RunningStatistics.start(3, momentum=None, dtype=torch.float64)
    pairs = normal(50, 2, 3)
    for pair in pairs:
        seen = seen.update(pair)
        plain += pair.var(0, correction=0) / 50
    torch.testing.assert_close(seen.var, 2 * plain)


@pytest.mark.misreading("S2.17")
def test_an_average_over_the_training_describes_weights_that_are_gone():
    average = RunningStatistics.start(1, None, torch.float64)
    moving = RunningStatistics.start(1, 0.1, torch.float64)
    for step in range(400):
        x = normal(30, 1, seed=step) + min(4 * step / 200, 4)
        average, moving = average.update(x), moving.update(x)
    assert average.mean.item() == pytest.approx(3.0, abs=0.1)
    assert moving.mean.item() == pytest.approx(4.0, abs=0.3)


@pytest.mark.misreading("S2.18")
@pytest.mark.parametrize("kind", KINDS)
def test_momentum_is_the_weight_of_the_new_batch(kind):
    x, layer = normal(30, 3) + 5, kind(3).double()
    assert layer.momentum == 0.1
    layer(x)
    torch.testing.assert_close(layer.running_mean, 0.1 * x.mean(0))
    torch.testing.assert_close(RunningStatistics.start(3, dtype=torch.float64).update(x).mean, 0.1 * x.mean(0))
    assert not torch.allclose(layer.running_mean, 0.9 * x.mean(0))


@pytest.mark.misreading("S2.20")
@pytest.mark.parametrize("kind", KINDS)
def test_the_statistics_are_buffers_that_every_training_pass_moves(kind):
    layer = trained(kind)
    buffers = dict(layer.named_buffers())
    assert set(buffers) == {"running_mean", "running_var", "num_batches_tracked"}
    assert set(buffers) < set(layer.state_dict())
    assert not set(buffers) & set(dict(layer.named_parameters()))
    x = normal(16, 3, seed=9) + 4
    early = layer.eval()(x)  # in the middle of training, with what is there
    restored = kind(3).double()
    restored.load_state_dict(copy.deepcopy(layer.state_dict()))
    torch.testing.assert_close(restored.eval()(x), early)
    assert torch.equal(layer(x), early)  # evaluation stores nothing
    with torch.no_grad():
        layer.train()(x)
    assert (layer.eval()(x) - early).abs().max() > 0.1


@pytest.mark.misreading("S2.21")
@pytest.mark.parametrize("kind", KINDS)
def test_a_prediction_depends_on_its_batch_mates_only_in_training(kind):
    layer, x = trained(kind), normal(1, 3)
    for mates in (7, 999):
        first, second = (torch.cat([x, 3 * normal(mates, 3, seed=s) + s]) for s in (1, 2))
        assert (layer.train()(first)[0] - layer(second)[0]).abs().max() > 0.1
        torch.testing.assert_close(layer.eval()(first)[0], layer(second)[0], rtol=0, atol=1e-12)
    layer.eval()
    rows = torch.cat([x, normal(7, 3, seed=1)])
    torch.testing.assert_close(layer(rows)[:1], layer(x), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"1 values a feature|more than 1 value per channel"):
        layer.train()(x)
