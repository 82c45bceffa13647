"""The normal distribution and noise models (chapter two).

`loc` is the mean and `scale` the standard deviation, as in torch. A variance is always called `var` or `cov`.
Functions take and give torch distributions: `Normal` for one number, `MultivariateNormal` for a vector.
"""

from bnnlib.normal.algebra import affine, conditional, product
from bnnlib.normal.density import entropy, kl, log_density, max_entropy_table
from bnnlib.normal.noise import noise_precision, noise_predictive
from bnnlib.normal.scales import positive, positive_inverse
from bnnlib.normal.wide import wide_net_kernel

__all__ = [
    "affine",
    "conditional",
    "entropy",
    "kl",
    "log_density",
    "max_entropy_table",
    "noise_precision",
    "noise_predictive",
    "positive",
    "positive_inverse",
    "product",
    "wide_net_kernel",
]
