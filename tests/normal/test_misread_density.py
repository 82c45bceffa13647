"""The boxes of book/normal/density.ipynb: each test holds for what is true and fails for what is often written."""

import math

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import Laplace, LogNormal, Normal, StudentT, Uniform

from bnnlib.normal import log_density


@pytest.fixture
def g():
    return torch.Generator().manual_seed(0)


@pytest.mark.misreading("S0.9")
def test_uniform_leaves_out_its_upper_end(g):
    uniform = Uniform(0.0, 10.0)
    low, high = torch.tensor(0.0), torch.tensor(10.0)
    assert uniform.log_prob(low).item() == pytest.approx(-math.log(10))
    assert uniform.log_prob(high).item() == -math.inf
    # The support object says otherwise, and one point has no probability either way.
    assert bool(uniform.support.check(high))
    assert (uniform.cdf(high) - uniform.cdf(high - 1e-5)).item() < 1e-5
    assert torch.rand(1_000_000, generator=g).mul(10).max().item() < 10


@pytest.mark.misreading("S0.10")
def test_the_value_zero_has_no_probability_and_the_highest_density():
    normal = Normal(*torch.tensor([0.0, 1.0], dtype=torch.float64))
    widths = 10.0 ** -torch.arange(1.0, 9.0, dtype=torch.float64)
    probability = normal.cdf(widths / 2) - normal.cdf(-widths / 2)
    assert probability[-1].item() < 1e-8
    assert (probability / widths)[-1].item() == pytest.approx(1 / math.sqrt(2 * math.pi), rel=1e-6)
    x = torch.linspace(-3, 3, 601, dtype=torch.float64)
    for scale in (1.0, 0.1):
        density = log_density(x, loc=0.0, scale=scale).exp()
        assert x[density.argmax()].item() == pytest.approx(0, abs=1e-12)
        assert density.max().item() == pytest.approx(1 / (scale * math.sqrt(2 * math.pi)))
    assert density.max().item() > 1


@pytest.mark.misreading("S0.12")
def test_scale_is_the_standard_deviation_of_the_normal_only():
    one = torch.tensor(1.0, dtype=torch.float64)
    assert Normal(0 * one, one).stddev.item() == 1
    others = {Laplace(0 * one, one): math.sqrt(2), StudentT(5 * one): math.sqrt(5 / 3)}
    others[LogNormal(0 * one, one)] = math.sqrt((math.e - 1) * math.e)
    for law, sd in others.items():
        assert law.stddev.item() == pytest.approx(sd)
        assert abs(law.stddev.item() - 1) > 0.25
    assert LogNormal(0 * one, one).rsample((200_000,)).log().std().item() == pytest.approx(1, abs=0.01)


@pytest.mark.misreading("S2.1")
def test_a_label_is_made_from_the_numbers(g):
    law = Normal(2.0, 1.5)
    draws = law.loc + law.scale * torch.randn(100_000, generator=g)
    label = f"N({law.loc.item():g}, {law.scale.item():g}²)"
    assert label == "N(2, 1.5²)"
    assert draws.std().item() == pytest.approx(1.5, abs=0.02)
    assert ((draws - 2).abs() < 1.5).float().mean().item() == pytest.approx(0.683, abs=0.01)
    # Were the typed 2.5 true, that share would be 0.451.
    assert 2 * stats.norm.cdf(1.5 / 2.5) - 1 == pytest.approx(0.4515, abs=1e-3)


# Own examples of the three ways in which such a snippet fails.
MISSPELT = "import math\n\ndef bell(x):\n    return math.exp(-x * x / 2)\n\nbel(0.0)"
FORGOTTEN = "import math\nx = np.linspace(-4, 4, 9)"


