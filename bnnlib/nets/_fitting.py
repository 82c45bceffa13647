"""What every inference function does first: look at the data, the model and the loop around the steps."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from bnnlib.data import Scaling, Standardized, check_pair
from bnnlib.nets.model import Model
from bnnlib.variational._loop import progress_bar

__all__ = ["Data", "batches", "prepare", "progress_bar"]

Data = tuple[Tensor, Tensor] | Standardized | DataLoader[Any]

_UNIT = (0.2, 5.0)  # root mean squares that count as "about one"


class Prepared:
    """Checked data: how many points, one batch to look at, the scaling, and batches without end."""

    def __init__(self, model: Model, data: Data) -> None:
        self.model = model
        self.loader: DataLoader[Any] | None = None
        self.scaling: Scaling | None = None
        if isinstance(data, Standardized):
            self.x, self.y, self.scaling = data.x, data.y, data.scaling
        elif isinstance(data, DataLoader):
            self.loader = data
            self.points = _points(data)
            self.x, self.y = _first_batch(data, self.points)
            self.scaling = _scaling(data.dataset)
        elif isinstance(data, tuple | list) and len(data) == 2:
            self.x, self.y = data
        else:
            raise TypeError(
                f"data must be a pair (x, y) of tensors, a Standardized or a DataLoader, not {type(data).__name__}"
            )
        self.n = len(self.x) if self.loader is None else len(self.points)
        whole = _tensors(self.loader.dataset) if self.loader is not None else None
        if whole is not None:
            check_pair(*whole)
            _check_targets(model, self.x, self.y, whole[1])
        check_pair(self.x, self.y)
        _check_inputs(model, self.x)
        _check_targets(model, self.x, self.y, self.y)
        _warn_about_units(model, self.x, self.y)

    def everything(self) -> tuple[Tensor, Tensor]:
        """All points as one pair of tensors."""
        if self.loader is None:
            return self.x, self.y
        visited = Subset(self.loader.dataset, self.points)
        parts = list(DataLoader(visited, batch_size=len(self.x), collate_fn=self.loader.collate_fn))
        x, y = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
        check_pair(x, y)
        _check_targets(self.model, x, y, y)
        return x, y


def prepare(model: Model, data: Data) -> Prepared:
    """Check model and data before any work starts; raise a clear error or warn once."""
    if not isinstance(model, Model):
        raise TypeError(
            f"model must be a bnnlib.nets.Model, got {type(model).__name__}; wrap the network: Model(net, likelihood)"
        )
    return Prepared(model, data)


def batches(data: Prepared, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end: the whole pair again and again, or the loader, epoch after epoch."""
    if data.loader is None:
        x, y = data.x.to(device), data.y.to(device)
        while True:
            yield x, y
    while True:
        for x, y in data.loader:
            yield x.to(device), y.to(device)


def _points(loader: DataLoader[Any]) -> Sequence[int]:
    """Indices of the points that an epoch of the loader is made of."""
    try:
        length = len(loader.dataset)  # type: ignore[arg-type]
    except TypeError as error:
        raise TypeError(
            "the loader's data set has no length; n is needed to scale a mini-batch's likelihood"
        ) from error
    if length == 0 or len(loader) == 0:
        raise ValueError(f"the loader is empty: {length} points, {len(loader)} batches (drop_last={loader.drop_last})")
    if loader.batch_sampler is None:
        raise ValueError(
            "the loader has batch_size=None; n / batch needs batches made by the loader: give a batch_size"
        )
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if isinstance(sampler, SubsetRandomSampler):
        return sampler.indices
    if not isinstance(sampler, SequentialSampler | RandomSampler):
        raise ValueError(
            f"the loader's {type(sampler).__name__} may visit some points more often than others, which the likelihood "
            "does not; give DataLoader(Subset(dataset, indices), shuffle=True)"
        )
    return range(length)


def _first_batch(loader: DataLoader[Any], points: Sequence[int]) -> tuple[Tensor, Tensor]:
    # A batch made from the data set, not drawn from the loader: looking must not advance the loader's shuffling.
    pairs = [loader.dataset[i] for i in points[: loader.batch_size or 1]]
    if not all(isinstance(p, tuple | list) and len(p) == 2 for p in pairs):
        raise TypeError("the loader must give pairs (x, y)")
    x, y = loader.collate_fn(pairs)
    return x, y


def _tensors(dataset: Dataset[Any]) -> tuple[Tensor, ...] | None:
    """Everything in a data set that is tensors, which can be looked at before the first step."""
    if isinstance(dataset, Standardized):
        return dataset.x, dataset.y
    return dataset.tensors if isinstance(dataset, TensorDataset) else None


def _scaling(dataset: Dataset[Any]) -> Scaling | None:
    """How the data were standardised, also where only a part of them is given."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset.scaling if isinstance(dataset, Standardized) else None


def _check_inputs(model: Model, x: Tensor) -> None:
    embeds = any(isinstance(m, nn.Embedding) for m in model.net.modules())
    if not x.is_floating_point() and not embeds:
        raise ValueError(f"x is {x.dtype}; the network computes in {model.dtype}: use x.to({model.dtype})")
    if x.is_floating_point() and x.dtype != model.dtype:
        raise ValueError(f"x is {x.dtype}, the network {model.dtype}; convert one of them: x.to({model.dtype})")


def _check_targets(model: Model, x: Tensor, y: Tensor, every_y: Tensor) -> None:
    small = x[: min(2, len(x))].to(model.device)
    try:
        with torch.no_grad():
            f = model(model.start(), small)
    except RuntimeError as error:
        raise ValueError(f"the network cannot take inputs of shape {tuple(x.shape)}: {error}") from error
    if f.dim() != 2 or len(f) != len(small):
        raise ValueError(
            f"the network must map (n, ...) to (n, outputs); it mapped {tuple(small.shape)} to {tuple(f.shape)}"
        )
    model.likelihood.check(f.cpu(), every_y)
    if y.is_floating_point() and y.dtype != model.dtype:
        raise ValueError(f"y is {y.dtype}, the network {model.dtype}; convert one of them: y.to({model.dtype})")


def _warn_about_units(model: Model, x: Tensor, y: Tensor) -> None:
    if not model.prior.is_default:
        return
    looked_at = [("x", x)] if x.is_floating_point() else []
    if model.likelihood.continuous:
        looked_at.append(("y", y))
    far = {name: float(v.square().mean().sqrt()) for name, v in looked_at}
    far = {name: size for name, size in far.items() if not _UNIT[0] <= size <= _UNIT[1]}
    if far:
        what = ", ".join(f"{name} has root mean square {size:.3g}" for name, size in far.items())
        warnings.warn(
            f"{what}; the default priors are made for data of about unit scale. "
            "Pass Standardized(x, y) as data, or a prior of your own.",
            UserWarning,
            stacklevel=5,
        )
