"""The book's data sets, and the standardisation that default priors are made for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["Quintic", "Scaling", "Standardized", "quintic"]


@dataclass(frozen=True)
class Quintic:
    """Inputs x, observations y, the noise-free curve at x, each (n, 1), and the noise's standard deviation."""

    x: Tensor
    y: Tensor
    curve: Tensor
    noise_sd: float

    def __repr__(self) -> str:
        return f"Quintic(n={len(self.x)}, noise_sd={self.noise_sd:.3f})"


def quintic(
    n: int = 500,
    noise: str = "uniform",
    scale: float = 2.0,
    *,
    low: float = -2.0,
    high: float = 2.0,
    spacing: str = "even",
    generator: torch.Generator | None = None,
) -> Quintic:
    """The book's task: y = x^5 - 10 x + noise on [low, high].

    Parameters
    ----------
    n
        Number of points.
    noise
        `"uniform"`: scale * U(0, 1), whose mean is scale / 2 and standard deviation scale / sqrt(12);
        `"normal"`: N(0, scale^2).
    scale
        Width of the uniform noise or standard deviation of the normal noise, in the units of y.
    spacing
        `"even"` places x on a grid with both ends, `"random"` draws them uniformly.

    Returns
    -------
    Quintic
        `curve` holds E[y | x]: with uniform noise x^5 - 10 x + scale / 2.
    """
    if n < 1:
        raise ValueError(f"quintic needs at least one point, got n={n}")
    if noise not in ("uniform", "normal"):
        raise ValueError(f'noise is "uniform" or "normal", got {noise!r}')
    if spacing not in ("even", "random"):
        raise ValueError(f'spacing is "even" or "random", got {spacing!r}')
    if not scale >= 0:
        raise ValueError(f"scale cannot be negative, got {scale}")
    if not low < high:
        raise ValueError(f"need low < high, got low={low}, high={high}")
    if spacing == "even":
        x = torch.linspace(low, high, n).unsqueeze(-1)
    else:
        x = low + (high - low) * torch.rand(n, 1, generator=generator)
    curve = x**5 - 10 * x
    if noise == "normal":
        return Quintic(x, curve + scale * torch.randn(n, 1, generator=generator), curve, float(scale))
    y = curve + scale * torch.rand(n, 1, generator=generator)
    return Quintic(x, y, curve + scale / 2, float(scale) / 12**0.5)


@dataclass(frozen=True)
class Scaling:
    """Shift and scale of inputs and targets: x_standard = (x - x_loc) / x_scale, the same for y.

    `y_loc` and `y_scale` are None where targets are class labels.
    """

    x_loc: Tensor
    x_scale: Tensor
    y_loc: Tensor | None = None
    y_scale: Tensor | None = None

    def x(self, x: Tensor) -> Tensor:
        """Inputs in standard units."""
        return (x - self.x_loc.to(x)) / self.x_scale.to(x)

    def y(self, y: Tensor) -> Tensor:
        """Targets in standard units; labels stay as they are."""
        if self.y_loc is None or self.y_scale is None:
            return y
        return (y - self.y_loc.to(y)) / self.y_scale.to(y)


class Standardized(Dataset[tuple[Tensor, Tensor]]):
    """A data set shifted and scaled to mean 0 and standard deviation 1, column by column.

    Mean and standard deviation (with n - 1) come from the data given here, the training data. A
    posterior trained on it takes inputs and gives predictions in the *original* units: means,
    intervals and densities, the latter with their Jacobian. A column that does not vary is only
    shifted. Integer targets are classes, or the zeros and ones of `Bernoulli`, and are left alone.

    It is a data set, so mini-batches come from `DataLoader(Standardized(x, y), batch_size=...)`.

    Parameters
    ----------
    x
        Inputs, shape (n, ...), standardised over the first dimension.
    y
        Targets, shape (n, K), or (n,) integer labels.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        check_pair(x, y)
        if not x.is_floating_point():
            raise ValueError(
                f"x is {x.dtype}: whole numbers have no scale; use x.float(), or the pair without Standardized"
            )
        if len(x) < 2:
            raise ValueError(f"Standardized needs at least two points to know a spread, got {len(x)}")
        x_loc, x_scale = _location_scale(x)
        y_loc, y_scale = _location_scale(y) if y.is_floating_point() else (None, None)
        self.scaling = Scaling(x_loc, x_scale, y_loc, y_scale)
        self.x, self.y = self.scaling.x(x), self.scaling.y(y)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i], self.y[i]

    def __repr__(self) -> str:
        return f"Standardized(n={len(self)}, x={tuple(self.x.shape[1:])}, y={tuple(self.y.shape[1:])})"


def _location_scale(v: Tensor) -> tuple[Tensor, Tensor]:
    scale = v.std(0)
    # A constant column has no spread; rounding can leave a few units in the last place.
    constant = scale <= 8 * torch.finfo(v.dtype).eps * v.abs().amax(0)
    return v.mean(0), torch.where(constant, torch.ones_like(scale), scale)


def check_pair(x: Tensor, y: Tensor) -> None:
    """Raise a clear error unless x and y are tensors of equal, positive length without NaN or infinity."""
    for name, v in (("x", x), ("y", y)):
        if not isinstance(v, Tensor):
            raise TypeError(f"{name} must be a torch tensor, got {type(v).__name__}; use torch.as_tensor({name})")
        if v.dim() == 0 or len(v) == 0:
            raise ValueError(f"{name} is empty (shape {tuple(v.shape)})")
        if v.is_floating_point() and not bool(torch.isfinite(v).all()):
            bad = (~torch.isfinite(v)).reshape(len(v), -1).any(-1)
            raise ValueError(
                f"{name} has NaN or infinite values in {int(bad.sum())} of {len(v)} rows, the first is row "
                f"{int(bad.nonzero()[0])}; remove or impute them first"
            )
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} rows, y has {len(y)}; they must be pairs")
