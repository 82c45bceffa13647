"""The Bayesian teacher: a student that can represent the teacher's moments learns them exactly."""

from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.distributions import Dirichlet, HalfNormal, Independent, Normal, kl_divergence
from torch.utils.data import DataLoader, TensorDataset

from bnnlib.data import Standardized
from bnnlib.nets import Bernoulli, Categorical, Gaussian, Model, Posterior, StudentT, distill, laplace
from bnnlib.nets.distill import Distilled, _divergences, _doubt

# One-hot inputs: a linear student has numbers of its own for each of them, and can be exact.
TABLE = torch.eye(6, dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal_posterior(likelihood, outputs, bias=True):
    net = nn.Linear(6, outputs, bias=bias).double()
    model = Model(net, likelihood)
    loc = torch.randn(model.size, generator=seeded(1), dtype=torch.float64)
    scale = 0.2 + torch.rand(model.size, generator=seeded(2), dtype=torch.float64)
    return Posterior(model, Independent(Normal(loc, scale), 1), "by hand")


def test_a_student_that_can_be_exact_learns_the_three_moments():
    """Source: the linear model's closed form, mean W x and variance sum of the weights' variances."""
    teacher = normal_posterior(Gaussian(scale=0.3), 1, bias=False)
    student = distill(
        teacher, TABLE, nn.Linear(6, 3).double(), steps=4000, lr=0.05, draws=2000, generator=seeded(), progress=False
    )
    told, moments = student.predict(TABLE), teacher.moments(TABLE, draws=2000, generator=seeded())
    torch.testing.assert_close(told.mean, moments.mean, rtol=0, atol=1e-4)
    torch.testing.assert_close(told.epistemic, moments.epistemic, rtol=1e-4, atol=0)
    torch.testing.assert_close(told.aleatoric, moments.aleatoric, rtol=1e-4, atol=0)
    lower, upper = told.interval(0.95)
    torch.testing.assert_close((upper - lower) / 2, 1.959964 * told.total, rtol=1e-5, atol=0)
    q = teacher.distribution
    assert ((told.mean[:, 0] - q.mean) / (q.stddev / 2000**0.5)).abs().max() < 5
    assert student.history["loss"][-1] < 1e-8


def test_a_student_of_classes_learns_mean_and_total_variance():
    teacher = normal_posterior(Categorical(), 3)
    student = distill(
        teacher, TABLE, nn.Linear(6, 4).double(), steps=4000, lr=0.05, draws=500, generator=seeded(), progress=False
    )
    predictive = teacher.predict(TABLE, draws=500, generator=seeded())
    dirichlet = student.dirichlet(TABLE)
    torch.testing.assert_close(dirichlet.mean, predictive.probs, rtol=0, atol=1e-4)
    wanted = predictive.epistemic_var.sum(-1)
    torch.testing.assert_close(dirichlet.variance.sum(-1), wanted, rtol=1e-3, atol=0)
    drawn = student.predict(TABLE, draws=4000, generator=seeded(3))
    torch.testing.assert_close(drawn.probs, dirichlet.mean, rtol=0, atol=5 * 0.5 / 4000**0.5)


def test_the_loss_is_the_two_divergences():
    """Source: torch's own KL of normals and of categorical distributions, and its Dirichlet's variance."""
    f, mean = torch.randn(5, 3).double(), torch.randn(5, 1).double()
    epistemic, aleatoric = torch.rand(2, 5, 1).double() + 0.1
    prediction, spread = _divergences(f, (mean, epistemic, aleatoric), classes=False)
    own = [f[:, :1], nn.functional.softplus(f[:, 1:2]) + 1e-4, nn.functional.softplus(f[:, 2:]) + 1e-4]
    first = kl_divergence(
        Normal(mean, (epistemic**2 + aleatoric**2).sqrt()), Normal(own[0], (own[1] ** 2 + own[2] ** 2).sqrt())
    )
    torch.testing.assert_close(prediction, first[:, 0], rtol=1e-10, atol=1e-12)
    second = kl_divergence(Normal(0.0, epistemic), Normal(0.0, own[1]))
    torch.testing.assert_close(spread, second[:, 0], rtol=1e-10, atol=1e-12)
    p, share = torch.randn(5, 2).double().softmax(-1), torch.rand(5).double()
    prediction, spread = _divergences(f, (p, share), classes=True)
    q = torch.distributions.Categorical(logits=f[:, :2])
    torch.testing.assert_close(prediction, kl_divergence(torch.distributions.Categorical(probs=p), q))
    own = Dirichlet(q.probs * f[:, 2:].exp()).variance.sum(-1) / (q.probs * (1 - q.probs)).sum(-1)
    torch.testing.assert_close(spread, kl_divergence(Normal(0.0, share.sqrt()), Normal(0.0, own.sqrt())))


class Surer(nn.Module):
    """Surer of class 0 than its teacher, whatever it is taught; only its precision can learn."""

    def __init__(self):
        super().__init__()
        self.log_precision = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        logits = torch.tensor([9.0, 0.0, 0.0], dtype=torch.float64).expand(len(x), 3)
        return torch.cat([logits, self.log_precision.expand(len(x), 1)], -1)


def test_a_student_surer_than_its_teacher_keeps_the_precision():
    """Source: the teacher's precision, sum p (1 - p) / sum Var[p] - 1. Its variance is out of the student's reach."""
    teacher, x = normal_posterior(Categorical(), 3), TABLE[:1]
    said = teacher.predict(x, draws=500, generator=seeded())
    var, room = said.epistemic_var.sum(), (said.probs * (1 - said.probs)).sum()
    p = torch.tensor([9.0, 0.0, 0.0]).softmax(-1)
    assert (p * (1 - p)).sum() < 0.1 * var
    student = distill(teacher, x, Surer(), steps=1000, lr=0.05, draws=500, generator=seeded(), progress=False)
    torch.testing.assert_close(student.dirichlet(x).concentration.sum(), room / var - 1, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_doubt_left_by_a_sure_teacher_is_not_rounded_away(dtype):
    """Source: exact fractions. 1 - sum p^2 in float32 gives 0 or 1.2e-7 for the second."""
    rows = [[0.5, 0.3, 0.2], [1 - 3e-9, 1e-9, 2e-9], [1.0, 0.0, 0.0]]
    exact = [0.62, float(2 * Fraction("3e-9") - Fraction("9e-18") - Fraction("5e-18")), 0.0]
    found = _doubt(torch.tensor(rows, dtype=dtype))
    torch.testing.assert_close(found, torch.tensor(exact, dtype=dtype), rtol=1e-6, atol=1e-30)


@pytest.mark.slow
def test_units_are_those_of_the_data():
    x = torch.linspace(100, 300, 60, dtype=torch.float64).unsqueeze(-1)
    y = 5000 + 7 * x + 50 * torch.randn(60, 1, generator=seeded(), dtype=torch.float64)
    model = Model(nn.Linear(1, 1).double(), Gaussian(scale=HalfNormal(1.0)))
    teacher = laplace(model, Standardized(x, y), progress=False)
    net = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 3)).double()
    student = distill(teacher, x, net, steps=3000, generator=seeded(), progress=False)
    told, exact = student.predict(x), teacher.predict(x)
    assert ((told.mean - exact.mean).abs() < 0.1 * exact.total).all()
    torch.testing.assert_close(told.total, exact.total, rtol=0.05, atol=0)
    assert student.lost(teacher, x)["prediction"] < 0.01


