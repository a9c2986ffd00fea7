"""Few-bit quantisation of a matrix: grids, codes, factors."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thesis_lib.common.errors import require
from thesis_lib.common.stats import F64

BITS = (2, 3, 4, 8)


@dataclass(frozen=True, slots=True)
class Grid:
    """Levels for the weights of one matrix: 2^bits of them, evenly about zero.

    Level c of a group with scale s is s (c − (2^bits − 1) / 2): half a scale, three
    halves, and so on, on both sides. Each output has one scale, in bfloat16, for every
    `group` inputs. Raises InvalidInput for bits other than 2, 3, 4 or 8.
    """

    bits: int
    group: int

    def __post_init__(self) -> None:
        require(self.bits in BITS, f"bits={self.bits} must be one of 2, 3, 4, 8")
        require(
            self.group > 0 and self.group % 8 == 0,
            f"group={self.group} must be a positive multiple of 8: codes fill bytes",
        )

    @property
    def middle(self) -> float:
        """The code, between two, of zero."""
        return (2**self.bits - 1) / 2

    def nbytes(self, m: int, n: int) -> int:
        """Bytes of the codes and of the scales of a matrix (m, n)."""
        return m * n * self.bits // 8 + 2 * m * (n // self.group)


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """Codes and scales of one matrix (m, n)."""

    grid: Grid
    codes: NDArray[np.uint8]  # (m, n)
    scales: F64  # (m, n / group), each one that bfloat16 holds

    def restore(self) -> F64:
        """The weights that the codes stand for, (m, n)."""
        scales = np.repeat(self.scales, self.grid.group, axis=1)
        return scales * (self.codes - self.grid.middle)

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and of the scales."""
        return self.grid.nbytes(*self.codes.shape)


FACTOR_BITS = 4


@dataclass(frozen=True, slots=True)
class LowBitConfig:
    """The storage of one matrix: its grid, and the rank and bits of its correction."""

    grid: Grid
    rank: int = 0
    factor_bits: int = FACTOR_BITS

    def __post_init__(self) -> None:
        require(self.rank >= 0, f"rank={self.rank} must not be negative")
        Grid(self.factor_bits, 8)  # rejects other bits

    def factor_grids(self, m: int) -> tuple[Grid, Grid]:
        """Return the grids of Lᵀ, one scale a component, and of R, one a group."""
        return Grid(self.factor_bits, m), Grid(self.factor_bits, self.grid.group)

    def parts(self, m: int, n: int) -> dict[str, tuple[Grid, int, int]]:
        """Grid and shape of Q, Lᵀ (r, m) and R (r, n), as `CompensatedMatrix.parts`."""
        stored = {"": (self.grid, m, n)}
        if self.rank:
            left, right = self.factor_grids(m)
            stored |= {"left_": (left, self.rank, m), "right_": (right, self.rank, n)}
        return stored

    def nbytes(self, m: int, n: int) -> int:
        """Bytes of a matrix (m, n): codes and scales, those of the factors too."""
        return sum(grid.nbytes(*shape) for grid, *shape in self.parts(m, n).values())


@dataclass(frozen=True, slots=True)
class CompensatedMatrix:
    """Q + L R: codes of a matrix (m, n) and, with a rank r > 0, of its factors."""

    base: QuantizedMatrix  # (m, n)
    left: QuantizedMatrix | None = None  # (r, m), transposed
    right: QuantizedMatrix | None = None  # (r, n)

    @property
    def parts(self) -> dict[str, QuantizedMatrix]:
        """Return the parts present of Q, Lᵀ and R, by the prefix of their names."""
        parts = {"": self.base, "left_": self.left, "right_": self.right}
        return {name: part for name, part in parts.items() if part is not None}

    def restore(self) -> F64:
        """The weights that all of it stands for, (m, n)."""
        restored = self.base.restore()
        if self.left is None or self.right is None:
            return restored
        # One component after the other: a layer that restores them does it alike.
        for left, right in zip(self.left.restore(), self.right.restore(), strict=True):
            restored += np.outer(left, right)
        return restored

    @property
    def nbytes(self) -> int:
        """Bytes of all codes and scales."""
        return sum(part.nbytes for part in self.parts.values())
