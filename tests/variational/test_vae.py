"""The bound of a variational autoencoder: exact where the model is linear, by quadrature where it is not."""

import doctest
import importlib
import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from bnnlib.normal import positive_inverse
from bnnlib.variational import VAE

X = torch.tensor(load_iris().data)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def principal(x, latent, correction=1):
    """A linear VAE at the maximum of the evidence of probabilistic PCA, and its exact posterior as the encoder."""
    mean, size = x.mean(0), x.shape[1]
    values, vectors = torch.linalg.eigh(torch.cov(x.T, correction=correction))
    top, axes = values[-latent:], vectors[:, -latent:]
    noise = values[: size - latent].mean()
    slope = axes * (top - noise).sqrt()  # W, with W^T W + noise = diag(top)
    vae = VAE(size, latent, hidden=(), likelihood="gaussian", generator=seeded(0)).double()
    (encoder,), (decoder,) = vae.encoder, vae.decoder
    with torch.no_grad():
        vae.rho.copy_(positive_inverse(noise.sqrt()))
        decoder.weight.copy_(slope)
        decoder.bias.copy_(mean)
        back = slope.T / top.unsqueeze(-1)
        encoder.weight.copy_(torch.cat([back, torch.zeros_like(back)]))
        encoder.bias.copy_(torch.cat([-back @ mean, positive_inverse((noise / top).sqrt())]))
    return vae


def small(seed=1, likelihood="bernoulli"):
    vae = VAE(5, 1, hidden=(4,), likelihood=likelihood, generator=seeded(seed)).double()
    with torch.no_grad():
        vae.decoder[-1].weight.mul_(4)
        vae.encoder[-1].bias[1] = 1.0  # q wider than the prior: importance weights are bounded
    x = (torch.rand(3, 5, generator=seeded(9)) > 0.5).double()
    return vae.requires_grad_(False), x


def log_evidence(vae, x):
    """log p(x) by a sum over a fine grid of a single latent."""
    z = torch.linspace(-9, 9, 4001, dtype=torch.float64).unsqueeze(-1)
    joint = vae.decode(z).log_prob(x.unsqueeze(1)) + Normal(0, 1).log_prob(z[:, 0])
    return joint.logsumexp(-1) + math.log(18 / 4000)


@pytest.mark.parametrize("latent", [1, 2, 3])
def test_a_linear_vae_is_probabilistic_pca_and_its_bound_the_evidence(latent):
    vae = principal(X, latent)
    reference = PCA(latent).fit(X.numpy()).score_samples(X.numpy())
    with torch.no_grad():
        for seed in range(3):  # at q = posterior every single draw is the evidence
            assert vae.importance_bound(X, 1, generator=seeded(seed)).numpy() == pytest.approx(reference, abs=1e-9)
        average = vae.elbo(X, 1000, generator=seeded(1))
    assert average.mean().item() == pytest.approx(reference.mean(), abs=0.02)


def exact_bound(vae, x):
    """The ELBO of a linear VAE in closed form: a squared distance, a trace, a divergence."""
    q, weight = vae.encode(x), vae.decoder[0].weight
    trace = (q.variance @ weight.square().sum(0)) / vae.scale**2
    return vae.decode(q.mean).log_prob(x) - 0.5 * trace - kl_divergence(q, vae.prior(x))


def test_another_encoder_loses_its_divergence_from_the_posterior():
    vae = principal(X, 2).requires_grad_(False)
    posterior = vae.encode(X)
    vae.encoder[0].bias[0] += 0.1
    vae.encoder[0].bias[3] += 0.3
    evidence = torch.tensor(PCA(2).fit(X.numpy()).score_samples(X.numpy()))
    bound, gap = exact_bound(vae, X), kl_divergence(vae.encode(X), posterior)
    assert gap.min().item() > 0.02
    assert torch.allclose(evidence - bound, gap, atol=1e-9)
    draws = vae.elbo(X.repeat(1000, 1), generator=seeded(2)).reshape(1000, 150)
    error = draws.std(0) / 1000**0.5
    assert ((draws.mean(0) - bound).abs() < 5 * error).all()


def test_the_maximum_of_the_evidence_is_that_of_the_bound():
    vae = principal(X, 2, correction=0)
    slopes = torch.autograd.grad(exact_bound(vae, X).mean(), list(vae.parameters()))
    assert max(slope.abs().max().item() for slope in slopes) < 1e-9


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_bounds_of_a_net_by_quadrature(likelihood):
    vae, x = small(likelihood=likelihood)
    q, evidence = vae.encode(x), log_evidence(vae, x)
    nodes, weights = (torch.tensor(v) for v in np.polynomial.hermite_e.hermegauss(60))
    z = q.mean + q.stddev * nodes.reshape(-1, 1, 1)
    likelihoods = vae.decode(z).log_prob(x)
    exact = (weights / weights.sum()) @ likelihoods - kl_divergence(q, vae.prior(x))
    draws = vae.elbo(x.repeat(4000, 1), generator=seeded(1)).reshape(4000, 3)
    assert ((draws.mean(0) - exact).abs() < 5 * draws.std(0) / 4000**0.5).all()
    assert (exact < evidence - 0.01).all()
    averages, errors = [], []
    for k in (1, 2, 8, 64):
        some = vae.importance_bound(x.repeat(4000, 1), k, generator=seeded(k)).reshape(4000, 3)
        averages.append(some.mean(0))
        errors.append(some.std(0) / 4000**0.5)
    assert ((averages[0] - exact).abs() < 5 * errors[0]).all()
    for i in range(3):
        assert (averages[i + 1] - averages[i] > 5 * (errors[i] ** 2 + errors[i + 1] ** 2).sqrt()).all()
    # Between the bound and log p(x) lies about half the relative variance of the mean weight.
    assert (averages[-1] < evidence + 5 * errors[-1]).all()
    assert torch.allclose(averages[-1], evidence - 4000 * errors[-1] ** 2 / 2, atol=0.01)