@pytest.mark.misreading("S2.2", "S2.3")
@pytest.mark.parametrize(("source", "name"), [(MISSPELT, "bel"), (FORGOTTEN, "np")])
def test_a_wrong_name_is_found_by_running_and_not_by_parsing(source, name):
    compiled = compile(source, "snippet", "exec")
    with pytest.raises(NameError, match=f"name '{name}' is not defined"):
        exec(compiled, {})
    repaired = source.replace("bel(0.0)", "bell(0.0)").replace("import math\nx", "import numpy as np\nx")
    exec(compile(repaired, "snippet", "exec"), {})


@pytest.mark.misreading("S2.4")
def test_the_style_name_is_gone_and_a_style_comes_before_the_figure():
    with pytest.raises(OSError, match="seaborn-darkgrid"):
        plt.style.use("seaborn-darkgrid")
    assert "seaborn-v0_8-darkgrid" in plt.style.available
    with mpl.rc_context():
        before = plt.figure()
        plt.style.use("dark_background")
        after = plt.figure()
        assert before.get_facecolor() != after.get_facecolor()
        plt.close("all")


@pytest.mark.misreading("S2.5")
def test_a_kernel_density_estimate_is_wider_and_flatter_than_its_data():
    rng = np.random.default_rng(0)
    n, peaks, ratios = 100, [], []
    for _ in range(200):
        x = rng.standard_normal(n)
        kde = stats.gaussian_kde(x)
        peaks.append(kde(0.0)[0])
        ratios.append(x.var() + kde.covariance[0, 0])
    # Kernel variance = n^(-2/5) times the data's: exact for each sample, with Scott's bandwidth.
    assert kde.covariance[0, 0] == pytest.approx(n**-0.4 * x.var(ddof=1))
    grid = np.linspace(-9, 9, 4001)
    assert integrate.trapezoid(grid**2 * kde(grid), grid) - x.mean() ** 2 == pytest.approx(ratios[-1], rel=1e-6)
    assert np.mean(ratios) == pytest.approx((n - 1) / n + n**-0.4, abs=0.03)
    assert np.mean(peaks) < stats.norm.pdf(0) - 0.01


@pytest.mark.misreading("S2.6")
def test_location_and_scale_go_by_name():
    right, swapped = stats.norm.pdf(1.0, 2.0, 1.5), stats.norm.pdf(1.0, 1.5, 2.0)
    assert log_density(1.0, loc=2.0, scale=1.5).exp().item() == pytest.approx(right, rel=1e-6)
    assert abs(right - swapped) > 0.01  # both are numbers; neither call complains
    with pytest.raises(TypeError, match="positional argument"):
        log_density(1.0, 1.5, 2.0)


@pytest.mark.misreading("S2.7")
def test_a_plot_range_follows_the_distribution():
    law = stats.norm(2, 1.5)
    assert law.cdf(5) - law.cdf(-5) == pytest.approx(0.97725, abs=1e-5)
    assert law.cdf(2 + 4 * 1.5) - law.cdf(2 - 4 * 1.5) > 0.9999
    assert len(np.linspace(-5, 5)) == 50
    # Fifty even points over [-5, 5] miss the top of a narrow curve; an odd number holds the middle.
    coarse, fine = (stats.norm.pdf(np.linspace(-5, 5, n), 0, 0.1).max() for n in (50, 1001))
    assert coarse < 0.7 * fine
    assert fine == pytest.approx(stats.norm.pdf(0, 0, 0.1))


@pytest.mark.misreading("S2.8")
def test_sigma_is_a_width_and_height_goes_as_one_over_sigma():
    x = torch.linspace(-12, 12, 240_001, dtype=torch.float64)
    heights, widths = [], []
    for scale in (1.0, 2.0):
        density = log_density(x, loc=0.0, scale=scale).exp()
        heights.append(density.max().item())
        above = x[density > density.max() / 2]
        widths.append((above[-1] - above[0]).item())
    assert widths[0] == pytest.approx(2 * math.sqrt(2 * math.log(2)), abs=1e-3)
    assert widths[1] / widths[0] == pytest.approx(2, rel=1e-3)
    assert heights[1] / heights[0] == pytest.approx(0.5)