def test_a_heavy_tailed_teacher_hands_over_its_variance():
    teacher = normal_posterior(StudentT(5, scale=0.3), 1)
    student = distill(teacher, TABLE, nn.Linear(6, 3).double(), steps=3000, lr=0.05, generator=seeded(), progress=False)
    wanted = torch.full((6, 1), 0.3 * (5 / 3) ** 0.5, dtype=torch.float64)
    torch.testing.assert_close(student.predict(TABLE).aleatoric, wanted, rtol=1e-3, atol=0)


def test_a_loader_gives_inputs_with_or_without_targets():
    teacher, net = normal_posterior(Gaussian(scale=0.3), 1), nn.Linear(6, 3).double()
    settings = {"steps": 20, "progress": False, "draws": 10}
    alone = distill(teacher, TABLE, net, generator=seeded(), **settings)
    loader = DataLoader(TensorDataset(TABLE, TABLE[:, :1]), batch_size=4)
    pairs = distill(teacher, loader, net, generator=seeded(), **settings)
    assert torch.equal(alone.predict(TABLE).mean, pairs.predict(TABLE).mean)


def test_the_student_is_copied_and_the_global_generator_left_alone():
    teacher, net = normal_posterior(Categorical(), 3), nn.Linear(6, 4).double()
    before, state = net.weight.clone(), torch.get_rng_state()
    student = distill(teacher, TABLE, net, steps=20, generator=seeded(), progress=False)
    student.predict(TABLE, generator=seeded())
    assert torch.equal(net.weight, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not student.net.training
    assert "classes" in repr(student)


@pytest.mark.parametrize(
    ("likelihood", "outputs", "student", "message"),
    [
        (Gaussian(scale=0.3), 1, nn.Linear(6, 2), r"expected \(2, 3\)"),
        (Categorical(), 3, nn.Linear(6, 3), "logits and a log precision"),
    ],
)
def test_a_student_of_the_wrong_size_is_told_so(likelihood, outputs, student, message):
    teacher = normal_posterior(likelihood, outputs)
    with pytest.raises(ValueError, match=message):
        distill(teacher, TABLE, student.double(), progress=False)


def test_other_bad_input():
    teacher, student = normal_posterior(Gaussian(scale=0.3), 1), nn.Linear(6, 3).double()
    with pytest.raises(TypeError, match="tensor of inputs or a DataLoader"):
        distill(teacher, [1.0], student, progress=False)
    with pytest.raises(ValueError, match="steps"):
        distill(teacher, TABLE, student, steps=0, progress=False)
    with pytest.raises(TypeError, match="yes-or-no"):
        distill(normal_posterior(Bernoulli(), 1), TABLE, student, progress=False)
    with pytest.raises(TypeError, match="for classes"):
        distill(teacher, TABLE, student, steps=1, progress=False).dirichlet(TABLE)


def test_a_diverging_run_names_its_step():
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.calls = nn.Linear(6, 3).double(), 0

        def forward(self, x):
            self.calls += 1
            return self.inner(x) * (float("nan") if self.calls == 5 else 1.0)

    with pytest.raises(FloatingPointError, match="step 3"):
        distill(normal_posterior(Gaussian(scale=0.3), 1), TABLE, Breaks(), steps=50, progress=False)


class Says(nn.Module):
    def __init__(self, log_precision):
        super().__init__()
        self.f = [*torch.tensor([0.5, 0.3, 0.2]).log().tolist(), log_precision]

    def forward(self, x):
        return torch.tensor(self.f).expand(len(x), 4)


@pytest.mark.parametrize("log_precision", [-14.0, -6.0, -3.0, 0.0, 3.0])
def test_draws_are_right_at_every_precision(log_precision):
    """Source: the Dirichlet's moments, and its mutual information by the digamma function."""
    student, x = Distilled(Says(log_precision), True), torch.zeros(1, 1)
    told = student.predict(x, draws=40_000, generator=torch.Generator().manual_seed(0))
    p, size = torch.tensor([0.5, 0.3, 0.2]), torch.tensor(log_precision).exp()
    assert (told.probs[0] - p).abs().max() < 5 * 0.5 / 40_000**0.5
    torch.testing.assert_close(told.epistemic_var[0], p * (1 - p) / (size + 1), rtol=0, atol=5 * 0.5 / 40_000**0.5)
    noise = torch.digamma(size + 1) - (p * torch.digamma(p * size + 1)).sum()
    wanted = -(p * p.log()).sum() - noise
    assert abs(told.mutual_information[0] - wanted) < 5 * 0.5 / 40_000**0.5
