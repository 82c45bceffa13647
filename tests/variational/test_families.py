"""Families: the gradients written by hand against autograd's, and densities against their draws."""

import copy

import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.func import jacrev, vmap

from bnnlib._random import draw
from bnnlib.variational import Flow, FullRank, LowRank, MeanField
from bnnlib.variational._draws import reparameterised

F64 = torch.float64
D = 4


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def anywhere(family, seed=1):
    """The family at parameters away from its start."""
    with torch.no_grad():
        for i, p in enumerate(family.parameters):
            move = 0.4 * noise(*p.shape, seed=seed + i)
            p += move.tril(-1) if isinstance(family, FullRank) and p.dim() == 2 else move
    return family


MAKERS = {
    "mean field": lambda: MeanField(D, dtype=F64),
    "full rank": lambda: FullRank(D, dtype=F64),
    "low rank": lambda: LowRank(D, 2, dtype=F64),
    "flow": lambda: Flow(D, layers=3, hidden=5, dtype=F64, generator=generator()),
}
NORMALS = pytest.mark.parametrize("make", [MAKERS[k] for k in list(MAKERS)[:3]], ids=list(MAKERS)[:3])
ALL = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def gradients(family):
    return [p.grad.clone() for p in family.parameters]


@NORMALS
def test_the_entropy_and_its_gradient_are_torchs(make):
    family = anywhere(make())
    family.prepare()
    with torch.no_grad():
        entropy = family.begin(0.7)
        family.end()
    own, exact = gradients(family), family.distribution().entropy()
    torch.testing.assert_close(entropy, exact.detach(), rtol=1e-12, atol=1e-12)
    by_torch = torch.autograd.grad(-0.7 * exact, family.parameters, allow_unused=True)
    for a, b in zip(own, by_torch, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-11, atol=1e-12)


