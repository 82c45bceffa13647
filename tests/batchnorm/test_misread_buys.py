"""The boxes of book/batchnorm/what_it_buys.ipynb, on its digits, in small."""

from itertools import pairwise

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

SPLIT = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
X = torch.as_tensor(load_digits().data, dtype=torch.float32)[SPLIT] / 16
Y = torch.as_tensor(load_digits().target)[SPLIT]


class Jitter(nn.Module):
    """A new shift and stretch of each unit at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(5)

    def forward(self, h: Tensor) -> Tensor:
        u = torch.rand(2, h.shape[1], generator=self.generator)
        return (1 + 0.5 * u[0]) * h + 2.4 * u[1] - 1.2


def network(norm=None, jitter=None, dropout=0.0, seed=0, sd=0.5) -> nn.Sequential:
    g, layers = torch.Generator().manual_seed(seed), []
    for inputs in (64, 100, 100):
        layers.append(nn.Linear(inputs, 100))
        layers += [norm(100)] if norm else []
        layers += [jitter()] if jitter else []
        layers += [nn.Sigmoid(), nn.Dropout(dropout)]
    net = nn.Sequential(*layers, nn.Linear(100, 10))
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0, sd, generator=g)
            nn.init.zeros_(layer.bias)
    return net


def train(net: nn.Module, n: int, steps: int, lr: float, seed: int = 0) -> None:
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    for _ in range(steps):
        part = torch.randperm(n, generator=g)[:60]
        optimizer.zero_grad()
        cross_entropy(net(X[part]), Y[part]).backward()
        optimizer.step()
    net.eval()


def loss(net: nn.Module, rows: slice) -> float:
    with torch.no_grad():
        return cross_entropy(net(X[rows]), Y[rows]).item()


@pytest.mark.misreading("S2.11")
def test_inputs_that_move_more_than_in_a_plain_net_leave_the_gain():
    """Were steady inputs the reason, jitter after BatchNorm would cost the gain. It leaves a good part."""
    test, moved = {}, {}
    norm = {"norm": nn.BatchNorm1d}
    for kind, settings in {"plain": {}, "norm": norm, "jitter": norm | {"jitter": Jitter}}.items():
        net, seen = network(**settings, sd=0.3), []
        last = [m for m in net if isinstance(m, nn.Sigmoid)][-1]
        last.register_forward_pre_hook(
            lambda m, args, seen=seen: seen.append((args[0].mean(0).detach(), args[0].std(0).detach()))
        )
        train(net, 1347, 66, lr=0.3)
        steps = [((b[0] - a[0]).abs() / a[1]).mean().item() for a, b in pairwise(seen)]
        test[kind], moved[kind] = loss(net, slice(1347, None)), sum(steps) / len(steps)
    assert moved["norm"] < 0.05 < moved["plain"] < moved["jitter"]
    assert test["norm"] < test["jitter"] < 0.75 * test["plain"]


@pytest.mark.misreading("S2.22")
def test_batchnorm_learns_a_small_set_by_heart_and_dropout_still_helps():
    known, new = {}, {}
    kinds = {"plain": {}, "norm": {"norm": nn.BatchNorm1d}, "both": {"norm": nn.BatchNorm1d, "dropout": 0.2}}
    for kind, settings in kinds.items():
        nets = [network(**settings, seed=s) for s in range(2)]
        for s, net in enumerate(nets):
            train(net, 120, 600, lr=0.3, seed=s)
        known[kind] = sum(loss(net, slice(120)) for net in nets) / 2
        new[kind] = sum(loss(net, slice(1347, None)) for net in nets) / 2
    assert known["norm"] < known["plain"]
    assert new["norm"] > 10 * known["norm"]
    assert new["norm"] > new["plain"] + 0.01
    assert new["both"] < new["norm"] - 0.01
