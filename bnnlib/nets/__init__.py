"""Weights with distributions: one flat vector of everything unknown, a distribution over it, an average over that.

Model(net, likelihood, prior)  ->  mean_field | laplace  ->  Posterior  ->  Predictive
"""

from bnnlib.nets.audit import LossAudit, audit_loss
from bnnlib.nets.from_torchbnn import from_torchbnn
from bnnlib.nets.laplace import laplace
from bnnlib.nets.likelihoods import Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, Likelihood, StudentT
from bnnlib.nets.mean_field import mean_field
from bnnlib.nets.model import Model
from bnnlib.nets.posterior import Posterior
from bnnlib.nets.priors import Prior
from bnnlib.predictive import Moments, Predictive

__all__ = [
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "HeteroscedasticGaussian",
    "Likelihood",
    "LossAudit",
    "Model",
    "Moments",
    "Posterior",
    "Predictive",
    "Prior",
    "StudentT",
    "audit_loss",
    "from_torchbnn",
    "laplace",
    "mean_field",
]
