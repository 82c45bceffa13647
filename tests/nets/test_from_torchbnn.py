"""A torchbnn network read as a posterior: the same law of the weights, the same function."""

import pytest
import torch
import torchbnn
from torch import Tensor, nn
from torch.distributions import HalfNormal, Independent, Normal, kl_divergence

from bnnlib.nets import Categorical, Gaussian, Posterior, from_torchbnn

NOISE = Gaussian(scale=0.1)


def shaken(net: nn.Module) -> nn.Module:
    """Means and scales off their starting values, so that a mix-up shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return net


def dense() -> nn.Module:
    return shaken(
        nn.Sequential(
            torchbnn.BayesLinear(0.1, 0.3, 3, 5), nn.Tanh(), torchbnn.BayesLinear(-0.2, 2.0, 5, 2, bias=False)
        )
    )


def mixed() -> nn.Module:
    conv = torchbnn.BayesConv2d(0, 0.1, 2, 4, 3, stride=2, padding=1, groups=2)
    layers = [conv, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4), torchbnn.BayesLinear(0, 1, 4, 2)]
    return shaken(nn.Sequential(*layers)).eval()


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.7))
        self.inner = nn.ModuleDict({"a": nn.Sequential(torchbnn.BayesLinear(0, 0.5, 3, 3))})
        self.head = torchbnn.BayesConv2d(0, 0.1, 1, 2, (1, 3), dilation=1, bias=False, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * self.head(self.inner["a"](x)[:, None, None, :]).flatten(1)


def single() -> nn.Module:
    return shaken(torchbnn.BayesLinear(0, 0.5, 3, 2))


CASES = [(dense, (6, 3)), (mixed, (6, 2, 5, 5)), (lambda: shaken(Nested()), (6, 3)), (single, (6, 3))]


def draw_of(net: nn.Module) -> Tensor:
    """The weights that a frozen torchbnn net computes with, in the order of its layers."""
    parts = []
    for m in net.modules():
        if isinstance(m, torchbnn.BayesLinear | torchbnn.BayesConv2d):
            parts.append(m.weight_mu + m.weight_log_sigma.exp() * m.weight_eps)
            if m.bias:
                parts.append(m.bias_mu + m.bias_log_sigma.exp() * m.bias_eps)
    return torch.cat([p.detach().reshape(-1) for p in parts])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("net", "shape"), CASES)
def test_for_equal_noise_the_forward_pass_is_equal(net, shape, dtype):
    """torchbnn's own forward pass with its noise frozen; both nets are left as they were."""
    theirs = net().to(dtype)
    before = {k: v.clone() for k, v in theirs.state_dict().items()}
    q = from_torchbnn(theirs, NOISE)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    torchbnn.utils.freeze(theirs)
    tight = 1e-5 if dtype == torch.float32 else 1e-12
    with torch.no_grad():
        torch.testing.assert_close(q.model(draw_of(theirs), x), theirs(x), rtol=tight, atol=tight)
    assert (q.model.dtype, q.mean.dtype) == (dtype, dtype)
    torchbnn.utils.unfreeze(theirs)
    assert all(torch.equal(v, before[k]) for k, v in theirs.state_dict().items())


@pytest.mark.parametrize(("net", "shape"), CASES)
def test_the_kl_is_torchs_and_torchbnns(net, shape):
    """torch.distributions.kl_divergence to the read prior, and BKLLoss with its sum, which knows nothing of it."""
    theirs = net().double()
    q = from_torchbnn(theirs, NOISE)
    prior = Independent(Normal(q.model.prior.loc, q.model.prior.scale), 1)
    ours = kl_divergence(q.distribution, prior).item()
    assert ours == pytest.approx(torchbnn.BKLLoss(reduction="sum")(theirs).item(), rel=1e-6)
    assert ours > 0.1


def test_the_model_starts_at_the_means_and_reading_draws_nothing():
    theirs = dense()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    q = from_torchbnn(theirs, NOISE)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(q.model.start(), q.mean)
    assert torch.equal(q.mean[:15].reshape(5, 3), theirs[0].weight_mu)
    assert torch.equal(q.distribution.stddev[20:].reshape(2, 5), theirs[2].weight_log_sigma.exp())
    scale = q.model.prior.scale
    torch.testing.assert_close(scale, torch.tensor([0.3] * 20 + [2.0] * 10, dtype=torch.float64), rtol=1e-12, atol=0)
    assert q.method == "torchbnn"


def test_the_mean_of_many_torchbnn_passes_is_the_predictive_mean():
    """Within five standard errors of both; ordinary layers keep their trained values."""
    theirs, x = mixed(), torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(2))
    q = from_torchbnn(theirs, NOISE)
    assert q.model.size == sum(m.numel() for k, m in theirs.named_parameters() if k.endswith("_mu"))
    torch.manual_seed(0)
    with torch.no_grad():
        passes = torch.stack([theirs(x) for _ in range(1500)])
    p = q.predict(x, draws=1500, generator=torch.Generator().manual_seed(0))
    error = (passes.var(0) / 1500 + p.mc_error**2).sqrt()
    assert bool(((passes.mean(0) - p.mean).abs() < 5 * error).all())
    torch.testing.assert_close(passes.std(0), p.epistemic, rtol=0.15, atol=0)


def test_a_read_posterior_is_saved_and_loaded(tmp_path):
    q = from_torchbnn(dense(), Categorical())
    q.save(tmp_path / "read.pt")
    again = Posterior.load(tmp_path / "read.pt", q.model)
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    assert torch.equal(again.sample(3, generators[0]), q.sample(3, generators[1]))


def test_networks_that_cannot_be_read_are_refused():
    layer = torchbnn.BayesLinear(0, 1, 3, 3)
    for net, message in [
        (nn.Sequential(nn.Linear(3, 2)), "Sequential has no torchbnn layer; wrap an ordinary network"),
        (nn.Sequential(layer, nn.ReLU(), layer), "0 and 2 are one shared layer"),
        (
            nn.Sequential(torchbnn.BayesConv2d(0, 1, 1, 1, 3), torchbnn.BayesBatchNorm2d(0, 1, 1)),
            "1 is a BayesBatchNorm2d",
        ),
        (torchbnn.BayesConv2d(0, 1, 1, 1, 3, padding=1, padding_mode="circular"), "pads circularly"),
        (nn.Sequential(torchbnn.BayesLinear(0, 1, 3, 3), nn.BatchNorm1d(3)), "BatchNorm in training mode"),
    ]:
        with pytest.raises(ValueError, match=message):
            from_torchbnn(net, NOISE)
    with pytest.raises(ValueError, match="torchbnn learns no noise; give Gaussian a number, not a prior"):
        from_torchbnn(dense(), Gaussian(scale=HalfNormal(1.0)))
