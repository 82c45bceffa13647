"""Bad input gets an error that says what was given, what was expected, and what to do."""

import re

import pytest
import torch
from torch.distributions import Gamma, HalfNormal, Laplace, MultivariateNormal, Normal

from bnnlib.normal import (
    affine,
    conditional,
    entropy,
    kl,
    log_density,
    max_entropy_table,
    noise_precision,
    noise_predictive,
    positive,
    positive_inverse,
    product,
    wide_net_kernel,
)

EYE = torch.eye(2)
ZERO = torch.zeros(2)
PAIR = MultivariateNormal(ZERO, EYE)
TRIPLE = MultivariateNormal(torch.zeros(3), torch.eye(3))
NAN = float("nan")

CASES = [
    (lambda: log_density(0.0, loc=0.0), ValueError, "exactly one of scale"),
    (lambda: log_density(ZERO, loc=ZERO, scale=1.0, cov=EYE), ValueError, "exactly one of scale"),
    (lambda: log_density(0.0, loc=0.0, scale=0.0), ValueError, "scale must be positive and finite, got 0"),
    (lambda: log_density(0.0, loc=0.0, scale=-2.0), ValueError, "got -2; scale is a standard deviation"),
    (lambda: log_density(NAN, loc=0.0, scale=1.0), ValueError, "x must be finite"),
    (lambda: log_density(0.0, loc=NAN, scale=1.0), ValueError, "loc must be finite"),
    (lambda: log_density(ZERO, loc=ZERO, cov=torch.ones(2, 2)), ValueError, "positive definite, but its smallest"),
    (lambda: log_density(ZERO, loc=ZERO, cov=-EYE), ValueError, "smallest eigenvalue is -1"),
    (lambda: log_density(ZERO, loc=ZERO, cov=torch.tensor([[1.0, 0.5], [0.0, 1.0]])), ValueError, "symmetric"),
    (lambda: log_density(ZERO, loc=ZERO, cov=torch.ones(2, 3)), ValueError, "square matrix, got shape (2, 3)"),
    (lambda: log_density(ZERO, loc=ZERO, cov=EYE * NAN), ValueError, "cov must be finite"),
    (lambda: log_density(torch.zeros(3), loc=0.0, cov=EYE), ValueError, "dimension of cov, 2, got shape (3,)"),
    (lambda: log_density(0.0, loc=0.0, cov=EYE), ValueError, "dimension of cov"),
    (lambda: entropy(Laplace(0.0, 1.0)), TypeError, "not Laplace"),
    (lambda: kl(Normal(0.0, 1.0), PAIR), TypeError, "two of one kind, got Normal and MultivariateNormal"),
    (lambda: kl(Normal(0.0, 1.0), Laplace(0.0, 1.0)), TypeError, "not Laplace"),
    (lambda: kl(PAIR, TRIPLE), ValueError, "lengths 2 and 3"),
    (lambda: product(PAIR, TRIPLE), ValueError, "lengths 2 and 3"),
    (lambda: product(PAIR.expand((4,)), PAIR), ValueError, "one by one"),
    (lambda: max_entropy_table(sd=0.0), ValueError, "sd must be positive"),
    (lambda: max_entropy_table(sd=NAN), ValueError, "sd must be positive"),
    (lambda: affine(Normal(0.0, 1.0), 0.0), ValueError, "holds a zero"),
    (lambda: affine(Normal(0.0, 1.0), NAN), ValueError, "weight must be finite"),
    (lambda: affine(Normal(0.0, 1.0), 1.0, NAN), ValueError, "bias must be finite"),
    (lambda: affine(PAIR, torch.ones(1, 3)), ValueError, "a matrix (m, 2)"),
    (lambda: affine(PAIR, 2.0), ValueError, "a matrix (m, 2)"),
    (lambda: affine(PAIR, torch.ones(2, 2)), ValueError, "2 rows but rank 1"),
    (lambda: affine(PAIR, torch.ones(3, 2)), ValueError, "3 rows but rank 1"),
    (lambda: affine(Gamma(1.0, 1.0), 2.0), TypeError, "not Gamma"),
    (lambda: conditional(Normal(0.0, 1.0), 0, 1.0), TypeError, "one MultivariateNormal"),
    (lambda: conditional(PAIR.expand((3,)), 0, 1.0), TypeError, "without batch shape"),
    (lambda: conditional(PAIR, 2, 1.0), ValueError, "positions in 0 ... 1, got [2]"),
    (lambda: conditional(PAIR, -1, 1.0), ValueError, "positions in 0 ... 1, got [-1]"),
    (lambda: conditional(PAIR, [0, 1], ZERO), ValueError, "between 1 and 1"),
    (lambda: conditional(TRIPLE, [0, 0], ZERO), ValueError, "different positions"),
    (lambda: conditional(TRIPLE, [], ZERO), ValueError, "different positions"),
    (lambda: conditional(PAIR, 0, NAN), ValueError, "value must be finite"),
    (lambda: conditional(TRIPLE, [0, 1], 1.0), ValueError, "end in dimension 2"),
    (lambda: positive(ZERO, how="relu"), ValueError, "got 'relu'"),
    (lambda: positive(torch.tensor(NAN)), ValueError, "rho must be finite"),
    (lambda: positive(torch.tensor(100.0), how="exp"), ValueError, "overflows in torch.float32 at rho = 100"),
    (lambda: positive_inverse(torch.tensor([1.0, 0.0])), ValueError, "value must be positive and finite, got 0"),
    (lambda: positive_inverse(torch.tensor(-1.0), how="exp"), ValueError, "got -1"),
    (lambda: positive_inverse(torch.tensor(1.0), how="square"), ValueError, "got 'square'"),
    (lambda: noise_precision(HalfNormal(1.0), ZERO), TypeError, "not HalfNormal"),
    (lambda: noise_precision(Gamma(1.0, 1.0), torch.zeros(0)), ValueError, "at least one residual"),
    (lambda: noise_precision(Gamma(1.0, 1.0), torch.tensor(1.0)), ValueError, "at least one residual"),
    (lambda: noise_precision(Gamma(1.0, 1.0), torch.zeros(4, 2)), ValueError, "shape (4, 2) and the prior batch shape"),
    (lambda: noise_precision(Gamma(1.0, 1.0), torch.tensor([NAN])), ValueError, "residuals must be finite"),
    (lambda: noise_predictive(Normal(0.0, 1.0)), TypeError, "not Normal"),
    (lambda: noise_predictive(Gamma(1.0, 1.0), NAN), ValueError, "loc must be finite"),
    (lambda: wide_net_kernel(torch.zeros(3)), ValueError, "shape (n, d), got torch.float32 (3,)"),
    (lambda: wide_net_kernel(torch.ones(3, 1, dtype=torch.long)), ValueError, "floating point"),
    (lambda: wide_net_kernel(torch.full((1, 1), NAN)), ValueError, "x must be finite"),
    (lambda: wide_net_kernel(torch.ones(3, 1), torch.ones(3, 2)), ValueError, "features, got 1 and 2"),
    (lambda: wide_net_kernel(torch.ones(3, 1), activation="tanh"), ValueError, "got 'tanh'"),
    (lambda: wide_net_kernel(torch.ones(3, 1), hidden_layers=0), ValueError, "at least 1, got 0"),
    (lambda: wide_net_kernel(torch.ones(3, 1), weight_var=0.0), ValueError, "weight_var must be positive"),
    (lambda: wide_net_kernel(torch.ones(3, 1), bias_var=-1.0), ValueError, "bias_var not negative"),
]


@pytest.mark.parametrize(("call", "kind", "says"), CASES, ids=[says[:40] for _, _, says in CASES])
def test_error(call, kind, says):
    with pytest.raises(kind, match=re.escape(says)):
        call()
