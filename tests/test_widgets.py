"""The Python side of the interactive figures: what they are made from, and what they refuse."""

import base64
import json
import math
import re
import subprocess
import sys
import zipfile

import matplotlib as mpl
import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.distributions import Beta, Normal

from bnnlib.widgets import batchnorm, normal_density, posterior_update, two_directions
from bnnlib.widgets.two_directions import _reverse_optimum
from notebooks import ROOT

PRIOR = Normal(5.0, 0.5)
DATA = [5.5, 5.61, 4.88]


def update(prior=PRIOR, data=DATA, scale=0.2, **options):
    return posterior_update(prior, data, scale=scale, **options)


MAKERS = [update, normal_density, batchnorm, two_directions]


def given(widget):
    """The numbers and texts that the script starts from."""
    return json.loads(re.search(r"^const given = (.*);$", widget.html, re.MULTILINE)[1])


def own_id(widget):
    return re.search(r'class="bnn-widget" id="([\w-]+)"', widget.html)[1]


@pytest.mark.parametrize("make", MAKERS)
def test_made_twice_it_is_the_same_text(make):
    assert make().html == make().html
    assert make()._repr_mimebundle_() == make()._repr_mimebundle_()


def test_each_difference_gives_another_id():
    widgets = [
        update(),
        update(data=DATA[:2]),
        update(scale=0.3),
        update(Normal(5.0, 0.4)),
        update(limits=(3, 7)),
        update(labels={"prior": "before"}),
        normal_density(),
        normal_density(1.0),
        normal_density(within=2),
        batchnorm(),
        batchnorm(momentum=None),
        batchnorm(eps=1e-3),
        two_directions(),
        two_directions(mode_scale=0.8),
    ]
    assert len({own_id(w) for w in widgets}) == len(widgets)
    assert all(f'querySelectorAll("#{own_id(w)}:not([data-on])")' in w.html for w in widgets)


@pytest.mark.parametrize("make", MAKERS)
def test_the_bundle_holds_a_page_and_a_picture(make):
    data, metadata = make()._repr_mimebundle_()
    assert data["text/html"] == make().html
    picture = base64.b64decode(data["image/png"])
    assert picture.startswith(b"\x89PNG")
    shape = [int.from_bytes(picture[i : i + 4], "big") for i in (16, 20)]
    assert shape == [2 * v for v in metadata["image/png"].values()] == [1280, 640]


def test_the_picture_follows_the_numbers_and_not_the_readers_style():
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "black", "figure.figsize": (2, 2)}):
        before = dict(mpl.rcParams)
        styled = update()._repr_mimebundle_()
        assert dict(mpl.rcParams) == before
    assert styled == update()._repr_mimebundle_()
    others = [update(data=[]), update(Normal(5.1, 0.5)), update(scale=0.3)]
    others += [batchnorm(), batchnorm(gamma=2.0), two_directions(), two_directions(separation=4.0)]
    assert len({w._repr_mimebundle_()[0]["image/png"] for w in (update(), *others)}) == 8


@pytest.mark.parametrize("make", MAKERS)
def test_it_asks_for_nothing_and_reads_without_scripts(make):
    html = make().html
    assert [a for a in re.findall(r"https?://[^\"']+", html) if a != "http://www.w3.org/2000/svg"] == []
    assert not re.search(r"\b(src|href|url\(|import|fetch|XMLHttpRequest|eval)\b\s*[=(]", html)
    assert "<p>An interactive figure." in html
    assert not re.search(r"^\s*(//|/\*)|^ ", html, re.MULTILINE), "comments and indents stay in the package"
    assert len(html) < 20_000


@pytest.mark.parametrize("make", MAKERS)
def test_nothing_moves_by_itself(make):
    """So there is nothing to turn off for readers who asked for less motion."""
    assert re.findall(r"transition|animation|@keyframes|\banimate\b|AnimationFrame|setInterval", make().html) == []


