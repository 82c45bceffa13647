"""What every inference function does with its data: loaders, parts of data sets, interrupts, and losses that break."""

import sys

import pytest
import torch
from torch import nn
from torch.distributions import HalfNormal
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, random_split
from torch.utils.data.sampler import BatchSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler

from bnnlib.data import Standardized
from bnnlib.nets import Categorical, Gaussian, Model, laplace, mean_field
from bnnlib.nets._fitting import batches, prepare


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


X, Y = normals(12, 2), normals(12, 1, seed=1)


def model(likelihood=None, outputs=1):
    net = nn.Linear(2, outputs)
    for i, p in enumerate(net.parameters()):
        p.data = 0.3 * normals(*p.shape, seed=10 + i)
    return Model(net, Gaussian(scale=HalfNormal(1.0)) if likelihood is None else likelihood, 1.0)


def by_mean_field(data, likelihood=None, outputs=1, **settings):
    settings = {"steps": 30, "generator": generator(), **settings}
    return mean_field(model(likelihood, outputs), data, progress=False, **settings)


def by_laplace(data, likelihood=None, outputs=1):
    return laplace(model(likelihood, outputs), data, progress=False)


METHODS = pytest.mark.parametrize("method", [by_mean_field, by_laplace])


class Listed(Dataset):
    """A data set that is not one tensor."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


@pytest.mark.parametrize(
    ("loader", "expected"),
    [
        (DataLoader(TensorDataset(X, Y), batch_size=5), (X, Y)),
        (DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True, drop_last=True), (X, Y)),
        (DataLoader(Listed(X, Y), batch_size=5), (X, Y)),
        (DataLoader(Subset(TensorDataset(X, Y), [3, 1, 8]), batch_size=2), (X[[3, 1, 8]], Y[[3, 1, 8]])),
        (DataLoader(TensorDataset(X, Y), 2, sampler=SubsetRandomSampler([3, 1, 8])), (X[[3, 1, 8]], Y[[3, 1, 8]])),
        (DataLoader(TensorDataset(X, Y), batch_sampler=BatchSampler(SequentialSampler(X), 5, False)), (X, Y)),
    ],
    ids=["whole", "shuffled, last dropped", "own data set", "Subset", "SubsetRandomSampler", "batch_sampler"],
)
def test_a_loader_stands_for_its_points(loader, expected):
    """n and the whole data are those that the loader visits: a held-out part is no part of the posterior."""
    prepared = prepare(model(), loader)
    assert prepared.n == len(expected[0])
    for own, exact in zip(prepared.everything(), expected, strict=True):
        torch.testing.assert_close(own, exact, rtol=0, atol=0)
    a, b = by_laplace(loader), by_laplace(expected)
    assert torch.equal(a.mean, b.mean)


def test_batches_go_on_epoch_after_epoch():
    """Seven batches of a loader that has three: the fourth is the first again; a pair is given whole each time."""
    prepared = prepare(model(), DataLoader(TensorDataset(X, Y), batch_size=5))
    stream = batches(prepared, torch.device("cpu"))
    sizes = [len(next(stream)[0]) for _ in range(7)]
    assert sizes == [5, 5, 2, 5, 5, 2, 5]
    stream = batches(prepare(model(), (X, Y)), torch.device("cpu"))
    assert [len(next(stream)[0]) for _ in range(3)] == [12, 12, 12]


def test_looking_at_a_loader_does_not_advance_it():
    """The shuffled order that training sees is the one that the loader's generator gives from its start."""
    loader = DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True, generator=generator(3))
    first = next(batches(prepare(model(), loader), torch.device("cpu")))[0]
    again = DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True, generator=generator(3))
    assert torch.equal(first, next(iter(again))[0])


@METHODS
@pytest.mark.parametrize(
    "part", [Subset, lambda d, i: random_split(d, [8, 4], generator())[0]], ids=["Subset", "random_split"]
)
def test_a_part_of_standardised_data_keeps_its_units(method, part):
    """Predictions come back in the original units: near targets around 500, not around 0."""
    data = Standardized(10 * X + 3, 100 * Y + 500)
    posterior = method(DataLoader(part(data, range(8)), batch_size=4))
    assert posterior.scaling is data.scaling
    mean = posterior.predict(10 * X + 3, draws=50, generator=generator()).mean
    assert abs(float(mean.mean()) - 500) < 100


