"""The Gauss-Newton matrix against autograd's Hessian and plain linear algebra; LowRankPrecision against torch."""

import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions import Gamma, HalfNormal, MultivariateNormal
from torch.func import jacrev

from bnnlib.nets import Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, Model, StudentT
from bnnlib.nets.gauss_newton import GaussNewton, LowRankPrecision, jacobian


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def second_derivative(function):
    return jacrev(jacrev(function))


def linear(outputs, likelihood, inputs=3):
    net = nn.Linear(inputs, outputs).double()
    for i, p in enumerate(net.parameters()):
        p.data = 0.5 * normals(*p.shape, seed=100 + i)
    return Model(net, likelihood)


def gauss_newton(model, x, precision=None):
    """H's factor and the object under test, at the model's start; A = 1 unless given."""
    w = model.start()
    base = torch.ones(model.net_size, dtype=torch.float64) if precision is None else precision
    sizes = torch.tensor([s.numel() for s in model.shapes.values()])
    matrix = GaussNewton(base, torch.repeat_interleave(torch.arange(len(sizes)), sizes), jacobian(model, w, x))
    return matrix, model.likelihood.fisher_sqrt(model(w, x), w[model.net_size :])


@pytest.mark.parametrize(
    ("likelihood", "outputs", "y"),
    [
        (Gaussian(scale=0.3), 2, normals(7, 2, seed=1)),
        (Gaussian(scale=torch.tensor([0.3, 2.0])), 2, normals(7, 2, seed=1)),
        (Gaussian(precision=Gamma(torch.tensor([2.0, 3.0]), 1.0)), 2, normals(7, 2, seed=1)),
        (Bernoulli(), 3, (normals(7, 3, seed=1) > 0).double()),
        (Categorical(), 4, torch.tensor([0, 1, 2, 3, 0, 1, 2])),
    ],
    ids=["one noise", "a noise per output", "unknown noise per output", "Bernoulli", "Categorical"],
)
def test_of_a_linear_model_it_is_the_hessian(likelihood, outputs, y):
    """Source: autograd. For an exponential family with a linear predictor the Fisher information is the Hessian."""
    model, x = linear(outputs, likelihood), normals(7, 3)
    matrix, root = gauss_newton(model, x)
    factor, w = matrix.factor(root), model.start()

    exact = second_derivative(lambda v: -model.log_likelihood(torch.cat([v, w[model.net_size :]]), x, y))(
        w[: model.net_size]
    )
    torch.testing.assert_close(factor.T @ factor, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("likelihood", "family"),
    [(StudentT(4.0, scale=0.7), stats.t(4.0)), (HeteroscedasticGaussian(), stats.norm)],
    ids=["StudentT", "HeteroscedasticGaussian"],
)
def test_elsewhere_it_is_the_expected_hessian(likelihood, family):
    """Source: autograd's Hessian in f, averaged over y at 100,000 equally likely quantiles of scipy's."""
    f, u = torch.tensor([0.4, -0.3], dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    z = torch.from_numpy(family.ppf((torch.arange(100_000) + 0.5) / 100_000)).unsqueeze(-1)
    if isinstance(likelihood, HeteroscedasticGaussian):
        loc, scale = likelihood.split(f)
        y = loc + scale * z
    else:
        y = f + 0.7 * z  # both outputs at the same quantile: each has the right marginal, and they do not interact

    exact = second_derivative(lambda v: -likelihood.log_prob(v.expand(len(y), 2), y, u).mean())(f)
    root = likelihood.fisher_sqrt(f.unsqueeze(0), u)[0]
    torch.testing.assert_close(root @ root.T, exact, rtol=1e-3, atol=1e-4)


def test_the_jacobian_is_autograds():
    """Source: torch.autograd.functional.jacobian, row by row, on a net with two outputs and unknown noise."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    model, x = Model(net, Gaussian(scale=HalfNormal(1.0))), normals(5, 3)
    w = model.start()
    exact = torch.autograd.functional.jacobian(lambda v: model(v, x), w)[..., : model.net_size]
    torch.testing.assert_close(jacobian(model, w, x), exact, rtol=1e-13, atol=1e-13)


@pytest.fixture(params=[(6, 3), (20, 3), (40, 1), (3, 1), (30, 2)], ids=lambda p: f"points={p[0]}, outputs={p[1]}")
def case(request):
    """A net of 25 to 39 weights that is wide (P > R) for some of the sizes and not for others."""
    points, outputs = request.param
    net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, outputs)).double()
    for i, p in enumerate(net.parameters()):
        p.data = normals(*p.shape, seed=i)
    model = Model(net, Categorical() if outputs == 3 else Gaussian(scale=torch.linspace(0.2, 0.5, outputs)))
    base = 0.5 + torch.rand(model.net_size, generator=generator(9), dtype=torch.float64)
    matrix, root = gauss_newton(model, normals(points, 2, seed=5), base)
    multiplier = torch.tensor([0.3, 2.0, 1.0, 5.0], dtype=torch.float64)
    precision = base * multiplier[matrix.tensor_of]
    factor = matrix.factor(root)
    return matrix, root, multiplier, precision, factor


def test_both_forms_solve_the_damped_system(case):
    """Source: torch.linalg.solve on the P x P matrix, formed plainly."""
    matrix, root, multiplier, precision, factor = case
    slope = normals(matrix.size, seed=7)
    for damping in (0.0, 0.4, 1e5):
        exact = torch.linalg.solve((1 + damping) * torch.diag(precision) + factor.T @ factor, slope)
        torch.testing.assert_close(
            matrix.solve(root, multiplier, slope, damping), exact, rtol=1e-9, atol=1e-12 * float(exact.abs().max())
        )


def test_both_forms_know_determinant_effective_parameters_and_leverage(case):
    """Source: the definitions, with the P x P covariance formed plainly."""
    matrix, root, multiplier, precision, factor = case
    assert matrix.wide == (matrix.size > matrix.rows)
    full = torch.diag(precision) + factor.T @ factor
    covariance = torch.linalg.inv(full)
    determined = 1 - precision * covariance.diagonal()
    found = matrix.curvature(root, multiplier)

    torch.testing.assert_close(found.log_det, torch.logdet(full) - precision.log().sum(), rtol=1e-10, atol=0)
    exact = torch.stack([determined[matrix.tensor_of == t].sum() for t in range(4)])
    torch.testing.assert_close(found.effective, exact, rtol=1e-8, atol=1e-9)
    leverage = (factor @ covariance @ factor.T).diagonal()
    torch.testing.assert_close(found.leverage.reshape(-1), leverage, rtol=1e-8, atol=1e-10)


@pytest.fixture
def pair():
    """LowRankPrecision over 7 entries with 3 rows, and the same as torch's own dense distribution."""
    loc, diagonal, factor = normals(7), normals(7, seed=1).exp(), normals(3, 7, seed=2)
    dense = MultivariateNormal(loc, precision_matrix=torch.diag(diagonal) + factor.T @ factor)
    return LowRankPrecision(loc, diagonal, factor), dense


def test_low_rank_precision_is_torchs_multivariate_normal(pair):
    """Source: torch.distributions.MultivariateNormal."""
    own, dense = pair
    value = normals(2, 5, 7, seed=3)
    torch.testing.assert_close(own.log_prob(value), dense.log_prob(value), rtol=1e-11, atol=1e-11)
    for name in ("mean", "mode", "variance", "stddev"):
        torch.testing.assert_close(getattr(own, name), getattr(dense, name), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(own.entropy(), dense.entropy(), rtol=1e-11, atol=1e-11)
    rows = normals(4, 2, 7, seed=4)
    exact = rows @ dense.covariance_matrix @ rows.mT
    torch.testing.assert_close(own.covariance_of(rows), exact, rtol=1e-11, atol=1e-11)
    assert (own.event_shape, own.batch_shape) == (dense.event_shape, dense.batch_shape)


def test_low_rank_precision_transforms_noise_to_its_covariance(pair):
    """Source: the draw is linear in its noise, loc + B (e, d), so B B^T must be the covariance. No sampling error."""
    own, dense = pair
    columns = own.from_noise(torch.eye(own.noise_size, dtype=torch.float64)) - own.loc
    torch.testing.assert_close(columns.T @ columns, dense.covariance_matrix, rtol=1e-11, atol=1e-12)


def test_low_rank_precision_draws_like_a_torch_distribution(pair):
    """Shapes, reproducible draws, and empirical moments within five standard errors of torch's."""
    own, dense = pair
    with torch.random.fork_rng():
        torch.manual_seed(1)
        assert own.sample().shape == (7,)
        assert own.rsample([2, 3]).shape == (2, 3, 7)
        drawn = own.sample(torch.Size([40_000]))
    standard = (drawn - dense.mean) / dense.stddev
    assert float(standard.mean(0).abs().max()) < 5 / 200
    correlation = dense.covariance_matrix / dense.stddev.outer(dense.stddev)
    torch.testing.assert_close(standard.T @ standard / 40_000, correlation, rtol=0, atol=5 * 2**0.5 / 200)


def test_low_rank_precision_refuses_a_diagonal_that_is_not_positive():
    with pytest.raises(ValueError, match="diagonal"):
        LowRankPrecision(torch.zeros(2), torch.tensor([1.0, -1.0]), torch.zeros(1, 2))
