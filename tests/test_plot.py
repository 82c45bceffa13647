"""Figures say what they show: the numbers behind each line, band and label."""

import matplotlib as mpl
import pytest
import scipy.stats
import torch
from matplotlib import pyplot as plt
from torch import nn
from torch.distributions import Categorical, Independent, Normal

from bnnlib.nets import Gaussian, Model, Posterior
from bnnlib.plot import COLOURS, band, function_draws, pit_histogram, reliability, use_style
from bnnlib.predictive import Predictive


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def two_parts(n: int = 9) -> Predictive:
    """At x = i: mean i, function sd 3, noise sd 4."""
    loc = torch.arange(float(n)).reshape(1, n, 1)
    return Predictive(Normal(loc, torch.full_like(loc, 5.0)), function_var=torch.full_like(loc, 9.0))


@pytest.mark.parametrize(("of", "sd", "name"), [("data", 5.0, "new data"), ("function", 3.0, "the function")])
@pytest.mark.parametrize(("level", "shown"), [(0.95, "95"), (0.997, "99.7"), (0.29, "29")])
def test_a_band_is_what_its_legend_says(ax, of, sd, name, level, shown):
    """scipy's quantiles of N(i, sd^2), with x given out of order."""
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    shuffled = Predictive(
        Normal(two_parts().components.loc[:, order], 5.0 * torch.ones(1, 9, 1)), function_var=torch.full((1, 9, 1), 9.0)
    )
    band(ax, torch.arange(9.0)[order].unsqueeze(-1), shuffled, level=level, of=of)
    mean = ["mean"] if of == "data" else []  # a band of the function is drawn over one of data, which has the mean
    assert [t.get_text() for t in ax.legend().get_texts()] == [f"{shown} % of {name}", *mean]
    corners = ax.collections[0].get_paths()[0].vertices
    half = scipy.stats.norm.ppf(0.5 + level / 2) * sd
    for x in range(9):
        edge = sorted({round(float(v), 3) for u, v in corners if u == x})
        assert edge == pytest.approx([x - half, x + half], abs=2e-3)
    shown = [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in ax.lines]
    assert shown == [(list(range(9)), list(range(9)))] * len(mean)


def test_a_band_without_a_label_and_one_that_cannot_be(ax):
    band(ax, torch.arange(9.0), two_parts(), label=False, colour="k")
    assert ax.get_legend_handles_labels() == ([], [])
    with pytest.raises(ValueError, match='of is "data" or "function"'):
        band(ax, torch.arange(9.0), two_parts(), of="noise")
    with pytest.raises(ValueError, match="draws one output, the prediction has 2"):
        band(ax, torch.arange(3.0), Predictive(Normal(torch.zeros(1, 3, 2), 1.0)))


def test_function_draws_are_the_posteriors_functions(ax):
    model = Model(nn.Linear(1, 1), Gaussian(scale=0.1))
    q = Posterior(model, Independent(Normal(torch.zeros(2), torch.ones(2)), 1), "test")
    x = torch.tensor([[2.0], [-1.0], [0.5]])
    function_draws(ax, x, q, 4, generator=torch.Generator().manual_seed(1))
    expected = q.functions(x, 4, torch.Generator().manual_seed(1))[..., 0]
    assert len(ax.lines) == 4
    for line, f in zip(ax.lines, expected, strict=True):
        assert line.get_xdata().tolist() == [-1.0, 0.5, 2.0]
        assert line.get_ydata().tolist() == f[[1, 2, 0]].tolist()


def test_a_pit_histogram_counts_and_shows_the_range_of_chance(ax):
    """40 of 100 values in the first tenth; chance leaves 10 +- 1.96 sqrt(100 * 0.1 * 0.9)."""
    values = torch.cat([torch.full((40,), 0.05), torch.linspace(0.1, 0.999, 60)])
    pit_histogram(ax, values)
    bars = [p for p in ax.patches if p.get_width() == pytest.approx(0.1)]
    heights = [p.get_height() for p in bars]
    assert (len(bars), heights[0], sum(heights)) == (10, 40, 100)
    chance = next(p for p in ax.patches if p not in bars)
    low, high = chance.get_y(), chance.get_y() + chance.get_height()
    assert (low, high) == pytest.approx((10 - 1.96 * 3, 10 + 1.96 * 3))


def test_reliability_shows_frequency_against_confidence(ax):
    """Ten answers at 0.75, eight right; thirty at 0.55, twelve right; the empty bins have no dot."""
    probs = torch.tensor([[0.75, 0.25]] * 10 + [[0.45, 0.55]] * 30)
    y = torch.tensor([0] * 8 + [1] * 2 + [1] * 12 + [0] * 18)
    reliability(ax, Predictive(Categorical(probs=probs.unsqueeze(0))), y)
    dots = ax.collections[0].get_offsets()
    shown = sorted((float(a), float(b)) for a, b in dots if a == a)
    assert shown == [pytest.approx((0.55, 0.4)), pytest.approx((0.75, 0.8))]


def test_only_use_style_changes_matplotlib():
    before = dict(mpl.rcParams)
    with mpl.rc_context():
        use_style()
        assert mpl.rcParams["axes.prop_cycle"].by_key()["color"][0] == COLOURS["model"]
        assert mpl.rcParams["savefig.facecolor"] == "white"
    assert dict(mpl.rcParams) == before
