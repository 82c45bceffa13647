"""Every method on every device of this machine, in both precisions: it ends there, and says what the CPU would say.

Where there is no accelerator the CPU is the only device, and the tests say so by running once a precision.
"""

import pytest
import scipy.stats
import torch
from torch import nn
from torch.distributions import Gamma, HalfCauchy, HalfNormal

from bnnlib._random import standard_normal
from bnnlib.data import Standardized, quintic
from bnnlib.nets import (
    Gaussian,
    Model,
    Posterior,
    dropout,
    ensemble,
    full_rank,
    hmc,
    ivon,
    laplace,
    low_rank,
    map_estimate,
    mean_field,
    sghmc,
    sgld,
    swag,
)

DEVICES = ["cpu"]
DEVICES += ["cuda"] if torch.cuda.is_available() else []
DTYPES = [torch.float32, torch.float64]
STEPS = {"steps": 20}
CHAIN = {"draws": 4, "warmup": 4, "chains": 2}
CALLS = {
    "map_estimate": (map_estimate, STEPS),
    "mean_field": (mean_field, STEPS),
    "mean_field, local": (mean_field, {**STEPS, "estimator": "local"}),
    "mean_field, flipout": (mean_field, {**STEPS, "estimator": "flipout"}),
    "full_rank": (full_rank, STEPS),
    "low_rank": (low_rank, {**STEPS, "rank": 2}),
    "ivon": (ivon, STEPS),
    "laplace": (laplace, STEPS),
    "laplace, kronecker": (laplace, {**STEPS, "structure": "kronecker"}),
    "laplace, diagonal": (laplace, {**STEPS, "structure": "diagonal"}),
    "laplace, last layer": (laplace, {**STEPS, "structure": "last_layer"}),
    "swag": (swag, {"steps": 20, "iterates": 4, "rank": 2}),
    "dropout": (dropout, STEPS),
    "ensemble": (ensemble, {**STEPS, "members": 2}),
    "ensemble of laplace": (ensemble, {"members": 2, "method": laplace, "settings": STEPS}),
    "hmc": (hmc, {**CHAIN, "leapfrog_steps": 3}),
    "sgld": (sgld, CHAIN),
    "sghmc": (sghmc, {"draws": 4, "warmup": 4, "chains": 2, "cycles": 1, "cycle_steps": 8}),
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fit(name: str, lives: str, dtype: torch.dtype, **where: str) -> Posterior:
    """The data and the generator are on the CPU, as they are in practice."""
    method, settings = CALLS[name]
    torch.manual_seed(0)
    middle = [nn.Dropout(0.1)] if method is dropout else []
    net = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), *middle, nn.Linear(5, 1)).to(lives, dtype).eval()
    data = quintic(40, generator=seeded(1))
    if method not in (map_estimate, laplace):
        settings = {**settings, "generator": seeded(0)}
    return method(
        Model(net, Gaussian(scale=HalfNormal(1.0))),
        Standardized(data.x.to(dtype), data.y.to(dtype)),
        progress=False,
        **settings,
        **where,
    )


def held(posterior: Posterior, device: str, dtype: torch.dtype) -> None:
    x = torch.linspace(-2, 2, 7, dtype=dtype, device=device).unsqueeze(-1)
    predictive = posterior.predict(x, draws=20, generator=seeded(2))
    drawn = predictive.sample(3, generator=seeded(3))
    through = posterior.model(posterior.sample(3, seeded(4)), x)
    for part in (predictive.mean, predictive.total, drawn, through):
        assert (part.device.type, part.dtype) == (device, dtype)
        assert torch.isfinite(part).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CALLS)
def test_a_posterior_is_where_its_model_is(name, device, dtype):
    held(fit(name, device, dtype), device, dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CALLS)
def test_trained_elsewhere_it_comes_home(name, device):
    """And it is what training at home gives: the numbers of a CPU generator do not depend on where they are used."""
    elsewhere, home = fit(name, "cpu", torch.float64, device=device), fit(name, "cpu", torch.float64)
    held(elsewhere, "cpu", torch.float64)
    torch.testing.assert_close(elsewhere.mean, home.mean, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_a_posterior_of_one_device_is_read_on_another(device, tmp_path):
    posterior = fit("mean_field", device, torch.float32)
    posterior.save(tmp_path / "q.pt")
    again = Posterior.load(tmp_path / "q.pt", posterior.model.to("cpu"))
    held(again, "cpu", torch.float32)
    torch.testing.assert_close(again.sample(5, seeded(4)), posterior.sample(5, seeded(4)).cpu(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("prior", "law"),
    [
        (Gamma(2.0, 3.0), scipy.stats.gamma(2, scale=1 / 3)),
        (HalfCauchy(1.0), scipy.stats.halfcauchy()),
        (HalfNormal(torch.ones(1)), scipy.stats.halfnorm()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_prior_in_single_precision_is_computed_in_the_models(prior, law):
    """Source: scipy, times the Jacobian of exp."""
    u = torch.tensor([[0.3], [-1.2]], dtype=torch.float64)
    found = Gaussian(scale=prior).unknown_log_prior(u)
    torch.testing.assert_close(found, torch.as_tensor(law.logpdf(u.exp()) + u.numpy())[:, 0], rtol=1e-13, atol=0)


def test_a_cpu_generator_serves_tensors_anywhere():
    """`meta` stands for a device that the generator is not on: its tensors have no values, but a place."""
    like = torch.empty(2, device="meta")
    assert standard_normal((3, 2), like, seeded(0)).device.type == "meta"
