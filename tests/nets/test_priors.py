"""Priors over named tensors as one density over the flat vector."""

import pytest
import scipy.stats
import torch
from torch import Tensor, nn
from torch.distributions import Categorical as Weights
from torch.distributions import Laplace, MixtureSameFamily, Normal, StudentT

from bnnlib.nets import Gaussian, Model, Prior
from bnnlib.nets.priors import fan_in

F64 = torch.float64
SHAPES = {
    "0.weight": torch.Size([4, 3]),
    "0.bias": torch.Size([4]),
    "2.weight": torch.Size([2, 4]),
    "2.bias": torch.Size([2]),
}


def made(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def summed(*parts: tuple[object, Tensor]) -> Tensor:
    return sum((torch.as_tensor(law.logpdf(v)).sum(-1) for law, v in parts), torch.zeros((), dtype=F64))


def test_the_default_is_one_over_fan_in_for_weights_and_one_for_biases():
    """scipy's normals, tensor by tensor, for a batch of w."""
    w = made(0, 5, 26)
    a, b, c, d = w.split([12, 4, 8, 2], -1)
    norm = scipy.stats.norm
    expected = summed((norm(0, 3**-0.5), a), (norm(0, 1), b), (norm(0, 0.5), c), (norm(0, 1), d))
    torch.testing.assert_close(Prior(SHAPES).log_prob(w), expected, rtol=1e-12, atol=0)
    assert Prior(SHAPES).log_prob(w[0]).shape == ()
    assert (repr(Prior(SHAPES)), Prior(SHAPES).is_default) == ("N(0, 1/fan_in)", True)


def test_fan_in_counts_what_one_unit_sums_over():
    """A unit's variance under the default prior and unit inputs is 1, for each kind of layer."""
    for layer, x in [
        (nn.Linear(7, 2000, bias=False), torch.ones(1, 7)),
        (nn.Conv2d(3, 2000, 5, bias=False), torch.ones(1, 3, 5, 5)),
        (nn.Conv2d(4, 2000, 3, groups=2, bias=False), torch.ones(1, 4, 3, 3)),
        (nn.Conv1d(2, 2000, 3, bias=False), torch.ones(1, 2, 3)),
    ]:
        assert fan_in(layer.weight.shape) * 2000 == layer.weight.numel()
        model = Model(layer, Gaussian(scale=1.0))
        out = model(model.sample_prior(1, torch.Generator().manual_seed(0))[0], x).flatten()
        assert float(out.square().mean()) == pytest.approx(1.0, abs=5 * (2 / 2000) ** 0.5)


def test_a_number_is_a_standard_deviation():
    w = made(1, 26)
    expected = torch.as_tensor(scipy.stats.norm(0, 0.1).logpdf(w).sum())
    torch.testing.assert_close(Prior(SHAPES, 0.1).log_prob(w), expected, rtol=1e-12, atol=0)
    assert Prior(SHAPES, 2).scale.unique().tolist() == [2.0]


@pytest.mark.parametrize(
    ("prior", "law"),
    [
        (Laplace(torch.tensor(0.5, dtype=F64), 2.0), scipy.stats.laplace(0.5, 2)),
        (StudentT(torch.tensor(3.0, dtype=F64), 0.0, 0.3), scipy.stats.t(3, 0, 0.3)),
    ],
)
def test_another_distribution_holds_for_every_entry(prior, law):
    w = made(2, 3, 26)
    assert not Prior(SHAPES, prior).normal
    torch.testing.assert_close(Prior(SHAPES, prior).log_prob(w), summed((law, w)), rtol=1e-12, atol=0)
    draws = Prior(SHAPES, prior).sample(2000, torch.Generator().manual_seed(1)).flatten().numpy()
    assert scipy.stats.kstest(draws, law.cdf).pvalue > 1e-3


def test_a_mixture_of_a_narrow_and_a_wide_normal_is_a_prior():
    """Blundell et al. (2015), eq. 7: half N(0, 0.1^2), half N(0, 1)."""
    mixture = MixtureSameFamily(
        Weights(torch.ones(2, dtype=F64)), Normal(torch.zeros(2, dtype=F64), torch.tensor([0.1, 1.0], dtype=F64))
    )
    w = made(3, 5, 26)
    each = 0.5 * scipy.stats.norm(0, 0.1).pdf(w) + 0.5 * scipy.stats.norm(0, 1).pdf(w)
    prior = Prior(SHAPES, mixture)
    torch.testing.assert_close(prior.log_prob(w), torch.as_tensor(each).log().sum(-1), rtol=1e-12, atol=0)
    assert prior.sample(3).shape == (3, 26)


def test_patterns_name_tensors_the_first_that_fits_counts_the_default_for_the_rest():
    spec = {
        "2.weight": Laplace(torch.zeros((), dtype=F64), 1.0),
        "*.weight": 0.2,
        "0.bias": Normal(torch.arange(4.0, dtype=F64), 3.0),
    }
    w = made(4, 26)
    a, b, c, d = w.split([12, 4, 8, 2])
    norm = scipy.stats.norm
    expected = summed((norm(0, 0.2), a), (norm([0, 1, 2, 3], 3), b), (scipy.stats.laplace(), c), (norm(0, 1), d))
    prior = Prior(SHAPES, spec)
    torch.testing.assert_close(prior.log_prob(w), expected, rtol=1e-12, atol=0)
    assert not prior.is_default
    reversed_spec = {"*.weight": 0.2, "2.weight": 5.0}
    assert Prior(SHAPES, reversed_spec).scale[-10:-2].unique().tolist() == [0.2]


def test_draws_have_the_priors_moments_and_do_not_touch_the_global_seed():
    """Means within five standard errors; each normal entry's sd within five of its own."""
    prior = Prior(SHAPES, {"0.weight": Normal(torch.arange(12.0).reshape(4, 3), 0.5)})
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draws = prior.sample(20000, torch.Generator().manual_seed(2)).double()
    assert torch.equal(torch.get_rng_state(), before)
    assert bool(((draws.mean(0) - prior.loc).abs() < 5 * prior.scale / 20000**0.5).all())
    assert bool(((draws.std(0) / prior.scale - 1).abs() < 5 / 40000**0.5).all())


def test_mixed_families_are_drawn_in_flat_order():
    prior = Prior(SHAPES, {"0.bias": Laplace(100.0, 0.1), "2.bias": Normal(-100.0, 0.1)})
    draws = prior.sample(10, torch.Generator().manual_seed(3))
    assert bool((draws[:, 12:16] > 90).all())
    assert bool((draws[:, 24:] < -90).all())
    assert bool((draws[:, :12].abs() < 10).all())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (0.0, "prior of 0.weight: a standard deviation must be positive and finite, got 0.0"),
        (-1.0, "must be positive and finite"),
        (float("nan"), "must be positive and finite"),
        ({"1.weight": 1.0}, "'1.weight' matches no parameter; the net has 0.weight, 0.bias, 2.weight, 2.bias"),
        ({"0.bias": Normal(torch.zeros(3), 1.0)}, "batch shape .3,. does not fit the parameter's .4,."),
        (torch.distributions.HalfNormal(1.0), "weights can have either sign"),
        (torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)), "give a univariate distribution"),
    ],
)
def test_priors_that_cannot_be_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        Prior(SHAPES, spec)


def test_a_prior_of_the_wrong_kind_is_refused():
    for spec in ("0.1", True, {"*.bias": [1.0]}):
        with pytest.raises(TypeError, match="or a distribution, not"):
            Prior(SHAPES, spec)


@pytest.mark.misreading("S3.16")
def test_the_recipes_prior_puts_the_data_25_standard_deviations_away():
    """N(0, 0.1^2) on all of 1-1000-1 ReLU: at x = 2 the sd is sqrt(.01 (1000 * .5 * .05 + 1)) = 0.51, y is 13."""
    net = nn.Sequential(nn.Linear(1, 1000), nn.ReLU(), nn.Linear(1000, 1))
    model = Model(net, Gaussian(scale=0.577), prior=0.1)
    exact = (0.01 * (1000 * 0.5 * (0.04 + 0.01) + 1)) ** 0.5
    assert exact == pytest.approx(0.51, abs=0.005)
    f = model(model.sample_prior(2000, torch.Generator().manual_seed(4)), torch.tensor([[2.0]])).flatten()
    assert float(f.std()) == pytest.approx(exact, rel=5 / 4000**0.5)
    assert (2**5 - 10 * 2 + 1) / exact == pytest.approx(25, abs=0.6)
