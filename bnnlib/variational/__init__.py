"""Variational inference: a posterior that cannot be computed, replaced by the nearest member of a family.

log p(x) = ELBO(q) + KL(q || p(z | x)), so raising the bound lowers the distance.
"""

from bnnlib.variational.cavi_mixture import CaviMixture, MixtureBelief, cavi_mixture
from bnnlib.variational.cavi_normal import CaviNormal, CaviNormalGamma, cavi_normal, cavi_normal_gamma
from bnnlib.variational.divergence import Estimate, kl
from bnnlib.variational.elbo import elbo
from bnnlib.variational.evidence import Evidence, importance_evidence
from bnnlib.variational.families import Family, FullRank, LowRank, MeanField
from bnnlib.variational.fit import Fit, fit
from bnnlib.variational.flow import Flow
from bnnlib.variational.forward import fit_forward_kl
from bnnlib.variational.gradients import GradientVariance, gradient_variance
from bnnlib.variational.vae import VAE

__all__ = [
    "VAE",
    "CaviMixture",
    "CaviNormal",
    "CaviNormalGamma",
    "Estimate",
    "Evidence",
    "Family",
    "Fit",
    "Flow",
    "FullRank",
    "GradientVariance",
    "LowRank",
    "MeanField",
    "MixtureBelief",
    "cavi_mixture",
    "cavi_normal",
    "cavi_normal_gamma",
    "elbo",
    "fit",
    "fit_forward_kl",
    "gradient_variance",
    "importance_evidence",
    "kl",
]
