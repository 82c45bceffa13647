"""laplace in structures: exact where the structure loses nothing, the stated part of the dense matrix where it does."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Gamma, HalfNormal
from torch.func import jacrev
from torch.utils.data import DataLoader, TensorDataset

from bnnlib.nets import Bernoulli, Categorical, Gaussian, Model, bayesian, laplace

F64 = torch.float64
STRUCTURES = ["kronecker", "diagonal", "last_layer"]
every_structure = pytest.mark.parametrize("structure", STRUCTURES)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def network(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().double()


def mlp():
    return nn.Sequential(nn.Linear(2, 7), nn.Tanh(), nn.Linear(7, 3))


def conv():
    layers = [nn.Conv2d(1, 3, (2, 3), stride=2, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(27, 3))


def still(model, data, structure, **settings):
    """Curvature at the weights as they are, at the model's own prior."""
    return laplace(model, data, structure=structure, evidence=False, steps=0, progress=False, **settings)


def dense(posterior, x, y):
    """Gauss-Newton matrix without the prior, sum_n J^T Lambda J: autograd's Hessian of -log p in f, point by point."""
    model, w = posterior.model, posterior.mean.double()
    total = torch.zeros(model.net_size, model.net_size, dtype=F64)
    for row, target in zip(x, y, strict=True):
        jac = jacrev(lambda v: model(v, row.unsqueeze(0))[0])(w)[:, : model.net_size]  # noqa: B023
        f, u = model(w, row.unsqueeze(0)), model.noise(w)
        point = lambda v: -model.likelihood.log_prob(v, target.unsqueeze(0), u).sum()  # noqa: B023, E731
        fisher = torch.autograd.functional.hessian(point, f.detach())[0, :, 0]
        total += jac.T @ fisher @ jac
    return total


def prior_precision(model):
    return torch.diag(model.prior.scale.double() ** -2)


def targets(likelihood, n):
    if isinstance(likelihood, Categorical):
        return torch.arange(n) % 3
    y = normals(n, 3, seed=9)
    return (y > 0).double() if isinstance(likelihood, Bernoulli) else y


@pytest.mark.parametrize("likelihood", [Gaussian(scale=0.3), Categorical(), Bernoulli()], ids=str)
def test_diagonal_is_the_diagonal_of_the_dense_matrix(likelihood):
    """Source: the dense matrix from autograd's Jacobian and Hessian; determinant of a diagonal matrix."""
    x, y = normals(11, 2), targets(likelihood, 11)
    model = Model(network(mlp), likelihood)
    posterior = still(model, (x, y), "diagonal")
    precision = (dense(posterior, x, y) + prior_precision(model)).diagonal()
    torch.testing.assert_close(posterior.distribution.variance, 1 / precision, rtol=1e-10, atol=0)
    evidence = model.log_joint(posterior.mean, x, y) + 0.5 * (
        model.size * math.log(2 * math.pi) - precision.log().sum()
    )
    assert posterior.diagnostics["log_evidence"] == pytest.approx(float(evidence), rel=1e-10)


@pytest.mark.parametrize(("make", "shape"), [(mlp, (2,)), (conv, (1, 4, 5))], ids=["dense", "convolution"])
def test_kronecker_is_the_product_of_the_two_factors(make, shape):
    """Source: A and G from per-point quantities: inputs of the layer, autograd's slopes of its outputs, by loops."""
    x, y = normals(6, *shape), torch.arange(6) % 3
    model = Model(network(make), Categorical())
    posterior = still(model, (x, y), "kronecker")
    covariance = posterior.distribution.covariance_of(torch.eye(model.size, dtype=F64))
    layers = [m for m in model.net if isinstance(m, nn.Linear | nn.Conv2d)]
    at = 0
    for layer in layers:
        a_sum, g_sum, count = 0.0, 0.0, 0
        for row in x:
            f, given, out = run(model.net, layer, row.unsqueeze(0))
            p = f.softmax(-1)[0]
            fisher = torch.diag(p) - torch.outer(p, p)
            slopes = torch.stack([torch.autograd.grad(f[0, k], out, retain_graph=True)[0] for k in range(3)])
            slopes = slopes.reshape(3, out.shape[1], -1)
            patches = windows(layer, given) if isinstance(layer, nn.Conv2d) else given.T
            for place in range(slopes.shape[-1]):
                a = torch.cat([patches[:, place], torch.ones(1, dtype=F64)])
                a_sum, count = a_sum + torch.outer(a, a), count + 1
                g_sum = g_sum + slopes[..., place].T @ fisher @ slopes[..., place]
        out_size, columns = len(g_sum), len(a_sum)
        # torch.kron gives rows (output, column); w holds the weights row by row, then the biases.
        order = torch.arange(out_size * columns).reshape(out_size, columns)
        order = torch.cat([order[:, :-1].reshape(-1), order[:, -1]])
        own = slice(at, at + out_size * columns)
        prior = prior_precision(model)[own, own]
        exact = torch.linalg.inv(torch.kron(g_sum.detach() / count, a_sum.detach())[order][:, order] + prior)
        torch.testing.assert_close(covariance[own, own], exact, rtol=1e-8, atol=1e-11)
        at = own.stop


