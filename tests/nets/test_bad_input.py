"""Whatever is wrong with data, model or settings is said before training starts, in words that help."""

import math
import re
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from bnnlib.data import Standardized
from bnnlib.nets import (
    Bernoulli,
    Categorical,
    Gaussian,
    HeteroscedasticGaussian,
    Model,
    Posterior,
    StudentT,
    ensemble,
    full_rank,
    hmc,
    ivon,
    laplace,
    low_rank,
    map_estimate,
    mean_field,
    nuts,
    sghmc,
    sgld,
    swag,
)

SHORT = {"steps": 1}
CHAIN = {"draws": 4, "warmup": 2, "chains": 1}
# Every method that takes (model, data), with settings that make it short.
SETTINGS = {
    map_estimate: SHORT,
    laplace: SHORT,
    mean_field: SHORT,
    full_rank: SHORT,
    low_rank: {"steps": 1, "rank": 1},
    ivon: SHORT,
    swag: {"steps": 4, "iterates": 4, "rank": 2, "batch_size": 4},
    ensemble: {"steps": 1, "members": 2},
    hmc: {**CHAIN, "leapfrog_steps": 2},
    nuts: CHAIN,
    sgld: CHAIN,
    sghmc: {"draws": 2, "warmup": 2, "chains": 1, "cycles": 1, "cycle_steps": 4},
}
METHODS = list(SETTINGS)


class Watched(nn.Linear):
    """A layer that says so when it is asked for more than the two rows a check may look at."""

    def forward(self, x: Tensor) -> Tensor:
        assert len(x) <= 2, "training started"
        return super().forward(x)


def watched(likelihood=None, outputs: int = 1) -> Model:
    return Model(Watched(2, outputs), Gaussian(scale=0.1) if likelihood is None else likelihood)


def numbers(n: int = 8, k: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def spoilt(value: float, row: int = 5) -> Tensor:
    x = numbers()
    x[row, 1] = value
    return x


X, Y = numbers(), numbers(k=1, seed=1)

BAD_DATA = [
    ((spoilt(math.nan), Y), "x has NaN or infinite values in 1 of 8 rows, the first is row 5"),
    ((X, spoilt(-math.inf)[:, 1:]), "y has NaN or infinite values in 1 of 8 rows"),
    ((X, Y[:7]), "x has 8 rows, y has 7"),
    ((X, Y.squeeze(-1)), r"y has shape \(8,\), the net gives \(8, 1\); use y\.unsqueeze\(-1\)"),
    ((X, torch.cat([Y, Y], -1)), r"y has shape \(8, 2\), the net and its likelihood need \(n, 1\)"),
    ((X.long(), Y), r"x is torch\.int64; the network computes in torch\.float32: use x\.to\(torch\.float32\)"),
    ((X.double(), Y), r"x is torch\.float64, the network torch\.float32"),
    ((X, Y.double()), r"y is torch\.float64, the network torch\.float32"),
    ((X, Y.long()), r"targets must be floating point, got torch\.int64; use y\.float\(\)"),
    ((numbers(k=3), Y), r"the network cannot take inputs of shape \(8, 3\)"),
    ((X[:0], Y[:0]), r"x is empty \(shape \(0, 2\)\)"),
]


def test_the_watch_works():
    """On good data the watched network does report that training starts: the tests below can fail."""
    for method in METHODS:
        with pytest.raises(AssertionError, match="training started"):
            method(watched(), (X, Y), progress=False, **SETTINGS[method])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("data", "message"), BAD_DATA)
def test_bad_data(method, data, message):
    with pytest.raises(ValueError, match=message):
        method(watched(), data, progress=False)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("data", "message"), BAD_DATA[:2])
def test_bad_rows_that_a_loader_would_meet_later(method, data, message):
    """The bad row is in the third batch."""
    with pytest.raises(ValueError, match=message):
        method(watched(), DataLoader(TensorDataset(*data), batch_size=3), progress=False)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrap", [lambda x, y: (x, y), Standardized])