def test_values_are_rounded_to_the_step_of_the_handles():
    numbers = given(update(Normal(5.0049, 0.4951), [5.4968], scale=0.123456))
    assert (numbers["loc"], numbers["scale"], numbers["data"], numbers["digits"]) == (5.0, 0.5, [5.5], 2)
    assert numbers["noise"] == 0.123456, "the noise has no handle"
    numbers = given(batchnorm([0.123, -1.987], gamma=1.234, beta=-0.126, eps=1.5e-5, momentum=0.123))
    assert (numbers["batch"], numbers["gamma"], numbers["beta"]) == ([0.12, -1.99], 1.23, -0.13)
    assert (numbers["eps"], numbers["momentum"]) == (1.5e-5, 0.123)
    numbers = given(two_directions(0.126, 1.234, separation=5.5549, mode_scale=0.7071))
    assert [numbers[key] for key in ("loc", "scale", "apart", "mode")] == [0.13, 1.23, 5.55, 0.7071]


@pytest.mark.parametrize(
    ("prior", "limits", "digits"),
    [((5, 0.5), [3.5, 6.5], 2), ((0, 1), [-2.5, 2.5], 2), ((500, 40), [400, 600], 0), ((0, 0.004), [-0.01, 0.01], 4)],
)
def test_the_axis_is_round_and_holds_prior_and_data(prior, limits, digits):
    numbers = given(update(Normal(*map(float, prior)), [], scale=1.0))
    assert (numbers["limits"], numbers["digits"]) == (limits, digits)


def test_the_modes_stay_on_the_axis():
    assert given(two_directions(limits=(-10, 4)))["widest"] == 8


def test_a_batch_may_be_a_tensor():
    batch = torch.tensor([1.0, 2.5], dtype=torch.float64)
    assert batchnorm(batch).html == batchnorm([1.0, 2.5]).html


def test_data_may_be_a_tensor_or_nothing():
    tensor = torch.tensor(DATA, dtype=torch.float64)
    assert update(data=tensor).html == update().html
    assert given(posterior_update(PRIOR, scale=0.2))["data"] == []


