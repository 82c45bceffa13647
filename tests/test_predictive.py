"""Moments, densities, quantiles and draws of a mixture, each against a second source."""

import math

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Gamma, MixtureSameFamily, Normal, StudentT

from bnnlib.predictive import Predictive

F64 = torch.float64


def made(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def normals(seed: int = 0, draws: int = 7, points: int = 5, outputs: int = 2) -> Predictive:
    shape = (draws, points, outputs)
    return Predictive(Normal(2 * made(seed, *shape), made(seed + 1, *shape).exp()))


def students(df: float, seed: int = 0) -> Predictive:
    return Predictive(StudentT(df, 2 * made(seed, 6, 4, 1), made(seed + 1, 6, 4, 1).exp()))


def of_torch(p: Predictive) -> MixtureSameFamily:
    """The same mixture, built by torch: batch (N, K), one component a draw."""
    c = p.components
    parts = {k: getattr(c, k).movedim(0, -1) for k in ("loc", "scale")}
    even = Categorical(torch.ones(*parts["loc"].shape, dtype=F64))
    return MixtureSameFamily(even, type(c)(**({"df": c.df.movedim(0, -1)} if isinstance(c, StudentT) else {}), **parts))


@pytest.mark.parametrize("p", [normals(), students(3.5)])
def test_moments_are_those_of_torchs_mixture(p):
    """torch's MixtureSameFamily."""
    torch.testing.assert_close(p.mean, of_torch(p).mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(p.total_var, of_torch(p).variance, rtol=1e-12, atol=1e-12)


def test_ignorance_and_noise_are_the_two_terms_of_the_law_of_total_variance():
    """Two draws at -1 and 1 with noise 1 and 3, by hand."""
    loc, scale = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1), torch.tensor([1.0, 3.0]).reshape(2, 1, 1)
    p = Predictive(Normal(loc, scale))
    assert p.epistemic.item() == 1.0
    assert p.aleatoric.item() == pytest.approx(math.sqrt(5.0))
    assert p.total.item() == pytest.approx(math.sqrt(6.0))
    assert p.moments.total.item() == pytest.approx(math.sqrt(6.0))


def test_function_var_moves_variance_from_noise_to_ignorance():
    """The same marginal, by many draws of the function instead of the closed form."""
    p = Predictive(Normal(torch.zeros(1, 1, 1), torch.full((1, 1, 1), 5.0)), function_var=torch.full((1, 1, 1), 9.0))
    assert (p.epistemic.item(), p.aleatoric.item(), p.total.item()) == pytest.approx((3.0, 4.0, 5.0))
    p95 = [v.item() for v in p.function_interval(0.95)]
    assert p95 == pytest.approx(scipy.stats.norm.interval(0.95, 0, 3), rel=1e-6)
    z = scipy.stats.norm.ppf((torch.arange(20000, dtype=F64) + 0.5) / 20000)
    drawn = Predictive(Normal(3 * torch.as_tensor(z).reshape(-1, 1, 1), 4 * torch.ones(20000, 1, 1, dtype=F64)))
    assert drawn.epistemic.item() == pytest.approx(3.0, rel=1e-4)
    assert [v.item() for v in drawn.interval(0.9)] == pytest.approx([v.item() for v in p.interval(0.9)], rel=1e-4)
    assert [v.item() for v in drawn.function_interval(0.95)] == pytest.approx(p95, rel=1e-3)  # of order 1/S


def test_a_function_that_is_known_exactly_has_an_interval_of_no_width():
    """Zero function variance is a point, not an error; noise of a millionth of the function's sd is no NaN."""
    loc = torch.full((1, 1, 1), 2.0)
    known = Predictive(Normal(loc, torch.ones(1, 1, 1)), function_var=torch.zeros(1, 1, 1))
    assert [v.item() for v in known.function_interval(0.9)] == [2.0, 2.0]
    scale = torch.full((1, 1, 1), 1e8 + 1e-8).sqrt()
    assert Predictive(Normal(loc, scale), function_var=scale.square() * (1 + 1e-6)).aleatoric.item() == 0.0


@pytest.mark.parametrize("p", [normals(), students(1.3)])
def test_log_prob_is_the_mixtures_and_takes_outputs_together(p):
    """logsumexp over draws of scipy's summed log densities."""
    y = made(5, *p.mean.shape)
    c = p.components
    law = scipy.stats.norm(c.loc, c.scale) if isinstance(c, Normal) else scipy.stats.t(c.df, c.loc, c.scale)
    each = torch.as_tensor(law.logpdf(y)).sum(-1)
    torch.testing.assert_close(p.log_prob(y), each.logsumexp(0) - math.log(len(each)), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(p.log_prob(y), Normal(p.mean, p.total).log_prob(y).sum(-1))


@pytest.mark.parametrize("df", [0.5, 1.0, 1.5, 4.7, 30.0, 99.0, 100.0, 1e6])
def test_the_cdf_of_a_student_t_is_scipys(df):
    """scipy's distribution function, from the middle to tails of 1e-12."""
    t = torch.cat([-torch.logspace(-3, 6, 300, dtype=F64), torch.zeros(1), torch.logspace(-3, 6, 300, dtype=F64)])
    one = Predictive(StudentT(torch.full((1, 1, 1), df, dtype=F64), torch.zeros(1, 1, 1), torch.ones(1, 1, 1)))
    expected = torch.as_tensor(scipy.stats.t.cdf(t, df))
    torch.testing.assert_close(one.cdf(t.reshape(-1, 1, 1)).flatten(), expected, rtol=1e-12, atol=1e-14)
    single = Predictive(StudentT(torch.full((1, 1, 1), df), torch.zeros(1, 1, 1), torch.ones(1, 1, 1)))
    torch.testing.assert_close(single.cdf(t.float().reshape(-1, 1, 1)).flatten().double(), expected, rtol=0, atol=1e-6)


def test_the_cdf_of_a_normal_keeps_its_digits_in_the_lower_tail():
    """scipy, at ten standard deviations."""
    one = Predictive(Normal(torch.zeros(1, 1, 1, dtype=F64), torch.ones(1, 1, 1, dtype=F64)))
    z = torch.tensor([-10.0, -3.0, 0.0, 3.0], dtype=F64)
    expected = torch.as_tensor(scipy.stats.norm.cdf(z))
    torch.testing.assert_close(one.cdf(z.reshape(-1, 1, 1)).flatten(), expected, rtol=1e-13, atol=0)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), p=st.floats(1e-6, 1 - 1e-6), df=st.sampled_from([None, 0.5, 2.0, 40.0]))
