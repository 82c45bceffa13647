"""Bayes' rule on tables and grids, conjugate updates, exact linear regression (chapter one).

Everything here is exact: a sum over hypotheses, or a posterior in closed form.
"""

from bnnlib.bayes.ahead import posterior_predictive
from bnnlib.bayes.counts import beta_bernoulli, dirichlet_categorical, gamma_poisson
from bnnlib.bayes.linear import LinearRegression
from bnnlib.bayes.normals import NormalGamma, normal_gamma, normal_normal
from bnnlib.bayes.rule import Update, bayes_rule

__all__ = [
    "LinearRegression",
    "NormalGamma",
    "Update",
    "bayes_rule",
    "beta_bernoulli",
    "dirichlet_categorical",
    "gamma_poisson",
    "normal_gamma",
    "normal_normal",
    "posterior_predictive",
]