@pytest.mark.parametrize("batched", [False, True])
def test_class_labels_out_of_range(method, wrap, batched):
    """In the last row, also where a loader would meet it in the last batch."""
    for wrong, message in [
        (3, "class labels must be 0 ... 2 for a net with 3 outputs; got 0 ... 3"),
        (-1, "got -1 ... 0"),
    ]:
        y = torch.zeros(8, dtype=torch.long)
        y[7] = wrong
        data = wrap(X, y)
        if batched:
            data = DataLoader(data if isinstance(data, Standardized) else TensorDataset(*data), batch_size=3)
        with pytest.raises(ValueError, match=re.escape(message)):
            method(watched(Categorical(), 3), data, progress=False)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("likelihood", "outputs", "y", "message"),
    [
        (
            Categorical(),
            3,
            Y,
            r"Categorical needs integer labels of shape \(n,\), got torch\.float32 of shape \(8, 1\)",
        ),
        (Categorical(), 3, torch.zeros(8, 3).long(), "not one-hot rows"),
        (Bernoulli(), 1, Y, "Bernoulli needs targets 0 or 1"),
        (HeteroscedasticGaussian(), 3, Y, "needs two outputs a target"),
        (Gaussian(scale=torch.ones(3)), 1, Y, "the noise has 3 values for 1 outputs"),
        (StudentT(3, scale=torch.ones(2)), 1, Y, "the noise has 2 values for 1 outputs"),
    ],
)
def test_targets_that_the_likelihood_cannot_mean(method, likelihood, outputs, y, message):
    with pytest.raises(ValueError, match=message):
        method(watched(likelihood, outputs), (X, y), progress=False)


class Endless(IterableDataset):
    def __iter__(self):
        yield X[0], Y[0]


@pytest.mark.parametrize("method", METHODS)
def test_loaders_that_give_nothing(method):
    for loader in (
        DataLoader(TensorDataset(X[:0], Y[:0])),
        DataLoader(TensorDataset(X, Y), batch_size=9, drop_last=True),
    ):
        with pytest.raises(ValueError, match="the loader is empty"):
            method(watched(), loader, progress=False)
    with pytest.raises(TypeError, match="has no length"):
        method(watched(), DataLoader(Endless()), progress=False)
    with pytest.raises(TypeError, match=r"must give pairs \(x, y\)"):
        method(watched(), DataLoader(TensorDataset(X)), progress=False)


@pytest.mark.parametrize("method", METHODS)
def test_things_that_are_no_data_and_no_model(method):
    with pytest.raises(TypeError, match="of tensors, a Standardized or a DataLoader, not Tensor"):
        method(watched(), X, progress=False)
    with pytest.raises(TypeError, match=r"x must be a torch tensor, got list; use torch\.as_tensor\(x\)"):
        method(watched(), ([[1.0, 2.0]], Y[:1]), progress=False)
    with pytest.raises(TypeError, match=r"got Linear; wrap the network: Model\(net, likelihood\)"):
        method(nn.Linear(2, 1), (X, Y), progress=False)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (mean_field, {"steps": 0}, "steps must be a whole number, at least 1, got 0"),
        (mean_field, {"draws": 0}, "draws must be a whole number, at least 1, got 0"),
        (mean_field, {"lr": -0.1}, "lr must be positive and finite, got -0.1"),
        (mean_field, {"lr": math.nan}, "lr must be positive and finite, got nan"),
        (mean_field, {"kl_weight": -1.0}, "kl_weight must not be negative"),
        (mean_field, {"init_scale": 0.0}, "init_scale must be positive"),
        (mean_field, {"decay": 1.5}, "decay is a part of the steps"),
        (laplace, {"steps": 0}, "steps must be a whole number"),
        (laplace, {"burn_in": -1}, "burn_in must be a whole number"),
    ],
)
def test_settings_that_cannot_be(method, settings, message):
    with pytest.raises(ValueError, match=message):
        method(watched(), (X, Y), progress=False, **settings)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
        self.b.weight = self.a.weight


