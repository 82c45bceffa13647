"""Sampled outputs around layers that have none, where the noise comes from, and what is refused by name."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnnlib.nets import Gaussian, Model, bayesian
from bnnlib.nets.estimators import KINDS, SampledOutputs, noisy_forward

F64 = torch.float64
SAMPLED = KINDS[1:]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def made(build, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().double()


def model_of(build):
    model = Model(made(build), Gaussian(scale=1.0))
    loc = model.start()
    return model, loc, 0.1 + normals(len(loc), seed=5).abs()


def small_net():
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))


class Other(nn.Module):
    """Dense layers around parameters that have no rows of their own."""

    def __init__(self):
        super().__init__()
        self.table, self.norm, self.slope = nn.Embedding(7, 4), nn.LayerNorm(4), nn.PReLU()
        self.out = nn.Linear(4, 1)
        self.weighed = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))

    def forward(self, x):
        return self.out(self.slope(self.weighed(self.norm(self.table(x)))))


@pytest.mark.parametrize("kind", SAMPLED)
def test_other_parameters_are_drawn_once_a_call(kind):
    model, loc, scale = model_of(Other)
    layers = SampledOutputs(model, kind)
    assert list(layers.layers) == ["out"]
    assert set(layers.others) == {name for name in model.shapes if not name.startswith("out")}
    x = torch.tensor([2, 2, 5])
    no_noise_in_out = torch.cat(
        [
            torch.full_like(s, float(not name.startswith("out"))).reshape(-1)
            for name, s in model.parameters_of(scale).items()
        ]
    )
    f = layers(loc, scale * no_noise_in_out, x, generator(1))
    assert torch.equal(f[0], f[1])  # equal inputs, one draw
    assert not torch.equal(f, layers(loc, scale * no_noise_in_out, x, generator(2)))
    everywhere = layers(loc, scale, x, generator(1))
    assert (everywhere[0] - everywhere[1]).abs() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_noise_comes_from_the_generator_and_nothing_else_moves(kind):
    model, loc, scale = model_of(small_net)
    x, before, weights = normals(4, 2), torch.get_rng_state(), model.net[0].weight.clone()
    first, again = (noisy_forward(model, loc, scale, x, kind, generator(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(weights, model.net[0].weight)
    assert model.net[0].forward.__func__ is nn.Linear.forward
    single = Model(model.net.float(), Gaussian(scale=1.0))
    assert noisy_forward(single, loc.float(), scale.float(), x.float(), kind, generator(1)).dtype == torch.float32


def test_entries_of_the_noise_are_not_used():
    model = Model(made(small_net), Gaussian(scale=torch.distributions.HalfNormal(1.0)))
    loc, x = model.start(), normals(4, 2)
    short = noisy_forward(model, loc[:-1], loc[:-1].abs(), x, "local", generator())
    assert torch.equal(short, noisy_forward(model, loc, loc.abs(), x, "local", generator()))


class Twice(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.inner, self.run = nn.Linear(2, 2), forward

    def forward(self, x):
        return self.run(self.inner, x)


@pytest.mark.parametrize("kind", SAMPLED)
@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda inner, x: inner(inner(x)), "inner .*runs twice"),
        (lambda inner, x: F.linear(x, inner.weight), "inner did not run"),
        (lambda inner, x: inner(x.repeat(3, 1))[: len(x)], r"inner .*shape \(12, 2\) for 4 examples"),
    ],
)
def test_a_layer_that_cannot_be_sampled_is_named(forward, message, kind):
    model, loc, scale = model_of(lambda: Twice(forward))
    with pytest.raises(ValueError, match=message):
        noisy_forward(model, loc, scale, normals(4, 2), kind)
    assert noisy_forward(model, loc, scale, normals(4, 2), "reparameterised").shape == (4, 2)


def test_bad_input_is_named_before_any_work():
    model, loc, scale = model_of(small_net)
    x = normals(4, 2)
    with pytest.raises(ValueError, match="'exact'; choose one of reparameterised, local, flipout"):
        SampledOutputs(model, "exact")
    with pytest.raises(TypeError, match="must be a bnnlib"):
        SampledOutputs(model.net)
    with pytest.raises(ValueError, match=r"scale has shape \(3,\); expected \(33,\)"):
        noisy_forward(model, loc, scale[:3], x)
    with pytest.raises(ValueError, match="scale has negative entries"):
        noisy_forward(model, loc, -scale, x)


@pytest.mark.parametrize("kind", SAMPLED)
@pytest.mark.parametrize("layers", ["2.*", "0.weight", "*.weight", "*.bias"])
def test_what_is_constant_stays_in_the_network(kind, layers):
    """Without spread the output is the model's own, constant weights and biases included; with it, noise is there."""
    model = bayesian(made(small_net), Gaussian(scale=1.0), layers=layers).model
    loc, x = normals(model.size, seed=6), normals(5, 2)
    f = noisy_forward(model, loc, torch.zeros_like(loc), x, kind, generator())
    torch.testing.assert_close(f, model(loc, x), rtol=0, atol=1e-12)
    noisy = [noisy_forward(model, loc, torch.ones_like(loc), x, kind, generator(i)) for i in range(2)]
    assert bool((noisy[0] != noisy[1]).all())
