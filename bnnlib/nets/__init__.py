"""Weights with distributions: one flat vector of everything unknown, a distribution over it, an average over that.

Model(net, likelihood, prior)  ->  mean_field | laplace  ->  Posterior  ->  Predictive
"""

from bnnlib.nets.audit import LossAudit, audit_loss
from bnnlib.nets.convergence import Convergence, convergence
from bnnlib.nets.convert import bayesian, deterministic, fix
from bnnlib.nets.distill import Distilled, distill
from bnnlib.nets.dropout import dropout
from bnnlib.nets.ensemble import ensemble
from bnnlib.nets.from_torchbnn import from_torchbnn
from bnnlib.nets.full_rank import full_rank
from bnnlib.nets.hmc import hmc
from bnnlib.nets.ivon import ivon
from bnnlib.nets.laplace import laplace
from bnnlib.nets.likelihoods import Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, Likelihood, StudentT
from bnnlib.nets.low_rank import low_rank
from bnnlib.nets.map_estimate import map_estimate
from bnnlib.nets.mean_field import mean_field
from bnnlib.nets.mixture import mixture
from bnnlib.nets.model import Model
from bnnlib.nets.nuts import nuts
from bnnlib.nets.posterior import Posterior
from bnnlib.nets.priors import Prior
from bnnlib.nets.sghmc import sghmc
from bnnlib.nets.sgld import sgld
from bnnlib.nets.swag import swag
from bnnlib.predictive import Moments, Predictive

__all__ = [
    "Bernoulli",
    "Categorical",
    "Convergence",
    "Distilled",
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
    "bayesian",
    "convergence",
    "deterministic",
    "distill",
    "dropout",
    "ensemble",
    "fix",
    "from_torchbnn",
    "full_rank",
    "hmc",
    "ivon",
    "laplace",
    "low_rank",
    "map_estimate",
    "mean_field",
    "mixture",
    "nuts",
    "sghmc",
    "sgld",
    "swag",
]