def twice() -> nn.Module:
    layer = nn.Linear(2, 2)
    return nn.Sequential(layer, nn.ReLU(), layer)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.ReLU(), "ReLU has no parameters"),
        (Tied(), "a.weight and b.weight are one shared parameter"),
        (twice(), "0.weight and 2.weight are one shared parameter"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1).double()), "must share one floating-point dtype"),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)), r"1 \(Dropout\) has active dropout"),
        (nn.MultiheadAttention(4, 2, dropout=0.1), "active dropout"),
        (nn.GRU(2, 2, num_layers=2, dropout=0.1), "active dropout"),
        (nn.Sequential(nn.Linear(2, 2), nn.RReLU()), "active dropout"),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), r"1 \(BatchNorm1d\) is BatchNorm in training mode"),
    ],
)
def test_networks_that_are_no_density_over_w(net, message):
    with pytest.raises(ValueError, match=message):
        Model(net, Gaussian(scale=0.1))
    if "training" in message or "dropout" in message:
        assert Model(net.eval(), Gaussian(scale=0.1)).size > 0


def test_models_of_the_wrong_kind():
    with pytest.raises(TypeError, match=r"net must be an nn\.Module, got function"):
        Model(lambda x: x, Gaussian(scale=0.1))
    with pytest.raises(TypeError, match="likelihood must be one of bnnlib"):
        Model(nn.Linear(1, 1), Categorical)
    with pytest.raises(ValueError, match="the network must map"):
        mean_field(Model(nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)), Gaussian(scale=0.1)), (X, Y), progress=False)


def posterior() -> Posterior:
    model = Model(nn.Linear(2, 1), Gaussian(scale=0.1))
    q = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(3), torch.ones(3)), 1)
    return Posterior(model, q, "test")


def test_predictions_that_cannot_be():
    q = posterior()
    for draws in (0, -1, 2.5, True):
        for ask in (
            lambda n: q.predict(X, draws=n),
            lambda n: q.moments(X, draws=n),
            q.sample,
            lambda n: q.functions(X, n),
        ):
            with pytest.raises(ValueError, match="draws must be a whole number, at least 1"):
                ask(draws)
    for x, message in [(spoilt(math.nan), "x has NaN or infinite values"), (X.double(), "x is torch.float64")]:
        with pytest.raises(ValueError, match=message):
            q.predict(x)


def test_files_that_are_no_posterior(tmp_path):
    model = posterior().model
    (tmp_path / "text").write_text("not a posterior")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other")
    torch.save(nn.Linear(2, 1), tmp_path / "module")
    for name in ("text", "other", "module"):
        with pytest.raises(ValueError, match=f"{name} is not a saved posterior"):
            Posterior.load(tmp_path / name, model)
    with pytest.raises(FileNotFoundError):
        Posterior.load(tmp_path / "nothing", model)


# units -----------------------------------------------------------------------------------------------


def warned(model: Model, data, method=mean_field) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        method(model, data, progress=False, **SETTINGS[method])
    return [str(w.message) for w in caught]


def plain(prior=None, likelihood=None) -> Model:
    return Model(nn.Linear(2, 1), likelihood or Gaussian(scale=1.0), prior)


@pytest.mark.parametrize("method", METHODS)
def test_data_far_from_unit_scale_warn_once_and_say_what_to_do(method):
    (message,) = warned(plain(), (100 * X, Y), method)
    assert re.match(r"x has root mean square 91\.5; the default priors are made for data of about unit scale", message)
    assert "Standardized(x, y)" in message
    (message,) = warned(plain(), (X, 1e-3 * Y), method)
    assert message.startswith("y has root mean square 0.00")
    (message,) = warned(plain(), (X + 50, Y + 50), method)
    assert message.startswith("x has root mean square 49.9, y has root mean square 50")


@pytest.mark.parametrize("method", METHODS)
def test_there_is_no_warning_where_there_is_no_reason(method):
    """Unit scale, standardised data, or a prior that the reader has thought about."""
    assert warned(plain(), (X, Y), method) == []
    assert warned(plain(), Standardized(100 * X, 1e-3 * Y), method) == []
    assert warned(plain(prior=0.01), (100 * X, Y), method) == []
    assert warned(plain(likelihood=Bernoulli()), Standardized(100 * X, (Y > 0).long()), method) == []
