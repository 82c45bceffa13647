"""Wrong calls are refused before any work starts, with what was given and what to do."""

import pytest
import torch
from torch import nn

from bnnlib.batchnorm import BatchNorm, RunningStatistics, backward, fold, forward, reestimate, sample_statistics

ONE, ZERO = torch.ones(2), torch.zeros(2)
X = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
NAN = torch.where(torch.arange(10).reshape(5, 2) == 3, torch.nan, X)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: forward(X[:1], ONE, ZERO), ValueError, r"shape \(1, 2\) has 1 values a feature.*evaluation mode"),
        (lambda: BatchNorm(2)(X[:1]), ValueError, "1 values a feature"),
        (lambda: RunningStatistics.start(2).update(X[:1]), ValueError, "1 values a feature"),
        (lambda: forward(X[:0], ONE, ZERO), ValueError, "0 values a feature"),
        (lambda: forward(X[0], ONE, ZERO), ValueError, r"got \(2,\); add a batch dimension"),
        (lambda: forward(X.long(), ONE, ZERO), TypeError, r"int64; call .float\(\)"),
        (lambda: forward(NAN, ONE, ZERO), ValueError, "holds NaN"),
        (lambda: BatchNorm(2)(NAN), ValueError, "holds NaN"),
        (lambda: RunningStatistics.start(2).update(NAN), ValueError, "holds NaN"),
        (lambda: forward(X, torch.ones(3), ZERO), ValueError, r"gamma has shape \(3,\).* 2 features"),
        (lambda: forward(X, ONE, torch.zeros(1)), ValueError, r"beta has shape \(1,\)"),
        (lambda: BatchNorm(3)(X), ValueError, r"weight has shape \(3,\)"),
        (lambda: BatchNorm(3).eval()(X), ValueError, r"weight has shape \(3,\)"),
        (lambda: RunningStatistics.start(3).update(X), ValueError, r"mean has shape \(3,\)"),
        (lambda: forward(X, ONE, ZERO, eps=0.0), ValueError, "eps must be positive"),
        (lambda: BatchNorm(2, eps=-1.0), ValueError, "eps must be positive"),
        (lambda: BatchNorm(2, momentum=1.1), ValueError, r"between 0 and 1, got 1.1"),
        (lambda: BatchNorm(2, momentum=-0.1), ValueError, "between 0 and 1"),
        (lambda: BatchNorm(2, momentum=float("nan")), ValueError, "got nan"),
        (lambda: RunningStatistics.start(2, momentum=2.0), ValueError, "between 0 and 1"),
        (lambda: RunningStatistics(ZERO, torch.ones(3)), ValueError, r"\(2,\) and \(3,\)"),
        (lambda: backward(X[:3], forward(X, ONE, ZERO)), ValueError, r"\(3, 2\), the output has \(5, 2\)"),
        (lambda: fold(nn.Tanh(), BatchNorm(2).eval()), TypeError, "got Tanh"),
        (lambda: fold(nn.Linear(2, 2), nn.Tanh()), TypeError, "got Tanh"),
        (lambda: fold(nn.Linear(2, 2), BatchNorm(2)), ValueError, r"training mode.*call .eval\(\)"),
        (lambda: fold(nn.Linear(2, 3), BatchNorm(2).eval()), ValueError, "3 outputs, the BatchNorm 2"),
        (
            lambda: fold(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False).eval()),
            ValueError,
            "stores no statistics",
        ),
        (lambda: reestimate(nn.Linear(2, 2), [X]), ValueError, "nothing to estimate"),
        (lambda: reestimate(BatchNorm(2), []), ValueError, "loader is empty"),
        (lambda: reestimate(BatchNorm(2), [X[:1]]), ValueError, "1 values a feature"),
        (lambda: sample_statistics(nn.Linear(2, 2), X, X, batch_size=2), ValueError, "has no BatchNorm"),
        (lambda: sample_statistics(BatchNorm(2), X, X, batch_size=1), ValueError, "between 2 and the 5"),
        (lambda: sample_statistics(BatchNorm(2), X, X, batch_size=6), ValueError, "got 6"),
        (lambda: sample_statistics(BatchNorm(2), X, X, batch_size=2, n=0), ValueError, "1 or more, got 0"),
    ],
)
def test_it_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_refused_batch_leaves_the_layer_as_it_was():
    layer = BatchNorm(2)
    with pytest.raises(ValueError, match="holds NaN"):
        layer(NAN)
    assert layer.num_batches_tracked == 0
    assert (layer.running_mean == 0).all()


def test_one_image_of_many_pixels_is_a_batch():
    assert forward(torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)), ONE, ZERO).z.shape[0] == 1


def test_nan_in_evaluation_spoils_its_own_row_only():
    z = BatchNorm(2).eval()(NAN)
    assert torch.isfinite(z).all(-1).tolist() == [True, False, True, True, True]