def run(net, layer, x):
    kept = {}
    handle = layer.register_forward_hook(
        lambda m, given, out: kept.update(given=given[0].detach(), out=out) or out.clone()
    )
    f = net(x)
    handle.remove()
    return f, kept["given"], kept["out"]


def windows(layer, image):
    """Every window of the image that the kernel sees, by plain indexing, (channels * kernel, places)."""
    (kh, kw), (sh, sw), (ph, pw) = layer.kernel_size, layer.stride, layer.padding
    padded = nn.functional.pad(image, (pw, pw, ph, ph))[0]
    rows, columns = (padded.shape[1] - kh) // sh + 1, (padded.shape[2] - kw) // sw + 1
    places = [(i * sh, j * sw) for i in range(rows) for j in range(columns)]
    return torch.stack([padded[:, i : i + kh, j : j + kw].reshape(-1) for i, j in places], -1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("structure", ["kronecker", "last_layer"])
def test_one_layer_with_normal_noise_is_exact(structure, bias):
    """Source: the closed form with the whole matrix; with one layer and one noise the two factors lose nothing."""
    x, y = normals(20, 4), normals(20, 2, seed=1)
    model = Model(network(lambda: nn.Linear(4, 2, bias=bias)), Gaussian(scale=0.3))
    full = laplace(model, (x, y), evidence=False, progress=False)
    found = laplace(
        bayesian(at(model, full.mean), model.likelihood).model,
        (x, y),
        structure=structure,
        steps=0,
        evidence=False,
        progress=False,
    )
    eye = torch.eye(model.size, dtype=F64)
    torch.testing.assert_close(
        found.distribution.covariance_of(eye), full.distribution.covariance_matrix, rtol=1e-9, atol=1e-14
    )
    assert found.diagnostics["log_evidence"] == pytest.approx(full.diagnostics["log_evidence"], rel=1e-11)
    new = 3 * normals(5, 4, seed=2)
    for part in ("mean", "epistemic_var", "aleatoric_var"):
        torch.testing.assert_close(
            getattr(found.predict(new), part), getattr(full.predict(new), part), rtol=1e-9, atol=1e-12
        )


def at(model, w):
    net = network(lambda: nn.Linear(model.net.in_features, model.net.out_features, bias=model.net.bias is not None))
    with torch.no_grad():
        for name, value in model.parameters_of(w).items():
            net.get_parameter(name).copy_(value)
    return net


@pytest.mark.parametrize("likelihood", [Gaussian(scale=0.3), Categorical()], ids=["Gaussian", "Categorical"])
def test_one_point_makes_the_block_of_each_layer_exact(likelihood):
    """Source: the layers' blocks of the dense matrix, which for one point are a a^T (x) G."""
    x, y = normals(1, 2), torch.tensor([1]) if isinstance(likelihood, Categorical) else normals(1, 2)
    net = network(lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)))
    model = Model(net, likelihood)
    posterior = still(model, (x, y), "kronecker")
    matrix = dense(posterior, x, y) + prior_precision(model)
    covariance = posterior.distribution.covariance_of(torch.eye(model.size, dtype=F64))
    for own in (slice(0, 12), slice(12, 22)):
        torch.testing.assert_close(covariance[own, own], torch.linalg.inv(matrix[own, own]), rtol=1e-9, atol=1e-12)
    assert bool((covariance[:12, 12:] == 0).all())


