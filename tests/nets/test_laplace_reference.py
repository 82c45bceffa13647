"""laplace against the package laplace-torch, which runs here beside it: same weights, prior, noise and data.

Compared are the log marginal likelihood and the covariance of the linearised function, all of it, outputs off the
diagonal too. The package does not train: it gets the weights at which bnnlib ended.
"""

import copy
import warnings
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.distributions import HalfNormal, Independent, MultivariateNormal, Normal
from torch.nn.utils import vector_to_parameters
from torch.utils.data import DataLoader, TensorDataset

from bnnlib.nets import Categorical, Gaussian, Model, laplace
from bnnlib.nets.linearized import linearized_functions

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # torch's own: it compiles with torch.jit.script
    from laplace import Laplace

# The same one, where torch differentiates forwards for the first time.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")

F64 = torch.float64
STRUCTURES = {
    "full": ("all", "full"),
    "kronecker": ("all", "kron"),
    "diagonal": ("all", "diag"),
    "last_layer": ("last_layer", "full"),
}
NOISE = 0.3
LIKELIHOODS = {"regression": Gaussian(scale=NOISE), "classification": Categorical()}
every_kind = pytest.mark.parametrize("kind", LIKELIHOODS)


def normals(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def filled(net):
    """In float64, with weights that no other layer has."""
    net.double()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(normals(*p.shape, seed=i))
    return net


def dense(bias):
    return filled(nn.Sequential(nn.Linear(2, 4, bias=bias), nn.Tanh(), nn.Linear(4, 3, bias=bias)))


def conv(bias):
    layers = [nn.Conv2d(2, 3, (2, 3), stride=2, padding=1, bias=bias), nn.Tanh(), nn.Flatten()]
    return filled(nn.Sequential(*layers, nn.Linear(27, 3, bias=bias)))


def inputs(make):
    shape = (2,) if make is dense else (2, 4, 5)
    return normals(13, *shape, seed=9), 2 * normals(5, *shape, seed=10)


def targets(kind, x):
    each, noise = torch.arange(3), normals(len(x), 3, seed=11)
    y = 3 * torch.sin(2 * x.flatten(1)[:, :1] + 2 * each)
    return y + 0.2 * noise if kind == "regression" else (y + noise).argmax(-1)


def per_tensor(net):
    """A prior with another mean and another standard deviation for every tensor."""
    return {name: Normal(0.1 * (i + 1), 0.5 + 0.3 * i) for i, (name, _) in enumerate(net.named_parameters())}


@contextmanager
def float64():
    """The package multiplies the dense matrix with an identity of torch's default dtype: 1e-7 off in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(F64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def package(net, w, kind, structure, data, **settings):
    """The package's posterior around w; it sees the data in unequal batches."""
    net, (subset, hessian) = copy.deepcopy(net), STRUCTURES[structure]
    vector_to_parameters(w, net.parameters())
    fitted = Laplace(net, kind, subset_of_weights=subset, hessian_structure=hessian, **settings)
    with float64():
        fitted.fit(DataLoader(TensorDataset(*data), batch_size=5))
    return fitted


def prior_of(model, structure):
    """Mean and precision by entry; the package takes a precision by tensor where the structure is Kronecker's."""
    sizes = [shape.numel() for shape in model.shapes.values()]
    if structure == "last_layer":
        sizes = sizes[len(sizes) // 2 :]
    mean, scale = (v.double()[-sum(sizes) :] for v in (model.prior.loc, model.prior.scale))
    scale = torch.stack([v[0] for v in scale.split(sizes)]) if structure == "kronecker" else scale
    return {"prior_mean": mean, "prior_precision": scale**-2}


def function_covariance(posterior, x):
    """(N, outputs, outputs), from a root of the posterior's covariance: unit noise, one coordinate at a time."""
    q, model = posterior.distribution, posterior.model
    if isinstance(q, Independent):
        w = q.mean + q.base_dist.scale.diag()
    elif isinstance(q, MultivariateNormal):
        w = q.mean + q.scale_tril.T
    else:
        w = q.from_noise(torch.eye(q.noise_size, dtype=F64))
    around = linearized_functions(model, q, x, w) - model(q.mean, x)
    return torch.einsum("snk,snj->nkj", around, around)


def same(posterior, fitted, new):
    """The same evidence, mean and covariance of the function."""
    assert posterior.diagnostics["log_evidence"] == pytest.approx(float(fitted.log_marginal_likelihood()), rel=1e-12)
    mean, covariance = fitted._glm_predictive_distribution(new)
    torch.testing.assert_close(posterior.model(posterior.mean, new), mean, rtol=1e-12, atol=1e-13)
    small = 1e-13 * float(covariance.abs().max())
    torch.testing.assert_close(function_covariance(posterior, new), covariance, rtol=1e-10, atol=small)


# With biases the Kronecker blocks differ on purpose: see the two tests below.
CASES = [(s, bias) for s in STRUCTURES for bias in (False, True) if (s, bias) != ("kronecker", True)]


@every_kind
@pytest.mark.parametrize(("structure", "bias"), CASES)
@pytest.mark.parametrize("make", [dense, conv])
def test_evidence_and_function_are_the_packages(make, structure, bias, kind):
    """Source: laplace-torch, with its own curvature (curvlinops) and Jacobians."""
    (x, new), net = inputs(make), make(bias)
    y, model = targets(kind, x), Model(net, LIKELIHOODS[kind], per_tensor(net))
    steps = 3 if structure == "full" else 0
    posterior = laplace(model, (x, y), structure=structure, steps=steps, evidence=False, progress=False)
    noise = {"sigma_noise": NOISE} if kind == "regression" else {}
    prior = prior_of(model, structure)
    fitted = package(net, posterior.mean, kind, structure, (x, y), **prior, **noise)
    same(posterior, fitted, new)


class Ones(nn.Module):
    def forward(self, x):
        return torch.cat([x, torch.ones_like(x[:, :1])], 1)


@every_kind
def test_a_bias_shares_its_layers_kronecker_block(kind):
    """Source: laplace-torch on the same function without biases, each layer seeing one more input, a one.

    For a net with biases the package has a block of its own for each. bnnlib keeps what bias and weights share.
    """
    (x, new), net = inputs(dense), dense(True)
    y, model = targets(kind, x), Model(net, LIKELIHOODS[kind], 0.7)
    posterior = laplace(model, (x, y), structure="kronecker", steps=0, evidence=False, progress=False)
    joined = nn.Sequential(Ones(), nn.Linear(3, 4, bias=False), nn.Tanh(), Ones(), nn.Linear(5, 3, bias=False))
    w = torch.cat([torch.cat([net[i].weight, net[i].bias[:, None]], 1).flatten() for i in (0, 2)]).detach()
    settings = {"prior_precision": 0.7**-2} | ({"sigma_noise": NOISE} if kind == "regression" else {})
    same(posterior, package(joined.double(), w, kind, "kronecker", (x, y), **settings), new)


@every_kind
def test_for_one_point_the_shared_block_is_exact_and_two_are_not(kind):
    """Source: the package's own dense matrix, with zeros between the layers only."""
    x, net = inputs(dense)[0][:1], dense(True)
    y, model = targets(kind, x), Model(net, LIKELIHOODS[kind], 0.7)
    settings = {"prior_precision": 0.7**-2} | ({"sigma_noise": NOISE} if kind == "regression" else {})
    whole, blocks = (package(net, model.start(), kind, s, (x, y), **settings) for s in ("full", "kronecker"))
    precision = whole.posterior_precision.detach()
    layers = [precision[:12, :12], precision[12:, 12:]]
    missing = whole.log_det_posterior_precision - sum(torch.logdet(block) for block in layers)
    exact = float(whole.log_marginal_likelihood() + 0.5 * missing)
    posterior = laplace(model, (x, y), structure="kronecker", steps=0, evidence=False, progress=False)
    assert posterior.diagnostics["log_evidence"] == pytest.approx(exact, rel=1e-12)
    assert abs(float(blocks.log_marginal_likelihood()) - exact) > 0.05


@every_kind
@pytest.mark.parametrize("structure", [*STRUCTURES, "full, more weights than outputs"])
@pytest.mark.slow
def test_the_prior_and_the_noise_that_are_found_have_the_packages_largest_evidence(structure, kind):
    """Source: differences of laplace-torch's log marginal likelihood, at the weights where the fit rests.

    Slopes need not come closer to zero: at 1e-6 the evidence is the largest there is, to the digits of float64.
    """
    if structure in STRUCTURES:
        net, x = dense(structure != "kronecker"), normals(60, 2, seed=9)
        y = targets(kind, x)
    else:
        net, x, structure = filled(nn.Sequential(nn.Linear(30, 3))), normals(25, 30, seed=9), "full"
        y = 0.3 * (x @ normals(30, 3, seed=7) + torch.arange(3) + normals(25, 3, seed=8))
        y = y if kind == "regression" else y.argmax(-1)
    likelihood = Gaussian(scale=HalfNormal(1.0)) if kind == "regression" else Categorical()
    model = Model(net, likelihood)
    steps = {"steps": 300, "burn_in": 5} if structure == "full" else {"steps": 0}
    posterior = laplace(model, (x, y), structure=structure, tolerance=1e-13, progress=False, **steps)
    fitted = package(net, posterior.mean[: model.net_size], kind, structure, (x, y))
    names = [name for name in model.shapes if structure != "last_layer" or name.startswith("2.")]
    found = [-2 * torch.tensor(posterior.diagnostics[f"prior_sd {name}"], dtype=F64).log() for name in names]
    at, slopes = torch.cat([torch.stack(found), model.noise(posterior.mean)]), []

    def log_evidence(at):
        precision, u = at[: len(names)].exp(), at[len(names) :]
        if structure != "kronecker":
            precision = torch.repeat_interleave(precision, torch.tensor([model.shapes[n].numel() for n in names]))
        noise = {"sigma_noise": float(likelihood.log_scale(u).exp())} if len(u) else {}
        return float(fitted.log_marginal_likelihood(precision, **noise) + likelihood.unknown_log_prior(u))

    assert posterior.diagnostics["log_evidence"] == pytest.approx(log_evidence(at), rel=1e-11)
    for step in 1e-3 * torch.eye(len(at), dtype=F64):
        near, far = (log_evidence(at + k * step) - log_evidence(at - k * step) for k in (1, 2))
        slopes.append((8 * near - far) / 12e-3)
    assert max(map(abs, slopes)) < 1e-6
