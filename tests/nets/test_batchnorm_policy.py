"""BatchNorm in a Model: refused, frozen, read from a reference, or replaced; and never dependent on batch-mates."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader

from bnnlib.batchnorm import BatchNorm
from bnnlib.data import Standardized
from bnnlib.nets import Gaussian, Model, Posterior, laplace, mean_field
from bnnlib.nets.workspace import Workspace

F64 = torch.float64
LIKELIHOOD = Gaussian(scale=0.3)


def made(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def dense(norm=nn.BatchNorm1d) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), norm(8), nn.Tanh(), nn.Linear(8, 8), norm(8), nn.ReLU(), nn.Linear(8, 1))


def images() -> nn.Module:
    block = nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(block, nn.Conv2d(16, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 1))


NETS = [(dense, (3,)), (lambda: dense(BatchNorm), (3,)), (images, (2, 4, 4))]


def trained(build, shape, batches: int = 4) -> nn.Module:
    """In training mode, with statistics of a few batches and scales and shifts that are not one and zero."""
    torch.manual_seed(0)
    net = build().double()
    for name, p in net.named_parameters():
        if p.dim() == 1 and name.endswith("weight"):
            nn.init.uniform_(p, 0.5, 1.5)
    for b in range(batches):
        net(1 + 2 * made(b, 10, *shape))
    return net


def policies(shape) -> list[dict]:
    return [
        {"batchnorm": "frozen"},
        {"batchnorm": "reestimate", "reestimate_on": made(9, 12, *shape)},
        {"batchnorm": "group"},
    ]


@pytest.mark.parametrize(("build", "shape"), NETS)
def test_training_mode_is_refused_and_the_message_names_the_choices(build, shape):
    net = trained(build, shape)
    with pytest.raises(ValueError, match=r"batch-mates\. Choose: batchnorm=\"frozen\".*\"reestimate\".*\"group\""):
        Model(net, LIKELIHOOD)
    assert Model(net.eval(), LIKELIHOOD).net is net


def test_evaluation_mode_without_statistics_is_refused_too():
    """torch's BatchNorm without running statistics takes those of the batch, also in evaluation mode."""
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 1)).eval()
    with pytest.raises(ValueError, match=r"1 \(BatchNorm1d\) is BatchNorm without stored statistics"):
        Model(net, LIKELIHOOD)
    with pytest.raises(ValueError, match="nothing to freeze"):
        Model(net, LIKELIHOOD, batchnorm="frozen")
    Model(net, LIKELIHOOD, batchnorm="reestimate", reestimate_on=made(0, 5, 3).float())


@pytest.mark.parametrize(("build", "shape"), NETS)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_an_output_does_not_depend_on_its_batch_mates(build, shape, which):
    """Alone, among others, through functional_call, through the workspace: one number. The user's net is untouched."""
    net = trained(build, shape)
    before = copy.deepcopy(net.state_dict())
    model = Model(net, LIKELIHOOD, **policies(shape)[which])
    assert list(model.shapes) == [name for name, _ in net.named_parameters()]
    x, w = made(20, 7, *shape), model.start() + 0.3 * made(21, model.size)
    workspace, alone = Workspace(model), Workspace(model, gradient=True)
    workspace.w.copy_(w)
    alone.w.copy_(w)
    with torch.no_grad():
        together = model(w, x)
        for out in (
            torch.cat([model(w, row) for row in x.split(1)]),
            torch.cat([model(w, x[:3]), model(w, 100 * x[3:])])[:3],
            model(torch.stack([w, w]), x)[1],
            workspace(x),
            torch.cat([alone(row) for row in x.split(1)]),
        ):
            torch.testing.assert_close(out, together[: len(out)], rtol=1e-9, atol=1e-9)
    assert float((together - model(model.start(), x)).abs().max()) > 1e-3
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize(("build", "shape"), NETS)
def test_frozen_is_the_net_in_evaluation_mode(build, shape):
    net = trained(build, shape)
    model = Model(net, LIKELIHOOD, batchnorm="frozen")
    x = made(3, 5, *shape)
    with torch.no_grad():
        torch.testing.assert_close(model(model.start(), x), copy.deepcopy(net).eval()(x), rtol=0, atol=0)


def test_freezing_what_was_never_trained_is_refused():
    with pytest.raises(ValueError, match=r"1 \(BatchNorm1d\) has never seen a batch"):
        Model(dense(), LIKELIHOOD, batchnorm="frozen")


@pytest.mark.parametrize(("build", "shape"), NETS[::2])
def test_reestimated_is_torchs_update_bn_at_each_w(build, shape):
    """Independent source: write w into the net, let torch estimate the statistics on the reference, evaluate."""
    net, reference, x = trained(build, shape), 3 + made(9, 12, *shape), made(3, 5, *shape)
    model = Model(net, LIKELIHOOD, batchnorm="reestimate", reestimate_on=reference)
    for seed in range(3):
        w = model.start() + 0.5 * made(seed, model.size)
        nn.utils.vector_to_parameters(w, net.parameters())
        update_bn([reference], net)
        with torch.no_grad():
            torch.testing.assert_close(model(w, x), net.eval()(x), rtol=1e-9, atol=1e-9)


