"""Scores by hand, by scipy, and by what they must be for a calibrated prediction."""

import math

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Categorical, Normal

from bnnlib.metrics import brier, coverage, crps, ece, nll, pit, report, rmse
from bnnlib.predictive import Predictive

F64 = torch.float64


def made(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def calibrated(n: int = 4000) -> tuple[Predictive, torch.Tensor]:
    """A prediction whose every point has its own law, and observations drawn from exactly those laws."""
    loc, scale = 3 * made(0, 8, n, 1), made(1, 8, n, 1).exp()
    pick = torch.randint(8, (n,), generator=torch.Generator().manual_seed(2)), torch.arange(n)
    return Predictive(Normal(loc, scale)), loc[pick] + scale[pick] * made(3, n, 1)


def classes(probs: torch.Tensor) -> Predictive:
    return Predictive(Categorical(probs=probs.unsqueeze(0)))


def test_scores_of_three_points_by_hand():
    loc, y = torch.tensor([0.0, 1.0, 2.0], dtype=F64), torch.tensor([[0.5], [1.0], [5.0]], dtype=F64)
    p = Predictive(Normal(loc.reshape(1, 3, 1), torch.ones(1, 3, 1, dtype=F64)))
    assert rmse(p, y) == pytest.approx(math.sqrt((0.25 + 0 + 9) / 3))
    assert nll(p, y) == pytest.approx(-scipy.stats.norm(loc, 1).logpdf(y.flatten()).mean())
    assert coverage(p, y, 0.95) == pytest.approx(2 / 3)
    assert coverage(p, y, 0.3) == pytest.approx(1 / 3)
    torch.testing.assert_close(pit(p, y).flatten(), torch.as_tensor(scipy.stats.norm.cdf([0.5, 0.0, 3.0])))
    assert crps(p, y) == pytest.approx(float(p.crps(y).mean()))


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_a_calibrated_interval_covers_its_level(level):
    """Within five binomial standard deviations."""
    p, y = calibrated()
    assert coverage(p, y, level) == pytest.approx(level, abs=5 * math.sqrt(level * (1 - level) / len(y)))


def test_the_pit_of_a_calibrated_prediction_is_uniform():
    p, y = calibrated()
    assert scipy.stats.kstest(pit(p, y).flatten().numpy(), "uniform").pvalue > 1e-3
    narrow = Predictive(Normal(p.mean, 0.5 * p.total).expand((1, *y.shape)))
    assert scipy.stats.kstest(pit(narrow, y).flatten().numpy(), "uniform").pvalue < 1e-6


def test_report_holds_each_score_under_its_name():
    p, y = calibrated(300)
    lower, upper = p.interval(0.8)
    assert report(p, y, level=0.8) == {
        "rmse": rmse(p, y),
        "nll": nll(p, y),
        "crps": crps(p, y),
        "coverage": coverage(p, y, 0.8),
        "width": float((upper - lower).mean()),
        "epistemic": float(p.epistemic.mean()),
        "aleatoric": float(p.aleatoric.mean()),
    }


def test_class_scores_by_hand():
    """Guo et al. (2017), eq. 3, and Brier (1950), on four points in two bins."""
    probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.45, 0.55]], dtype=F64)
    y = torch.tensor([0, 1, 1, 1])
    p = classes(probs)
    assert brier(p, y) == pytest.approx((2 * 0.01 + 2 * 0.64 + 2 * 0.16 + 2 * 0.2025) / 4)
    # bins of width 1/4: {0.6, 0.55} both right, {0.9, 0.8} one of two right
    assert ece(p, y, bins=4) == pytest.approx(0.5 * abs(1 - 0.575) + 0.5 * abs(0.5 - 0.85))
    assert ece(p, y, bins=1) == pytest.approx(abs(0.75 - 0.7125))
    assert nll(p, y) == pytest.approx(-sum(map(math.log, (0.9, 0.2, 0.6, 0.55))) / 4)
    assert report(p, y)["accuracy"] == 0.75
    assert brier(classes(torch.eye(2)), torch.tensor([1, 0])) == 2.0
    assert ece(classes(torch.eye(2)), torch.tensor([0, 1])) == 0.0
    assert brier(p, y.int()) == brier(p, y)


@given(seed=st.integers(0, 10**6))
def test_a_yes_or_no_answer_scores_like_two_classes(seed):
    """The same averaged probabilities as Bernoulli and as two classes: each score of the report is the same."""
    logits, y = made(seed, 5, 30, 1), (made(seed + 1, 30, 1) > 0).double()
    two = Predictive(Categorical(logits=torch.cat([torch.zeros_like(logits), logits], -1)))
    one = report(Predictive(Bernoulli(logits=logits)), y)
    assert one == pytest.approx(report(two, y.squeeze(-1).long()), rel=1e-9, abs=1e-12)
    assert set(one) == {"accuracy", "nll", "brier", "ece", "entropy", "mutual_information"}


def test_labels_drawn_from_the_probabilities_are_calibrated():
    """The calibration error of 40,000 points is of the order of its own noise, a third of a percent."""
    p = classes(made(3, 40000, 4).mul(1.5).softmax(-1))
    y = p.sample(1, torch.Generator().manual_seed(4))[0]
    assert ece(p, y, bins=10) < 0.01
    sharper = classes(made(3, 40000, 4).mul(4.0).softmax(-1))
    assert ece(sharper, y, bins=10) > 0.1


def test_a_likelier_answer_has_the_better_score():
    """Brier and nll are proper: the labels' own frequencies score best."""
    y = torch.tensor([0, 0, 0, 1])
    for score in (brier, nll):
        found = {q: score(classes(torch.tensor([[q, 1 - q]], dtype=F64).expand(4, 2)), y) for q in (0.6, 0.75, 0.9)}
        assert min(found, key=found.get) == 0.75


def test_scores_refuse_what_does_not_fit():
    regression, y = calibrated(3)
    labels = classes(torch.full((3, 2), 0.5))
    with pytest.raises(TypeError, match="rmse is for regression"):
        rmse(labels, torch.zeros(3, 2))
    for score in (brier, ece):
        with pytest.raises(TypeError, match="are for classes"):
            score(regression, y)
        with pytest.raises(ValueError, match="must be 3 integer labels"):
            score(labels, torch.zeros(3))
        with pytest.raises(ValueError, match="must be 3 integer labels"):
            score(labels, torch.zeros(3, 1, dtype=torch.long))
    for score in (rmse, coverage, pit):
        with pytest.raises(ValueError, match=r"y has shape \(3,\), the prediction \(3, 1\)"):
            score(regression, y.squeeze(-1))
    with pytest.raises(ValueError, match="bins must be at least 1"):
        ece(labels, torch.zeros(3, dtype=torch.long), bins=0)
