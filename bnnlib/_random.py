"""Draws that come from a given generator and leave torch's global state alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal


@contextmanager
def _borrowed(generator: torch.Generator | None) -> Iterator[None]:
    """Run a block whose global draws are fixed by `generator`; the global state is put back after."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device if generator else "cpu"))
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def place(generator: torch.Generator | None, like: Tensor) -> torch.device:
    """Where to draw: where the generator is. One of the CPU serves tensors of any device, with the same numbers."""
    return like.device if generator is None else generator.device


def fill_normal(out: Tensor, generator: torch.Generator | None) -> Tensor:
    """Fill `out` with independent N(0, 1) numbers, in place."""
    if generator is None or generator.device == out.device:
        return out.normal_(generator=generator)
    return out.copy_(torch.empty_like(out, device=generator.device).normal_(generator=generator))


def standard_normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Independent N(0, 1) numbers with the dtype and device of `like`, filled row by row.

    Row by row, so that n draws made at once equal n draws made one after the other.
    """
    out = torch.empty(shape, dtype=like.dtype, device=place(generator, like))
    for row in out.reshape(shape[0], -1):
        row.normal_(generator=generator)
    return out.to(like.device)


class FromNoise(Protocol):
    """A distribution that turns `noise_size` standard normals into one draw."""

    noise_size: int

    def from_noise(self, noise: Tensor) -> Tensor:
        """Map (n, noise_size) standard normals to (n, *event_shape) draws."""


def draw(distribution: Distribution, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw n independent values, shape (n, *batch_shape, *event_shape), without gradient."""
    base = distribution.base_dist if isinstance(distribution, Independent) else distribution
    shape = (n, *distribution.batch_shape, *distribution.event_shape)
    with torch.no_grad():
        if type(base) is Normal:
            return torch.addcmul(base.loc, base.scale, standard_normal(shape, base.loc, generator))
        if type(base) is MultivariateNormal and not base.batch_shape:
            return base.loc + standard_normal(shape, base.loc, generator) @ base.scale_tril.T
        if hasattr(base, "spread"):
            evenly: Tensor = base.spread(n, generator)
            return evenly
        if hasattr(base, "from_noise"):
            noisy = cast(FromNoise, base)
            return noisy.from_noise(standard_normal((n, noisy.noise_size), base.mean, generator))
        with _borrowed(generator):
            return distribution.sample((n,))


def by_rows(distribution: Distribution) -> bool:
    """Whether n draws made in parts are the same numbers as n draws made at once."""
    base = distribution.base_dist if isinstance(distribution, Independent) else distribution
    return type(base) in (Normal, MultivariateNormal) or hasattr(base, "from_noise")
