"""A posterior that is a set of values: each of them is used, none more often than another."""

import pytest
import torch
from torch import nn

from bnnlib.nets import Gaussian, Model, Posterior
from bnnlib.nets.empirical import Empirical


def make(values):
    net = nn.Linear(2, 1).double()
    return Posterior(Model(net, Gaussian(scale=0.1)), Empirical(values), "test")


def values(count=7):
    return torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_asking_for_more_draws_than_values_uses_every_value_once():
    v, x = values(), torch.randn(4, 2, dtype=torch.float64)
    by_hand = x @ v[:, :2].T + v[:, 2]
    prediction = make(v).predict(x, draws=1000)
    assert prediction.draws == len(v)
    torch.testing.assert_close(prediction.mean[:, 0], by_hand.mean(1), rtol=0, atol=1e-12)
    torch.testing.assert_close(prediction.epistemic[:, 0], by_hand.std(1, correction=0), rtol=0, atol=1e-12)
    streamed = make(v).moments(x, draws=1000)
    torch.testing.assert_close(streamed.epistemic, prediction.epistemic, rtol=0, atol=1e-12)


def test_draws_are_spread_evenly():
    drawn = make(values()).sample(17, torch.Generator().manual_seed(1))
    counts = (drawn.unsqueeze(1) == values()).all(-1).sum(0)
    assert counts.sum() == 17
    assert set(counts.tolist()) == {2, 3}


def test_fewer_draws_than_values_repeat_none():
    drawn = make(values()).sample(5, torch.Generator().manual_seed(1))
    assert len(drawn.unique(dim=0)) == 5


def test_moments_and_file(tmp_path):
    posterior, v = make(values()), values()
    torch.testing.assert_close(posterior.mean, v.mean(0))
    torch.testing.assert_close(posterior.distribution.variance, v.var(0, correction=0))
    posterior.save(tmp_path / "p.pt")
    again = Posterior.load(tmp_path / "p.pt", posterior.model)
    assert torch.equal(again.distribution.values, v)


@pytest.mark.parametrize(
    ("bad", "message"),
    [(torch.zeros(3), "shape"), (torch.zeros(0, 3), "M >= 1"), (torch.tensor([[1.0, float("nan")]]), "NaN")],
)
def test_bad_values_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        Empirical(bad)