@pytest.mark.parametrize(
    "likelihood",
    [
        Gaussian(scale=HalfNormal(torch.ones((), dtype=F64))),
        Gaussian(precision=Gamma(*torch.ones(2, 3, dtype=F64))),
        Categorical(),
    ],
    ids=["one noise", "a noise an output", "classes"],
)
@pytest.mark.slow
def test_last_layer_is_the_full_method_with_all_other_layers_constant(likelihood):
    """Source: structure="full" on a model in which only the last layer is unknown."""
    x, y, new = normals(40, 2), targets(likelihood, 40), 2 * normals(6, 2, seed=5)
    net = network(mlp)
    whole = laplace(Model(net, likelihood), (x, y), structure="last_layer", steps=0, tolerance=1e-9, progress=False)
    only = laplace(bayesian(net, likelihood, layers="last").model, (x, y), burn_in=5, tolerance=1e-9, progress=False)
    own = torch.arange(21, whole.model.size)
    assert torch.equal(whole.mean[:21], whole.model.start()[:21])
    torch.testing.assert_close(whole.mean[21:], only.mean, rtol=1e-6, atol=1e-7)
    tril = only.distribution.scale_tril
    torch.testing.assert_close(whole.distribution.scale_tril, tril, rtol=1e-5, atol=1e-8)
    assert torch.equal(whole.distribution.index, own)
    assert whole.diagnostics["log_evidence"] == pytest.approx(only.diagnostics["log_evidence"], abs=1e-7)
    for part in ("weight", "bias"):
        assert whole.diagnostics[f"prior_sd 2.{part}"] == pytest.approx(
            only.diagnostics[f"prior_sd 2.{part}"], rel=1e-6
        )
    a, b = (p.predict(new, draws=50, generator=generator()) for p in (whole, only))
    torch.testing.assert_close(a.mean, b.mean, rtol=1e-6, atol=1e-8)


@every_structure
def test_linearised_prediction_is_the_jacobian_on_both_sides(structure):
    """Source: autograd's Jacobian and the covariance that draws have: var f = J Sigma J^T."""
    x, y, new = normals(30, 2), normals(30, 3, seed=1), 2 * normals(4, 2, seed=5)
    posterior = laplace(
        Model(network(mlp), Gaussian(scale=0.4)), (x, y), structure=structure, steps=300, progress=False
    )
    model, loc = posterior.model, posterior.mean.double()
    jac = jacrev(lambda w: model(w, new))(loc)
    q = posterior.distribution
    sigma = torch.diag(q.variance) if structure == "diagonal" else q.covariance_of(torch.eye(model.size, dtype=F64))
    exact = torch.einsum("nkp,pq,nkq->nk", jac, sigma, jac)
    torch.testing.assert_close(posterior.predict(new).epistemic_var, exact, rtol=1e-9, atol=1e-12)
    draws = posterior.functions(new, 20000, generator(3))
    torch.testing.assert_close(draws.var(0), exact, rtol=0.06, atol=0)


@every_structure
def test_a_loader_and_the_pair_see_the_same_curvature(structure):
    """Source: the same data as one pair. steps=0 has no order of batches in it."""
    x, y = normals(37, 2).float(), torch.arange(37) % 3
    model = Model(network(mlp).float(), Categorical())
    pair, loader = (still(model, d, structure) for d in ((x, y), DataLoader(TensorDataset(x, y), batch_size=8)))
    torch.testing.assert_close(pair.distribution.variance, loader.distribution.variance, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("structure", ["kronecker", "diagonal"])
def test_mini_batches_reach_the_mode_of_all_data(structure):
    """Source: the closed form. Unscaled, a batch's likelihood would leave the prior four times too strong."""
    x, y = normals(40, 4), normals(40, 1, seed=1)
    model = Model(network(lambda: nn.Linear(4, 1)), Gaussian(scale=1.0), 0.3)
    loader = DataLoader(TensorDataset(x, y), batch_size=10, shuffle=True, generator=generator())
    found = laplace(model, loader, structure=structure, steps=1500, evidence=False, progress=False)
    exact = laplace(model, (x, y), evidence=False, progress=False)
    torch.testing.assert_close(found.mean, exact.mean, rtol=0, atol=0.01)