def test_the_gradient_passes_through_the_reestimated_statistics():
    """Finite differences; and the scale of a weight matrix before BatchNorm has no gradient at all."""
    model = Model(trained(dense, (3,)), LIKELIHOOD, batchnorm="reestimate", reestimate_on=made(9, 12, 3))
    x, y = made(3, 5, 3), made(4, 5, 1)
    w = model.start().requires_grad_()
    assert torch.autograd.gradcheck(lambda w: model.log_likelihood(w, x, y), (w,))
    (g,) = torch.autograd.grad(model.log_likelihood(w, x, y), w)
    first, slope = model.parameters_of(w.detach())["0.weight"], model.parameters_of(g)["0.weight"]
    assert abs(float((first * slope).sum())) < 1e-3 * float(first.norm() * slope.norm())
    workspace = Workspace(model, gradient=True)
    model.likelihood.log_prob(workspace(x), y, workspace.u).sum().backward()
    torch.testing.assert_close(workspace.grad, g, rtol=1e-9, atol=1e-9)


def test_group_is_layer_norm_where_the_width_has_no_sixteens():
    """torch's LayerNorm with the same scale and shift; GroupNorm in groups of 16 channels for images."""
    net = trained(dense, (3,))
    model = Model(net, LIKELIHOOD, batchnorm="group")
    layers = []
    for layer in copy.deepcopy(net):
        if isinstance(layer, nn.BatchNorm1d):
            norm = nn.LayerNorm(8)
            norm.weight, norm.bias = layer.weight, layer.bias
            layers.append(norm)
        else:
            layers.append(layer)
    x = made(3, 5, 3)
    torch.testing.assert_close(model(model.start(), x), nn.Sequential(*layers)(x), rtol=1e-9, atol=1e-9)
    wide = Model(nn.Sequential(nn.Conv2d(1, 48, 1), nn.BatchNorm2d(48)), LIKELIHOOD, batchnorm="group")
    assert wide.net[1].num_groups == 3


def test_a_net_that_is_one_batchnorm_has_every_policy():
    x = made(0, 6, 4)
    for policy in policies((4,)):
        net = nn.BatchNorm1d(4).double()
        net(1 + x)
        model = Model(net, LIKELIHOOD, **policy)
        torch.testing.assert_close(model(model.start(), x)[:2], model(model.start(), x[:2]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_inference_and_prediction_keep_the_policy(which, tmp_path):
    """Fit, predict one point alone and among others, save, load; another policy or other statistics do not fit it."""
    data = Standardized(made(0, 40, 3), made(1, 40, 1))
    policy = policies((3,))[which] | ({"reestimate_on": data.x} if which == 1 else {})
    net = trained(dense, (3,))
    model = Model(net, LIKELIHOOD, **policy)
    g = torch.Generator().manual_seed(0)
    loader = DataLoader(data, batch_size=8, shuffle=True, generator=g)
    for fit in (mean_field(model, loader, steps=20, generator=g), laplace(model, data, steps=5)):
        x = made(5, 6, 3)
        among = fit.predict(x, draws=20, generator=torch.Generator().manual_seed(1)).mean[:1]
        alone = fit.predict(x[:1], draws=20, generator=torch.Generator().manual_seed(1)).mean
        torch.testing.assert_close(alone, among, rtol=1e-6, atol=1e-8)
        fit.save(tmp_path / "posterior")
        Posterior.load(tmp_path / "posterior", Model(net, LIKELIHOOD, **policy))
        with pytest.raises(ValueError, match="made for another model"):
            Posterior.load(tmp_path / "posterior", Model(net, LIKELIHOOD, **policies((3,))[which - 1]))
        if which < 2:
            other = trained(dense, (3,), batches=5)
            changed = policy | ({"reestimate_on": data.x.flip(0)} if which == 1 else {})
            with pytest.raises(ValueError, match="its buffers is"):
                Posterior.load(tmp_path / "posterior", Model(other, LIKELIHOOD, **changed))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(self.norm(x)))


X = torch.randn(5, 3)


@pytest.mark.parametrize(
    ("net", "policy", "error", "message"),
    [
        (dense, {"batchnorm": "eval"}, ValueError, "batchnorm is None, 'frozen', 'reestimate', 'group'; got 'eval'"),
        (dense, {"batchnorm": "reestimate"}, ValueError, "reestimate_on go together"),
        (dense, {"batchnorm": "frozen", "reestimate_on": X}, ValueError, "reestimate_on go together"),
        (dense, {"batchnorm": "reestimate", "reestimate_on": [X]}, TypeError, "must be a tensor of inputs, got list"),
        (dense, {"batchnorm": "reestimate", "reestimate_on": X / 0}, ValueError, "reestimate_on has NaN or infinite"),
        (dense, {"batchnorm": "reestimate", "reestimate_on": X[:1]}, ValueError, "one value a feature"),
        (Twice, {"batchnorm": "reestimate", "reestimate_on": X}, ValueError, "used twice in the net"),
        (lambda: nn.BatchNorm1d(1), {"batchnorm": "group"}, ValueError, "the net has 1 feature: a group of one number"),
    ],
)
def test_bad_input(net, policy, error, message):
    with pytest.raises(error, match=message):
        Model(net(), LIKELIHOOD, **policy)
