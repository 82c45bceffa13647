"""bnnlib: the library of the book *Bayesian Neural Networks, Tested*.

Five rooms, one a chapter: `bayes`, `normal`, `batchnorm`, `variational`, `nets`.
What serves all five: `data`, `predictive`, `metrics`, `plot`, `widgets`.

Importing the package changes nothing: no seed, no default dtype, no style, no logging.
"""

__version__ = "0.1.0"
