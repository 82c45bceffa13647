"""bayesian is lossless for every kind of layer, names what it cannot do; deterministic and fix are what they say."""

import copy

import pytest
import torch
from torch import nn
from torch.distributions import HalfNormal, Independent, Normal
from torch.nn.utils import prune

from bnnlib.data import Standardized
from bnnlib.nets import (
    Categorical,
    Gaussian,
    HeteroscedasticGaussian,
    Posterior,
    bayesian,
    deterministic,
    fix,
    laplace,
    mean_field,
)
from bnnlib.nets.empirical import Empirical
from bnnlib.nets.mixture import mixture


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.words = nn.Embedding(11, 6, padding_idx=0)
        self.rnn = kind(6, 5, num_layers=2, batch_first=True, bidirectional=True)
        self.last = nn.Linear(10, 3)

    def forward(self, x):
        return self.last(self.rnn(self.words(x))[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.block(self.words(x)).mean(1))


def conv2d(**settings):
    return nn.Sequential(nn.Conv2d(4, 8, **settings), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(3))


IMAGES = torch.randn(5, 4, 9, 9, generator=generator())
WORDS = torch.randint(11, (5, 4), generator=generator())
NETS = {
    "dense": (lambda: nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 2, bias=False)), IMAGES[:, 0, 0, :3]),
    "rectangular kernel": (lambda: conv2d(kernel_size=(3, 2), stride=(2, 1), padding=(1, 0)), IMAGES),
    "dilation and groups": (lambda: conv2d(kernel_size=3, dilation=(2, 3), groups=4), IMAGES),
    "other padding": (lambda: conv2d(kernel_size=3, padding=2, padding_mode="circular", bias=False), IMAGES),
    "one dimension": (lambda: nn.Sequential(nn.Conv1d(4, 2, 3), nn.Flatten(), nn.Linear(14, 3)), IMAGES[:, :, 0]),
    "three dimensions": (lambda: nn.Sequential(nn.Conv3d(1, 2, 3), nn.Flatten(), nn.LazyLinear(3)), IMAGES[:, None]),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(4, 2, 2), nn.Flatten(), nn.LazyLinear(3)), IMAGES),
    "norms": (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(324, 3)), IMAGES),
    "weight norm": (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(9, 3))), IMAGES[:, 0, 0]),
    "RNN": (lambda: Recurrent(nn.RNN), WORDS),
    "LSTM": (lambda: Recurrent(nn.LSTM), WORDS),
    "GRU": (lambda: Recurrent(nn.GRU), WORDS),
    "attention": (Attention, WORDS),
}


def trained(make, x):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = make()
        net(x)  # the lazy ones and the running statistics
    return net.eval()


@pytest.mark.parametrize("layers", [None, "last"], ids=["whole", "last"])
@pytest.mark.parametrize("name", NETS)
def test_zero_scale_is_the_trained_network_to_the_last_bit(name, layers):
    """Source: the network itself, asked for no gradient: with one, torch runs attention and RNNs by other kernels."""
    make, x = NETS[name]
    net = trained(make, x)
    keys, exact = list(net.state_dict()), copy.deepcopy(net).requires_grad_(False)(x)
    posterior = bayesian(net, Categorical(), layers=layers)
    assert list(posterior.model.net.state_dict()) == keys or layers
    assert set(posterior.model.net.state_dict()) == set(keys)
    assert torch.equal(posterior.functions(x, 1)[0], exact)
    assert torch.equal(deterministic(posterior)(x), exact)
    assert torch.equal(fix(posterior)(x), exact)
    total = sum(p.numel() for p in net.parameters())
    assert posterior.model.size == total if layers is None else posterior.model.size < total or name == "weight norm"
    assert all(p.requires_grad for p in net.parameters())


def small():
    return trained(lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), torch.zeros(4, 2))


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ("last", ["2.weight", "2.bias"]),
        ("0", ["0.weight", "0.bias"]),
        ("*.bias", ["0.bias", "2.bias"]),
        (["0.weight", "2"], ["0.weight", "2.weight", "2.bias"]),
        (None, ["0.weight", "0.bias", "2.weight", "2.bias"]),
    ],
)
def test_what_is_named_is_unknown_and_all_else_constant(layers, names):
    model = bayesian(small(), Gaussian(scale=0.1), layers=layers).model
    assert list(model.shapes) == names
    assert set(dict(model.net.named_buffers())) == {"0.weight", "0.bias", "2.weight", "2.bias"} - set(names)


def test_scales_are_standard_deviations_by_name():
    """Source: the entries of w in flat order: 6 weights, 3 biases, 3 weights, 1 bias."""
    q = bayesian(small(), Gaussian(scale=0.1), scale={"0.*": 0.5, "*": 0.25}).distribution
    assert q.variance.tolist() == [0.25] * 9 + [0.0625] * 4
    assert torch.equal(q.mean, torch.cat([p.detach().flatten() for p in small().parameters()]))


