"""Masked: one draw of w is one thinned network, and its moments are those of all masks."""

import itertools

import pytest
import torch
from torch import nn

from bnnlib.nets import Gaussian, Model
from bnnlib.nets._masks import find_masks
from bnnlib.nets.masked import Masked

F64 = torch.float64


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def net_of(*layers):
    net = nn.Sequential(*layers).double().eval()
    for i, p in enumerate(net.parameters()):
        p.data = 0.5 * normals(*p.shape, seed=20 + i)
    return net


X, IMAGES = normals(12, 2), normals(3, 4, 6, 6)


class Times(nn.Module):
    """Dropout whose mask is known."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


CASES = {
    "dense": ([nn.Dropout(0.1), nn.Linear(2, 5), nn.Tanh(), nn.Dropout(0.5), nn.ReLU(), nn.Linear(5, 1)], X),
    "flattened image": ([nn.Dropout(0.3), nn.Flatten(), nn.Linear(144, 2)], IMAGES),
    "groups": ([nn.Dropout2d(0.3), nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(96, 2)], IMAGES),
    "pool": ([nn.Dropout2d(0.3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2)], IMAGES),
}


@pytest.mark.parametrize("case", CASES)
def test_a_draw_of_w_is_the_network_with_units_missing(case):
    """Source: the same network with each Dropout replaced by a multiplication with the mask itself."""
    layers, x = CASES[case]
    net = net_of(*layers)
    model = Model(net, Gaussian(scale=1.0))
    q = find_masks(model, x[:2])
    noise = normals(q.noise_size, seed=4)
    by_mask, first = [], 0
    for layer in layers:
        if not isinstance(layer, nn.modules.dropout._DropoutNd):
            by_mask.append(layer)
            continue
        probe = nn.Sequential(*by_mask)(x)
        shape = (probe.shape[1], *[1] * (probe.dim() - 2)) if isinstance(layer, nn.Dropout2d) else probe.shape[1:]
        units = torch.Size(shape).numel()
        uniform = torch.special.ndtr(noise[first : first + units])
        by_mask.append(Times(((uniform >= layer.p).double() / (1 - layer.p)).reshape(shape)))
        first += units
    exact = nn.Sequential(*by_mask)(x)
    torch.testing.assert_close(model(q.from_noise(noise), x), exact, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(exact, net(x))


def enumerated():
    """A distribution with three masks, all of its values, and their probabilities."""
    p = torch.tensor([0.2, 0.5, 0.0], dtype=F64)
    q = Masked(normals(7), torch.tensor([0, 0, 1, -1, 2, 1, -1]), p)
    kept = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=F64)
    weight = torch.where(kept == 1, 1 - p, p).prod(-1)
    return q, q.from_noise(torch.where(kept == 1, torch.inf, -torch.inf)), weight


def test_mean_and_variance_are_those_of_all_masks():
    q, values, weight = enumerated()
    mean = weight @ values
    torch.testing.assert_close(q.mean, mean, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(q.variance, weight @ (values - mean).square(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("group", "p", "message"),
    [
        (torch.zeros(3, dtype=torch.long), torch.tensor([1.0]), "probabilities"),
        (torch.tensor([0, 1, -1]), torch.tensor([0.5]), "from -1 to 0"),
        (torch.zeros(2, dtype=torch.long), torch.tensor([0.5]), "expected loc"),
    ],
)
def test_what_does_not_fit_is_refused(group, p, message):
    with pytest.raises(ValueError, match=message):
        Masked(torch.zeros(3), group, p)