def test_labels_are_replaced_and_cannot_end_the_script():
    nasty = '</script><b id="x">&'
    widget = update(labels={"prior": nasty, "fallback": nasty})
    assert given(widget)["labels"]["prior"] == nasty
    assert given(widget)["labels"]["posterior"] == "posterior"
    assert widget.html.count("</script>") == 1
    assert "<b" not in widget.html


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: update(Beta(1.0, 1.0)), TypeError, "must be a Normal"),
        (lambda: update(Normal(torch.zeros(2), 1.0)), ValueError, "batch shape"),
        (lambda: update(data=[5.0, float("nan")]), ValueError, "observation must be finite"),
        (lambda: update(data=[5.0] * 51), ValueError, "at most 50"),
        (lambda: update(scale=0.0), ValueError, "scale is the noise's standard deviation"),
        (lambda: update(scale=float("inf")), ValueError, "scale must be finite"),
        (lambda: update(limits=(5, 7), data=[4.0]), ValueError, "observation 0 is 4, outside"),
        (lambda: update(limits=(6, 7), data=[]), ValueError, "centre is 5, outside"),
        (lambda: update(limits=(7, 3)), ValueError, "smaller one first"),
        (lambda: update(limits=(4.9, 5.7), data=[]), ValueError, "prior's scale must lie between"),
        (lambda: update(labels={"pryor": "a"}), ValueError, "no label 'pryor'"),
        (lambda: update(labels={"prior": 3}), TypeError, "label 'prior' must be a string"),
        (lambda: update(Normal(0.0, 1e5), data=[]), ValueError, "rescale"),
        (lambda: normal_density(float("nan")), ValueError, "loc must be finite"),
        (lambda: normal_density(6.0), ValueError, "loc is 6, outside"),
        (lambda: normal_density(scale=-1), ValueError, "standard deviation, positive"),
        (lambda: normal_density(scale=9), ValueError, "between 0.05 and 5"),
        (lambda: normal_density(within=5), ValueError, "from 0.1 to 4"),
        (lambda: normal_density(limits=(0, float("inf"))), ValueError, "limits"),
        (lambda: batchnorm([1.0]), ValueError, "from 2 to 8 values to drag, got 1"),
        (lambda: batchnorm([1.0] * 9), ValueError, "got 9"),
        (lambda: batchnorm([1.0, float("nan")]), ValueError, "value of the batch must be finite"),
        (lambda: batchnorm([1.0, 6.0]), ValueError, "value 1 is 6, outside"),
        (lambda: batchnorm(beta=-7), ValueError, "beta is -7, outside"),
        (lambda: batchnorm(gamma=5.5), ValueError, "gamma lies between -5 and 5"),
        (lambda: batchnorm(gamma=float("inf")), ValueError, "gamma must be finite"),
        (lambda: batchnorm(eps=0), ValueError, "eps keeps a constant batch from 0 / 0"),
        (lambda: batchnorm(momentum=1.1), ValueError, "from 0 to 1, or None; got 1.1"),
        (lambda: batchnorm(momentum=float("nan")), ValueError, "from 0 to 1, or None; got nan"),
        (lambda: two_directions(float("nan")), ValueError, "loc must be finite"),
        (lambda: two_directions(9), ValueError, "loc is 9, outside"),
        (lambda: two_directions(scale=0), ValueError, "standard deviation, positive"),
        (lambda: two_directions(scale=8.5), ValueError, "between 0.05 and 8"),
        (lambda: two_directions(separation=-1), ValueError, "a distance, not negative"),
        (lambda: two_directions(separation=17), ValueError, "the left mode is -8.5, outside"),
        (lambda: two_directions(mode_scale=0.3), ValueError, "between 0.4 and 4"),
        (lambda: two_directions(limits=(1, 9)), ValueError, "the left mode is -3, outside"),
        (lambda: two_directions(labels={"kl": "D"}), ValueError, "no label 'kl'"),
    ],
)
def test_bad_input_is_refused(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()


@pytest.mark.slow
def test_it_needs_no_jupyter_and_importing_it_is_light():
    code = (
        "import sys; sys.modules['IPython'] = None\n"
        "from bnnlib.widgets import normal_density\n"
        "assert not {'matplotlib', 'ipywidgets'} & {*sys.modules}, 'loaded at import'\n"
        "assert 'image/png' in normal_density()._repr_mimebundle_()[0]"
    )
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.slow
def test_scripts_and_styles_are_in_the_wheel(tmp_path):
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    [wheel] = tmp_path.glob("*.whl")
    folder = ROOT / "bnnlib/widgets"
    here = {p.relative_to(ROOT).as_posix() for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert {"bnnlib/widgets/widget.css", "bnnlib/widgets/js/kit.js"} <= here
    assert sorted(here - set(zipfile.ZipFile(wheel).namelist())) == []


@pytest.mark.parametrize("apart", [0.0, 1.0, 3.9, 4.0, 6.0])
def test_the_picture_of_two_directions_has_the_best_reverse_fit(apart):
    """Source: scipy's minimiser on the integral by quadrature, from both kinds of start."""
    z, weight = np.polynomial.hermite_e.hermegauss(80)
    weight = weight / weight.sum()

    def divergence(at):
        x = at[0] + math.exp(at[1]) * z
        log_p = np.logaddexp(*(-0.5 * ((x - side * apart / 2) / 0.7) ** 2 for side in (-1, 1)))
        return -(log_p * weight).sum() - at[1]

    found = [
        minimize(divergence, start, method="Nelder-Mead", options={"xatol": 1e-9})
        for start in ((0, 0.5), (apart / 2, -0.4))
    ]
    best = min(found, key=lambda f: f.fun).x
    centre, sd = _reverse_optimum(apart, 0.7)
    assert abs(centre) == pytest.approx(abs(best[0]), abs=0.01)
    assert sd == pytest.approx(math.exp(best[1]), abs=0.01)
