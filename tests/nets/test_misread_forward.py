"""The boxes of the chapter on noise in a network: forward passes as they are often written."""

import ast
import io
import tokenize
from functools import partial

import pytest
import torch
from pyro import distributions as dist
from pyro import plate, sample
from pyro.poutine import condition, trace
from torch import nn
from torch.distributions import HalfNormal

from bnnlib.bayes import normal_normal
from bnnlib.nets import Gaussian, Model

MANGLED = "x = self.act(x)  # hidden --> hiddenx = self.dropout(x)\n"
WHOLE = "x = self.act(x)  # hidden --> hidden\nx = self.dropout(x)\n"


def calls(source):
    """Names that the code calls, comments apart."""
    return {node.func.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)}


@pytest.mark.misreading("S1.2")
def test_a_lost_line_break_puts_a_call_into_a_comment():
    assert calls(WHOLE) == {"act", "dropout"}
    assert calls(MANGLED) == {"act"}
    comments = [t.string for t in tokenize.generate_tokens(io.StringIO(MANGLED).readline) if t.type == tokenize.COMMENT]
    assert "dropout" in comments[0]


@pytest.mark.misreading("S1.2")
def test_lines_run_together_do_not_parse():
    loop = "for step in range(10):\n    optimizer.step()\n"
    ast.parse(loop)
    with pytest.raises(SyntaxError):
        ast.parse(loop.replace("\n", " ") + "for")


@pytest.mark.misreading("S1.3")
def test_one_row_is_another_data_set():
    """Right only for a batch of one, which is how it passes unseen."""
    net, x = nn.Linear(4, 1), torch.randn(32, 4)
    assert x.reshape(1, -1).shape == (1, 128)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        net(x.reshape(1, -1))
    assert torch.equal(x[:1].reshape(1, -1), x[:1])
    assert net(x).shape == (32, 1)


def curvature(observe):
    def log_density(m):
        return trace(condition(observe, data={"m": m})).get_trace().log_prob_sum()

    return -torch.autograd.functional.hessian(log_density, torch.tensor(0.2)).item()


@pytest.mark.misreading("S1.4")
def test_a_plate_of_the_batch_size_forgets_the_rest_of_the_data():
    """Source: the conjugate update, whose precision is 1 + N."""
    y = torch.randn(320)

    def fixed():
        m = sample("m", dist.Normal(0.0, 1.0))
        with plate("data", 32):
            sample("y", dist.Normal(m, 1.0), obs=y[:32])

    def scaled():
        m = sample("m", dist.Normal(0.0, 1.0))
        with plate("data", 320, subsample_size=32) as i:
            sample("y", dist.Normal(m, 1.0), obs=y[i])

    exact = normal_normal(torch.distributions.Normal(0.0, 1.0), y, scale=1.0).scale.item() ** -2
    assert curvature(scaled) == pytest.approx(exact, rel=1e-4)
    assert (exact / curvature(fixed)) ** 0.5 == pytest.approx((321 / 33) ** 0.5, rel=1e-4)


@pytest.mark.misreading("S1.4")
def test_a_plate_of_the_batch_size_cannot_predict():
    def fixed(x):
        with plate("data", 32):
            return sample("y", dist.Normal(x, 1.0))

    assert fixed(torch.zeros(32)).shape == (32,)
    with pytest.raises(ValueError, match="Shape mismatch"):
        trace(fixed).get_trace(torch.zeros(7)).compute_log_prob()


def bends(net):
    """Second derivative of the log joint along a line through w, at nine places."""
    model = Model(net.double(), Gaussian(scale=0.4))
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-1, 1, 40, dtype=torch.float64).unsqueeze(-1)
    y = x.sin() + 0.4 * torch.randn(40, 1, generator=generator, dtype=torch.float64)
    here, way = model.sample_prior(2, generator)
    along = partial(torch.autograd.functional.hessian, lambda t: model.log_joint(here + t * way, x, y))
    return torch.stack([along(t) for t in torch.linspace(-2, 2, 9, dtype=torch.float64)])


@pytest.mark.misreading("S1.19")
def test_normal_noise_gives_a_normal_posterior_only_for_a_linear_model():
    torch.manual_seed(0)
    straight = bends(nn.Linear(1, 1))
    curved = bends(nn.Sequential(nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, 1)))
    torch.testing.assert_close(straight, straight[:1].expand(9), rtol=1e-9, atol=0)
    assert curved.max() - curved.min() > 0.5 * curved.abs().max()


@pytest.mark.misreading("S1.20")
def test_active_dropout_is_noise_that_the_density_does_not_count():
    net = nn.Sequential(nn.Linear(1, 10), nn.Tanh(), nn.Dropout(0.5), nn.Linear(10, 1))
    x = torch.ones(5, 1)
    torch.manual_seed(0)
    assert not torch.equal(net(x), net(x))
    with pytest.raises(ValueError, match="active dropout"):
        Model(net, Gaussian(scale=HalfNormal(1.0)))
    model = Model(net.eval(), Gaussian(scale=HalfNormal(1.0)))
    w = model.start()
    assert torch.equal(model.log_joint(w, x, x), model.log_joint(w, x, x))