def test_many_draws_at_once_are_the_average_of_single_ones():
    vae, x = small()
    g = seeded(5)
    single = torch.stack([vae.elbo(x, generator=g) for _ in range(7)])
    together = vae.elbo(x, 7, generator=seeded(5))
    assert torch.allclose(single.mean(0), together, atol=1e-12)
    g = seeded(6)
    ratios = torch.stack([vae.importance_bound(x, 1, generator=g) for _ in range(7)])
    at_once = vae.importance_bound(x, 7, generator=seeded(6))
    assert torch.allclose(ratios.logsumexp(0) - math.log(7), at_once, atol=1e-12)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_gradients_against_finite_differences(likelihood):
    vae, x = small(likelihood=likelihood)
    names, values = zip(*vae.named_parameters(), strict=True)

    def bound(*parameters):
        held = dict(zip(names, parameters, strict=True))
        both = [
            torch.func.functional_call(_Method(vae, name), {f"vae.{k}": v for k, v in held.items()}, (x,)).sum()
            for name in ("elbo", "importance_bound")
        ]
        return both[0] + both[1]

    assert torch.autograd.gradcheck(bound, tuple(v.clone().requires_grad_() for v in values))


class _Method(nn.Module):
    def __init__(self, vae, name):
        super().__init__()
        self.vae, self.name = vae, name

    def forward(self, x):
        return getattr(self.vae, self.name)(x, 3, generator=seeded(7))


def test_networks_of_your_own_and_their_shapes():
    encoder = nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(4, 4))
    vae = VAE(6, 2, encoder=encoder, decoder=nn.Linear(2, 6), generator=seeded(0))
    x = torch.ones(7, 6)
    assert vae.encode(x).batch_shape == (7,)
    assert vae.encode(x).event_shape == (2,)
    assert vae.decode(torch.zeros(3, 7, 2)).batch_shape == (3, 7)
    assert vae.decode(torch.zeros(2)).mean.shape == (6,)
    assert vae.importance_bound(x, 5, generator=seeded(1)).shape == (7,)
    again = VAE(6, 2, encoder=encoder, decoder=nn.Linear(2, 6), generator=seeded(2))
    again.load_state_dict(vae.state_dict())
    assert torch.equal(again.elbo(x, generator=seeded(1)), vae.elbo(x, generator=seeded(1)))


def test_the_generator_is_the_only_source_of_chance():
    state = torch.get_rng_state()
    pair = [VAE(6, 2, generator=seeded(3)) for _ in range(2)]
    x = torch.ones(4, 6)
    assert torch.equal(*(vae.elbo(x, 2, generator=seeded(4)) for vae in pair))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_posterior_of_the_linear_model_is_what_conditioning_gives():
    vae = principal(X, 2)
    weight, mean, scale = vae.decoder[0].weight, vae.decoder[0].bias, vae.scale
    joint = weight @ weight.T + scale**2 * torch.eye(4)
    gain = torch.linalg.solve(joint, weight).T
    assert torch.allclose(vae.encode(X).mean, (X - mean) @ gain.T, atol=1e-9)
    assert torch.allclose(vae.encode(X).variance, (torch.eye(2) - gain @ weight).diagonal().expand(150, 2), atol=1e-9)
    evidence = MultivariateNormal(mean, joint).log_prob(X)
    assert torch.allclose(vae.importance_bound(X, 1, generator=seeded(0)), evidence, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "size"),
        ({"latent": 1.5}, "latent"),
        ({"hidden": (0,)}, "hidden"),
        ({"likelihood": "poisson"}, "bernoulli"),
        ({"encoder": nn.Linear(6, 2)}, "encoder must give 4"),
        ({"decoder": nn.Linear(2, 5)}, "decoder"),
    ],
)
def test_bad_settings(change, message):
    arguments = {"size": 6, "latent": 2} | change
    with pytest.raises(ValueError, match=message):
        VAE(arguments.pop("size"), arguments.pop("latent"), **arguments)


def test_bad_calls():
    vae = VAE(6, 2, generator=seeded(0))
    for x, message in (
        (torch.ones(6), "flatten"),
        (torch.ones(2, 3, 2), "flatten"),
        (torch.ones(2, 6) / 2, "threshold"),
        (torch.full((2, 6), math.nan), "finite"),
        (torch.ones(2, 6).long(), "floating"),
    ):
        with pytest.raises(ValueError, match=message):
            vae.elbo(x)
    for draws in (0, True, 2.5):
        with pytest.raises(ValueError, match="draws"):
            vae.elbo(torch.ones(2, 6), draws)
        with pytest.raises(ValueError, match="draws"):
            vae.importance_bound(torch.ones(2, 6), draws)
    with pytest.raises(ValueError, match="z must"):
        vae.decode(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="noise"):
        _ = vae.scale
    assert isinstance(vae.prior(torch.ones(1)), Independent)


@pytest.mark.parametrize("module", ["cavi_normal", "vae"])
def test_the_examples_run(module):
    loaded = importlib.import_module(f"bnnlib.variational.{module}")
    examples = [test for test in doctest.DocTestFinder().find(loaded, globs={}) if test.examples]
    assert examples
    runner = doctest.DocTestRunner()
    for example in examples:
        runner.run(example)
    assert runner.summarize(verbose=False).failed == 0
