"""A normal over w whose covariance is one Kronecker product a layer, in the basis where the precision is diagonal.

The Gauss-Newton matrix of a layer with inputs a and slopes g of its outputs is replaced by

    sum_n (a_n a_n^T) (x) (g_n g_n^T)   ~   A (x) G,    A = sum a a^T,    G = sum g g^T / count

(Martens and Grosse 2015; Botev, Ritter and Barber 2017), a convolution being a dense layer with a point at every
place of the image (Grosse and Martens 2016). The prior precision D is added exactly: with D^(-1/2) A D^(-1/2) =
U diag(s) U^T and G = V diag(l) V^T,

    H = A (x) G + D (x) I,    a draw of the layer:  W = loc + V (E / sqrt(1 + l s^T)) U^T D^(-1/2),   E_ij ~ N(0, 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

__all__ = ["Block", "KroneckerNormal", "block_of"]


@dataclass(frozen=True)
class Block:
    """One layer: its entries of w from `start` on, as a matrix W (out, columns) = loc + left (E * sd) right.

    `bias` says whether the last column is the bias, whose entries stand behind those of the weight.
    `log_det` is that of I + D^-1/2 (A (x) G) D^-1/2: log det of the posterior precision minus the prior's.
    """

    start: int
    bias: bool
    left: Tensor
    right: Tensor
    sd: Tensor
    log_det: float = 0.0

    @property
    def stop(self) -> int:
        return self.start + self.sd.numel()

    def matrix(self, flat: Tensor) -> Tensor:
        """Entries of w (..., size) as matrices (..., out, columns)."""
        out, columns = self.sd.shape
        if not self.bias:
            return flat.reshape(*flat.shape[:-1], out, columns)
        weight, bias = flat.split([out * (columns - 1), out], -1)
        return torch.cat([weight.reshape(*flat.shape[:-1], out, columns - 1), bias.unsqueeze(-1)], -1)

    def flat(self, matrix: Tensor) -> Tensor:
        """Matrices (..., out, columns) as entries of w (..., size)."""
        if not self.bias:
            return matrix.flatten(-2)
        return torch.cat([matrix[..., :-1].flatten(-2), matrix[..., -1]], -1)

    def scaled_back(self, flat: Tensor) -> Tensor:
        """S^T b for the rows b (..., size) of a linear map, with S S^T the covariance of the block."""
        moved: Tensor = self.left.T @ self.matrix(flat) @ self.right.T * self.sd
        return moved.flatten(-2)

    def whitened(self, delta: Tensor) -> Tensor:
        """S^-1 delta for differences from the mean (..., size)."""
        back: Tensor = torch.linalg.solve(self.right.T, (self.left.T @ self.matrix(delta)).mT).mT / self.sd
        return back.flatten(-2)


def block_of(a: Tensor, g: Tensor, precision: Tensor, start: int, bias: bool) -> Block:
    """Block of a layer from A (columns, columns), G (out, out) and the prior precisions of its entries of w.

    Raises
    ------
    ValueError
        The prior precision differs between the layer's outputs: D would be no Kronecker product.
    """
    out, columns = len(g), len(a)
    shaped = Block(start, bias, g, a, g.new_empty(out, columns)).matrix(precision)
    if not torch.allclose(shaped, shaped[:1].expand_as(shaped), rtol=1e-9):
        raise ValueError("the prior precision differs between the outputs of one layer")
    inverse_root = shaped[0].rsqrt()
    s, u = torch.linalg.eigh(a * inverse_root * inverse_root.unsqueeze(-1))
    values, v = torch.linalg.eigh(g)
    inside = torch.outer(values.clamp_min(0), s.clamp_min(0))
    return Block(start, bias, v, u.T * inverse_root, (1 + inside).rsqrt(), float(inside.log1p().sum()))


class KroneckerNormal(Distribution):
    """Normal over w: a `Block` for each layer, and independent entries behind them for the noise. In float64.

    Parameters
    ----------
    loc
        Mean, shape (P,).
    blocks
        Layers that cover the entries 0 ... P' - 1 of w in their order.
    rest_sd
        Standard deviations of the entries behind the layers, shape (P - P',).
    """

    arg_constraints = {  # noqa: RUF012
        "loc": constraints.real_vector,
        "rest_sd": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, loc: Tensor, blocks: Sequence[Block], rest_sd: Tensor, validate_args: bool | None = None
    ) -> None:
        self.loc, self.rest_sd, self.blocks = loc.double(), rest_sd.double(), tuple(blocks)
        edges = [0, *(b.stop for b in self.blocks)]
        if [b.start for b in self.blocks] != edges[:-1] or edges[-1] + len(rest_sd) != len(loc):
            raise ValueError(f"the blocks end at {edges[1:]} with {len(rest_sd)} behind, w has {len(loc)} entries")
        super().__init__(event_shape=self.loc.shape, validate_args=validate_args)

    # A file holds flat tensors only: all blocks behind one another, and a table of their sizes.

    @property
    def layout(self) -> Tensor:
        """Rows (start, bias, out, columns), one a block."""
        return torch.tensor([[b.start, b.bias, *b.sd.shape] for b in self.blocks])

    @property
    def packed(self) -> Tensor:
        """left, right and sd of every block, flat."""
        return torch.cat([part.flatten() for b in self.blocks for part in (b.left, b.right, b.sd)])

    @classmethod
    def unpacked(cls, loc: Tensor, layout: Tensor, packed: Tensor, rest_sd: Tensor) -> KroneckerNormal:
        """The distribution whose `layout` and `packed` these are."""
        blocks, at = [], 0
        for start, bias, out, columns in layout.tolist():
            parts = packed[at : at + out * out + columns * columns + out * columns]
            left, right, sd = parts.split([out * out, columns * columns, out * columns])
            at += len(parts)
            blocks.append(
                Block(
                    start,
                    bool(bias),
                    left.reshape(out, out),
                    right.reshape(columns, columns),
                    sd.reshape(out, columns),
                )
            )
        return cls(loc, blocks, rest_sd)

    def to(self, device: torch.device) -> KroneckerNormal:
        """The same on another device."""
        arrays = (v.to(device) for v in (self.loc, self.layout, self.packed, self.rest_sd))
        return KroneckerNormal.unpacked(*arrays)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Diagonal of the covariance, (P,)."""
        parts = [b.flat(b.left.square() @ b.sd.square() @ b.right.square()) for b in self.blocks]
        return torch.cat([*parts, self.rest_sd.square()])

    def covariance_of(self, rows: Tensor) -> Tensor:
        """B Sigma B^T for rows B (..., K, P) -> (..., K, K)."""
        back = self._scaled_back(rows.double())
        covariance: Tensor = back @ back.mT
        return covariance

    def _scaled_back(self, rows: Tensor) -> Tensor:
        parts = [b.scaled_back(rows[..., b.start : b.stop]) for b in self.blocks]
        return torch.cat([*parts, rows[..., len(self.loc) - len(self.rest_sd) :] * self.rest_sd], -1)

    @property
    def noise_size(self) -> int:
        """Standard normal numbers that one draw is made of, P."""
        return len(self.loc)

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        noise = torch.randn(*sample_shape, len(self.loc), dtype=self.loc.dtype, device=self.loc.device)
        return self.from_noise(noise)

    def from_noise(self, noise: Tensor) -> Tensor:
        """Draws (..., P) from standard normals (..., P)."""
        parts = [
            b.flat(b.left @ (noise[..., b.start : b.stop].reshape(*noise.shape[:-1], *b.sd.shape) * b.sd) @ b.right)
            for b in self.blocks
        ]
        rest = noise[..., len(self.loc) - len(self.rest_sd) :] * self.rest_sd
        return self.loc + torch.cat([*parts, rest], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        delta = value.double() - self.loc
        parts = [b.whitened(delta[..., b.start : b.stop]) for b in self.blocks]
        z = torch.cat([*parts, delta[..., len(self.loc) - len(self.rest_sd) :] / self.rest_sd], -1)
        return -0.5 * z.square().sum(-1) - self._log_scale - 0.5 * len(self.loc) * math.log(2 * math.pi)

    def entropy(self) -> Tensor:
        return self._log_scale + 0.5 * len(self.loc) * (1 + math.log(2 * math.pi))

    @property
    def _log_scale(self) -> Tensor:
        """Half the log determinant of the covariance."""
        total = self.rest_sd.log().sum()
        for b in self.blocks:
            total = total + b.sd.log().sum() + len(b.left) * torch.linalg.slogdet(b.right)[1]
        return total