class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.last, self.rest = nn.Linear(2, 1), [nn.Linear(2, 2)]

    def forward(self, x):
        return self.last(self.rest[0](x))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


def pruned():
    return prune.l1_unstructured(nn.Linear(4, 4), "weight", amount=2)


@pytest.mark.parametrize(
    ("net", "settings", "words"),
    [
        (Hidden, {}, r"the net \(Hidden\).rest holds parameters in a plain list"),
        (Tied, {}, "a.weight and b.weight are one shared parameter"),
        (Tied, {"layers": "b"}, "a.weight and b.weight are one shared parameter"),
        (lambda: nn.Sequential(nn.LazyLinear(2)), {}, r"0 \(LazyLinear\) has no parameters yet"),
        (lambda: nn.Sequential(pruned()), {}, r"0 \(Linear\).weight is computed from other parameters"),
        (lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(1, 1)), {}, r"0 \(Dropout\) has active dropout"),
        (lambda: nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1)), {}, r"0 \(BatchNorm1d\) is BatchNorm in training"),
        (small, {"layers": "conv*"}, r"'conv\*' matches nothing; layers with parameters are 0, 2"),
        (small, {"layers": []}, "layers is empty"),
        (small, {"scale": -0.1}, "scale is a standard deviation"),
        (small, {"scale": {"0.*": 0.1}}, "2.weight is unknown but has no scale"),
        (small, {"scale": {"9.*": 0.1}}, r"'9.\*' matches nothing unknown"),
    ],
)
def test_what_cannot_be_converted_is_named(net, settings, words):
    with pytest.raises(ValueError, match=words):
        bayesian(net(), Gaussian(scale=0.1), **settings)


def test_a_scale_needs_a_known_noise():
    with pytest.raises(ValueError, match="says nothing about the unknown noise"):
        bayesian(small(), Gaussian(scale=HalfNormal(1.0)), scale=0.1)


X = torch.rand(40, 2, generator=generator()) * 4 - 7
Y = 30 + 5 * X[:, :1] + torch.randn(40, 1, generator=generator(1))


def fitted(kind):
    model = bayesian(small(), Gaussian(scale=0.5)).model
    data = Standardized(X, Y)
    if kind == "mean_field":
        return mean_field(model, data, steps=50, progress=False, generator=generator())
    if kind == "mixture":
        return mixture([fitted("mean_field"), fitted("full")])
    if kind == "empirical":
        base = fitted("mean_field")
        return Posterior(model, Empirical(base.sample(4, generator(2))), "ensemble", scaling=base.scaling)
    return laplace(model, data, structure=kind, steps=50, progress=False)


@pytest.mark.parametrize("kind", ["mean_field", "full", "kronecker", "diagonal", "last_layer", "empirical", "mixture"])
def test_a_fixed_network_is_one_function_of_the_posterior(kind):
    """Source: Posterior.functions with the same generator; original units on both sides; the same answer twice."""
    posterior = fitted(kind)
    for seed in range(3):
        net = fix(posterior, generator(seed))
        exact = posterior.functions(X, 1, generator(seed))[0]
        torch.testing.assert_close(net(X), exact, rtol=1e-5, atol=1e-4)
        assert torch.equal(net(X), net(X))
        assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("kind", ["mean_field", "full", "last_layer"])
def test_the_deterministic_network_is_at_the_mean_of_w(kind):
    """Source: the model at the mean on standardised inputs, brought back by hand; it does not depend on a seed."""
    posterior = fitted(kind)
    s = posterior.scaling
    exact = posterior.model(posterior.mean.float(), (X - s.x_loc) / s.x_scale) * s.y_scale + s.y_loc
    torch.testing.assert_close(deterministic(posterior)(X), exact, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(deterministic(posterior).train()(X), exact, rtol=1e-6, atol=1e-5)


def test_an_input_dependent_noise_gives_the_mean_alone():
    net = trained(lambda: nn.Linear(2, 2), torch.zeros(3, 2))
    posterior = mean_field(
        bayesian(net, HeteroscedasticGaussian()).model,
        Standardized(X, Y),
        steps=20,
        progress=False,
        generator=generator(),
    )
    torch.testing.assert_close(fix(posterior, generator(1))(X), posterior.functions(X, 1, generator(1))[0])


@pytest.mark.parametrize("kind", ["empirical", "mixture"])
def test_between_the_members_of_an_ensemble_there_is_no_network(kind):
    with pytest.raises(ValueError, match="is not a network that was fitted"):
        deterministic(fitted(kind))


def test_a_saved_partial_posterior_gives_the_same_draws(tmp_path):
    posterior = bayesian(small(), Gaussian(scale=0.1), layers="last", scale=0.2)
    posterior.save(tmp_path / "p.pt")
    again = Posterior.load(tmp_path / "p.pt", posterior.model)
    assert torch.equal(again.sample(3, generator()), posterior.sample(3, generator()))
    assert isinstance(again.distribution, Independent)
    assert isinstance(again.distribution.base_dist, Normal)