@NORMALS
def test_a_draw_pulls_its_gradient_back(make):
    """Two draws, slopes of a bent function of z; the second source is autograd through the formula of the docstring."""
    family = anywhere(make())
    family.prepare()

    def bent(z):
        return (z**3).sum() + z.prod()

    source, total = generator(3), torch.zeros((), dtype=F64)
    mix = family.mix.tril(-1) if isinstance(family, FullRank) else getattr(family, "mix", None)
    for _ in range(2):
        e = torch.randn(D, generator=source, dtype=F64)
        unit = e
        if isinstance(family, FullRank):
            unit = e + mix @ e
        elif mix is not None:
            unit = e + mix @ torch.randn(2, generator=source, dtype=F64)
        total = total + bent(family.loc + family.log_scale.exp() * unit)
    exact = torch.autograd.grad(total, family.parameters)

    source, z = generator(3), torch.empty(D, dtype=F64)
    with torch.no_grad():
        family.begin(0.0)
        for _ in range(2):
            family.draw_into(z, source)
            with torch.enable_grad():
                at = z.clone().requires_grad_()
                (slope,) = torch.autograd.grad(bent(at), at)
            family.loc.grad += slope
            family.pull(slope)
        family.end()
    for a, b in zip(gradients(family), exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@NORMALS
def test_the_expected_square_is_the_one_of_the_marginals(make):
    family, precision = anywhere(make()), noise(3).exp()
    family.prepare()
    with torch.no_grad():
        family.begin(0.0)
        own = family.spread(precision, 0.3)
        family.end()
    exact = 0.5 * (precision * family.distribution().variance[:3]).sum()
    torch.testing.assert_close(own, exact.detach(), rtol=1e-12, atol=0)
    by_torch = torch.autograd.grad(0.3 * exact, family.parameters, allow_unused=True)
    for a, b in zip(gradients(family), by_torch, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-11, atol=1e-12)


@NORMALS
def test_the_draws_have_the_distributions_moments(make):
    """The hand-written draw against the torch distribution: mean and covariance of 20,000, five standard errors."""
    family, n = anywhere(make()), 20_000
    family.prepare()
    z, source = torch.empty(n, D, dtype=F64), generator(5)
    with torch.no_grad():
        family.begin()
        for row in z:
            family.draw_into(row, source)
    q = family.settled()
    cov = torch.diag(q.variance) if isinstance(family, MeanField) else q.covariance_matrix
    assert bool(((z.mean(0) - q.mean).abs() < 5 * (cov.diagonal() / n).sqrt()).all())
    error = ((cov**2 + cov.diagonal()[:, None] * cov.diagonal()) / n).sqrt()
    assert bool(((torch.cov(z.T) - cov).abs() < 5 * error).all())


def test_covariances_are_those_of_the_formulas():
    full, low = anywhere(FullRank(D, dtype=F64)), anywhere(LowRank(D, 2, dtype=F64))
    unit = torch.eye(D, dtype=F64)
    s, c = full.scale.diag(), full.mix.tril(-1)
    torch.testing.assert_close(full.distribution().covariance_matrix, s @ (unit + c) @ (unit + c).T @ s)
    s, c = low.scale.diag(), low.mix
    torch.testing.assert_close(low.distribution().covariance_matrix, s @ (unit + c @ c.T) @ s)


@ALL
def test_the_density_is_that_of_the_draws(make):
    """log q at a draw = log N(e) - log |det dz/de|, the determinant by autograd; all ways of drawing agree."""
    q = anywhere(make()).settled()
    if isinstance(q, MultivariateNormal) or hasattr(q, "transforms"):

        def forward(e):
            z = e
            for transform in getattr(q, "transforms", []):
                z = transform(z)
            return z if hasattr(q, "transforms") else q.loc + q.scale_tril @ e

        e = noise(3, D, seed=8)
        log_det = torch.linalg.slogdet(vmap(jacrev(forward))(e))[1]
        exact = torch.distributions.Normal(0.0, 1.0).log_prob(e).sum(-1) - log_det
        z = torch.stack([forward(v) for v in e])
        torch.testing.assert_close(q.log_prob(z), exact, rtol=1e-10, atol=1e-10)
    kept, fresh = reparameterised(q, 5, generator(2)), reparameterised(q, 5, generator(2))
    assert torch.equal(kept, fresh)
    assert kept.shape == draw(q, 5, generator(2)).shape == (5, D)


def test_a_flow_comes_back_where_it_started():
    """The inverse, without the memory of the last draw."""
    family = anywhere(MAKERS["flow"]())
    q = family.settled()
    e = noise(20, D, seed=9)
    z = e
    for transform in q.transforms:
        z = transform(z)
    back = z.clone()
    for transform in reversed(q.transforms):
        back = transform.inv(back.clone())
    torch.testing.assert_close(back, e, rtol=1e-10, atol=1e-10)
    assert float((z - e).abs().max()) > 0.1


@ALL
def test_the_density_integrates_to_one(make):
    """E_r[q / r] = 1 for a wide normal r, five standard errors; a wrong determinant shows here."""
    q = anywhere(make()).settled()
    sample = draw(q, 4000, generator(4))
    wide = MultivariateNormal(sample.mean(0), 2.5 * torch.cov(sample.T))
    ratio = (q.log_prob(z := draw(wide, 40_000, generator(5))) - wide.log_prob(z)).exp()
    assert z.shape == (40_000, D)
    assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / 200
    assert float(ratio.std()) < 6


def test_families_start_where_they_are_told():
    loc, scale = noise(D), noise(D, seed=1).exp()
    for family in (MeanField(D, loc, scale), FullRank(D, loc, scale), Flow(D, loc=loc, scale=scale)):
        z = reparameterised(family.distribution(), 3, generator(1)).detach()
        torch.testing.assert_close(z, loc + scale * torch.randn(3, D, generator=generator(1), dtype=F64))
    low = LowRank(D, 1, loc, scale).settled()
    torch.testing.assert_close(low.mean, loc)
    torch.testing.assert_close(low.variance, scale**2 * 1.01)  # one direction of a tenth
    assert MeanField(D).loc.dtype == torch.get_default_dtype()


@ALL
def test_what_was_settled_does_not_move(make):
    family = make()
    q, sample = family.settled(), noise(2, D)
    before = q.log_prob(sample)
    anywhere(family)
    torch.testing.assert_close(q.log_prob(sample), before, rtol=0, atol=0)
    assert not before.requires_grad
    assert family.distribution().log_prob(sample).requires_grad
    assert copy.deepcopy(family).parameters[0] is not family.parameters[0]


def test_a_first_flow_is_made_from_the_generator():
    state = torch.random.get_rng_state()
    a, b = (Flow(3, generator=generator(1)) for _ in range(2))
    assert all(torch.equal(p, r) for p, r in zip(a.parameters, b.parameters, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)
