"""BatchNorm from the inside, and as noise (chapter three).

A batch X has m rows and n features. Each feature is shifted and scaled to mean 0 and variance 1 over the batch, then
given a new scale gamma and a new shift beta. The statistics are of the batch in training and stored ones in evaluation.
"""

from bnnlib.batchnorm.evaluation import fold, reestimate, sample_statistics
from bnnlib.batchnorm.layer import BatchNorm
from bnnlib.batchnorm.running import RunningStatistics
from bnnlib.batchnorm.steps import Gradients, Normalised, backward, forward

__all__ = [
    "BatchNorm",
    "Gradients",
    "Normalised",
    "RunningStatistics",
    "backward",
    "fold",
    "forward",
    "reestimate",
    "sample_statistics",
]