@pytest.mark.slow
def test_quantile_and_cdf_undo_each_other(seed, p, df):
    mixture = normals(seed) if df is None else students(df, seed)
    assert float((mixture.cdf(mixture.quantile(p)) - p).abs().max()) < 1e-11


def test_the_quantile_of_the_cdf_is_the_observation():
    for mixture in (normals(points=1, outputs=1), students(4.0)):
        y = torch.linspace(-3, 3, 5, dtype=F64).reshape(5, 1, 1).expand(5, *mixture.mean.shape)
        for row, value in zip(mixture.cdf(y)[..., 0, 0].tolist(), y[..., 0, 0].tolist(), strict=True):
            assert mixture.quantile(row)[0, 0].item() == pytest.approx(value, rel=1e-11, abs=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("df", [None, 0.5, 3.0])
def test_intervals_of_one_component_are_scipys(dtype, df):
    loc, scale = torch.full((1, 1, 1), 1.5, dtype=dtype), torch.full((1, 1, 1), 0.7, dtype=dtype)
    p = Predictive(Normal(loc, scale) if df is None else StudentT(df, loc, scale))
    law = scipy.stats.norm(1.5, 0.7) if df is None else scipy.stats.t(df, 1.5, 0.7)
    for level in (0.5, 0.95, 0.9999):
        found = [v.item() for v in p.interval(level)]
        assert found == pytest.approx(law.interval(level), rel=1e-11 if dtype == F64 else 2e-3)  # 1 - p has 12 digits
    assert p.quantile(torch.tensor([0.1, 0.5])).shape == (2, 1, 1)
    assert p.quantile(0.5).dtype == dtype


def test_the_function_interval_leaves_the_noise_out():
    """torch.quantile of the components' centres."""
    for p in (normals(draws=40), students(2.0)):
        loc = p.components.loc
        for found, q in zip(p.function_interval(0.8), (0.1, 0.9), strict=True):
            torch.testing.assert_close(found, torch.quantile(loc, q, 0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("df", [None, 5.0])
def test_draws_have_the_mixtures_distribution(df):
    """Kolmogorov-Smirnov distance below 1.95 / sqrt(n), which the right law exceeds once in a thousand."""
    p = (
        normals(points=1, outputs=1)
        if df is None
        else Predictive(StudentT(df, made(0, 6, 1, 1), 0.3 + made(1, 6, 1, 1) ** 2))
    )
    drawn = p.sample(40000, torch.Generator().manual_seed(0))
    assert drawn.shape == (40000, 1, 1)
    u = p.cdf(drawn).flatten().sort().values
    distance = float((u - (torch.arange(40000) + 0.5) / 40000).abs().max())
    assert distance < 1.95 / 200
    assert torch.equal(drawn, p.sample(40000, torch.Generator().manual_seed(0)))


def test_one_draw_is_one_network_at_all_points():
    """Two draws far apart: a sampled data set lies wholly on one of them."""
    loc = torch.tensor([-100.0, 100.0]).reshape(2, 1, 1).expand(2, 50, 1)
    side = Predictive(Normal(loc, torch.ones(2, 50, 1))).sample(20, torch.Generator().manual_seed(1)).sign()
    assert bool((side == side[:, :1]).all())
    assert {-1.0, 1.0} == set(side.flatten().tolist())


@pytest.mark.misreading("S3.14")
def test_the_monte_carlo_error_falls_as_one_over_the_root_of_the_draws():
    """The spread of 2,000 repeated means, each of S draws, against sd / sqrt(S)."""
    for draws in (10, 1000):
        values = made(draws, draws, 2000, 1)
        p = Predictive(Normal(values, torch.ones_like(values)))
        assert p.mc_error.mean().item() == pytest.approx(p.mean.std().item(), rel=0.08)
        assert p.mean.std().item() == pytest.approx(1 / math.sqrt(draws), rel=0.08)
    assert normals(draws=1).mc_error.abs().max() == 0


def test_class_probabilities_entropy_and_information():
    """Two confident draws that disagree: one bit of ignorance; equal draws: none."""
    sure = torch.tensor([[[40.0, -40.0]], [[-40.0, 40.0]]], dtype=F64)
    p = Predictive(Categorical(logits=sure))
    assert p.probs.tolist() == [[0.5, 0.5]]
    assert p.entropy.item() == pytest.approx(math.log(2))
    assert p.mutual_information.item() == pytest.approx(math.log(2))
    same = Predictive(Categorical(logits=made(0, 1, 9, 4).expand(5, 9, 4)))
    assert same.mutual_information.abs().max() < 1e-15
    assert float(same.epistemic.max()) < 1e-8
    single = Predictive(Categorical(logits=made(0, 1, 400, 9).float().expand(7, 400, 9))).mutual_information
    assert 0 <= float(single.min()) <= float(single.max()) < 1e-6
    binary = Predictive(Bernoulli(logits=sure[..., :1]))
    assert binary.entropy.item() == pytest.approx(math.log(2))
    assert binary.mutual_information.item() == pytest.approx(math.log(2))


@given(seed=st.integers(0, 10**6), wide=st.floats(0.01, 30.0))
def test_mutual_information_is_never_negative_and_at_most_the_entropy(seed, wide):
    logits = wide * made(seed, 6, 4, 3)
    for p in (Predictive(Categorical(logits=logits.float())), Predictive(Bernoulli(logits=logits))):
        assert float(p.mutual_information.min()) >= 0
        assert bool((p.mutual_information <= p.entropy + 1e-6).all())


def test_class_moments_and_draws_are_those_of_the_averaged_probabilities():
    """Frequencies of 40,000 draws within five binomial standard deviations; p (1 - p) for the one-hot label."""
    logits = made(3, 5, 3, 4)
    p = Predictive(Categorical(logits=logits))
    probs = logits.softmax(-1).mean(0)
    torch.testing.assert_close(p.probs, probs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(p.total_var, probs * (1 - probs), rtol=1e-12, atol=1e-12)
    drawn = p.sample(40000, torch.Generator().manual_seed(2))
    frequency = torch.nn.functional.one_hot(drawn, 4).double().mean(0)
    assert bool(((frequency - probs).abs() < 5 * (probs * (1 - probs) / 40000).sqrt()).all())
    y = torch.tensor([0, 3, 1])
    torch.testing.assert_close(p.log_prob(y), probs.gather(-1, y[:, None]).squeeze(-1).log(), rtol=1e-12, atol=1e-12)


def test_a_gamma_mixture_of_normals_is_a_student_t():
    """Equal-weight nodes of the precision, Gamma(df/2, df/2): the mixture's density against torch's StudentT."""
    nodes = torch.as_tensor(scipy.stats.gamma(2.5, scale=1 / 2.5).ppf((torch.arange(20000) + 0.5).numpy() / 20000))
    y = torch.linspace(-3, 3, 13, dtype=F64).reshape(-1, 1)
    scale = nodes.rsqrt().reshape(-1, 1, 1).expand(-1, 13, 1)
    mixed = Predictive(Normal(torch.zeros_like(scale), scale))
    t = Predictive(StudentT(torch.full((1, 13, 1), 5.0, dtype=F64), torch.zeros(1, 13, 1), torch.ones(1, 13, 1)))
    torch.testing.assert_close(mixed.log_prob(y), t.log_prob(y), rtol=0, atol=2e-4)
    torch.testing.assert_close(mixed.cdf(y), t.cdf(y), rtol=0, atol=1e-5)


def test_questions_without_an_answer_are_refused():
    classes, regression = Predictive(Categorical(logits=torch.zeros(2, 3, 4))), normals()
    for ask in (lambda p: p.quantile(0.5), lambda p: p.cdf(torch.zeros(3)), lambda p: p.function_interval(0.9)):
        with pytest.raises(TypeError, match="ask for probs"):
            ask(classes)
    for ask in (lambda p: p.probs, lambda p: p.entropy, lambda p: p.mutual_information):
        with pytest.raises(TypeError, match="ask for interval"):
            ask(regression)
    for level in (0.0, 1.0, 95, -0.1):
        for interval in (regression.interval, regression.function_interval):
            with pytest.raises(ValueError, match=r"for 95 % write 0\.95"):
                interval(level)
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        regression.quantile(1.0)
    with pytest.raises(ValueError, match=r"y has shape \(5, 1\), the prediction \(5, 2\)"):
        regression.log_prob(torch.zeros(5, 1))
    with pytest.raises(ValueError, match="at least one draw"):
        regression.sample(0)
    with pytest.raises(TypeError, match="not Gamma"):
        Predictive(Gamma(torch.ones(2, 3, 1), 1.0))
    with pytest.raises(TypeError, match="Normal components only"):
        Predictive(StudentT(3.0, torch.zeros(1, 1, 1)), function_var=torch.zeros(1, 1, 1))


def test_the_density_integrates_to_one():
    p = normals(outputs=1, points=1)
    area, _ = quad(lambda y: p.log_prob(torch.tensor([[y]], dtype=F64)).exp().item(), -60, 60, limit=400, points=[0.0])
    assert area == pytest.approx(1.0, abs=1e-9)