class Breaking(Listed):
    """Raises when a point is asked for the k-th time."""

    def __init__(self, x, y, k, error):
        super().__init__(x, y)
        self.left, self.error = k, error

    def __getitem__(self, i):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().__getitem__(i)


def test_an_interrupt_keeps_what_was_reached_and_says_so():
    """Source: a run of just as many steps. Twelve points are looked at first, then each step takes four."""
    loader = DataLoader(Breaking(X, Y, 4 + 7 * 4, KeyboardInterrupt), batch_size=4)
    with pytest.warns(UserWarning, match="interrupted after 7 of 30 steps"):
        posterior = by_mean_field(loader, decay=0.0)
    assert "interrupted" in repr(posterior)
    assert posterior.history["nelbo"].shape == (7,)
    exact = by_mean_field(DataLoader(Listed(X, Y), batch_size=4), steps=7, decay=0.0)
    assert torch.equal(posterior.mean, exact.mean)
    assert "interrupted" not in repr(exact)


def test_an_interrupted_laplace_keeps_what_was_reached(monkeypatch):
    state = sys.modules["bnnlib.nets.laplace"]._State
    move, left = state.move, [3]

    def stop(self):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        move(self)

    monkeypatch.setattr(state, "move", stop)
    with pytest.warns(UserWarning, match="interrupted after 3 steps"):
        posterior = by_laplace((X, Y))
    assert "interrupted" in repr(posterior)
    assert posterior.history["damping"].shape == (3,)
    assert bool(posterior.predict(X).total.isfinite().all())


@pytest.mark.parametrize("likelihood", [None, Gaussian(scale=0.5)], ids=["unknown noise", "known noise"])
def test_a_broken_loss_names_its_step(likelihood):
    """The third batch of the loader has a target of NaN: step 2, counted from 0."""
    y = Y.clone()
    y[9] = float("nan")
    with pytest.raises(FloatingPointError, match="loss is nan at step 2; try a smaller lr"):
        by_mean_field(DataLoader(Listed(X, y), batch_size=4), likelihood)


@pytest.mark.parametrize("likelihood", [None, Gaussian(scale=0.5)], ids=["unknown noise", "known noise"])
def test_a_diverging_fit_names_its_step(likelihood):
    with pytest.raises(FloatingPointError, match="at step"):
        by_mean_field((X, Y), likelihood, lr=1e30)


@METHODS
@pytest.mark.parametrize(
    ("loader", "error", "words"),
    [
        (
            lambda: DataLoader(TensorDataset(X, Y), 20, drop_last=True),
            ValueError,
            "loader is empty: 12 points, 0 batches",
        ),
        (lambda: DataLoader(TensorDataset(X[:0], Y[:0]), 2), ValueError, "empty"),
        (lambda: DataLoader(TensorDataset(X, Y), None), ValueError, "batch_size=None"),
        (
            lambda: DataLoader(TensorDataset(X, Y), 4, sampler=WeightedRandomSampler([1.0] * 12, 12)),
            ValueError,
            "Weighted",
        ),
        (lambda: DataLoader(TensorDataset(X, Y, Y), 4), TypeError, "pairs"),
        (lambda: DataLoader(Stream(), 4), TypeError, "no length"),
        (lambda: TensorDataset(X, Y), TypeError, "pair .* Standardized or a DataLoader, not TensorDataset"),
    ],
    ids=["drop_last", "no points", "no batches", "weighted", "triples", "stream", "data set"],
)
def test_a_loader_that_cannot_be_used_is_refused(method, loader, error, words):
    with pytest.raises(error, match=words):
        method(loader())


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(X[0], Y[0])])


def test_laplace_checks_every_label_of_any_data_set():
    """The first batch is fine, a later one is not."""
    labels = torch.arange(12) % 3
    labels[10] = 7
    with pytest.raises(ValueError, match=r"labels must be 0 \.\.\. 2"):
        by_laplace(DataLoader(Listed(X, labels), batch_size=4), Categorical(), 3)


def test_a_bar_is_shown_only_when_asked_for(capsys, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    by_mean_field((X, Y))
    by_laplace((X, Y))
    assert capsys.readouterr().err == ""
    mean_field(model(), (X, Y), steps=3, progress=True)
    assert "mean field" in capsys.readouterr().err
