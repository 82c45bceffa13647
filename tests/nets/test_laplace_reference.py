"""laplace's structures against numbers that laplace-torch 0.3 gives for the same weights, prior and data.

There each was `Laplace(net, "classification", subset_of_weights=..., hessian_structure=..., prior_precision=1.0)`, its
`log_marginal_likelihood()` and the diagonal of the covariance of `_glm_predictive_distribution(new)`. The layers have
no biases: laplace-torch gives a bias a Kronecker block of its own, here it shares one with its weights.
"""

import pytest
import torch
from torch import nn

from bnnlib.nets import Categorical, Model, laplace
from bnnlib.nets.linearized import linearized_functions

F64 = torch.float64
PACKAGE = {
    "diagonal": (-21.700052517008785, [5.8249774997458745, 6.004785138142648, 5.179033167605132]),
    "kronecker": (-20.676649835607257, [5.562338620150871, 6.160741652473275, 5.132979613914733]),
}


@pytest.mark.parametrize("structure", PACKAGE)
def test_it_is_what_the_package_says(structure):
    """Source: the package's printed numbers. The root of the function's covariance comes from unit noise."""
    net = nn.Sequential(nn.Linear(2, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False)).double()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(torch.sin(1.7 * torch.arange(p.numel(), dtype=F64) + i).reshape(p.shape))
    x = torch.cos(2.3 * torch.arange(24, dtype=F64)).reshape(12, 2)
    model, new = Model(net, Categorical(), 1.0), torch.tensor([[2.0, -1.0]], dtype=F64)
    posterior = laplace(model, (x, torch.arange(12) % 3), structure=structure, steps=0, evidence=False, progress=False)
    evidence, variances = PACKAGE[structure]
    assert posterior.diagnostics["log_evidence"] == pytest.approx(evidence, rel=1e-12)
    q = posterior.distribution
    eye = torch.eye(model.size, dtype=F64)
    rooted = q.mean + eye * q.base_dist.scale if structure == "diagonal" else q.from_noise(eye)
    around = linearized_functions(model, q, new, rooted) - model(q.mean, new)
    torch.testing.assert_close(around[:, 0].square().sum(0), torch.tensor(variances, dtype=F64), rtol=1e-10, atol=0)
