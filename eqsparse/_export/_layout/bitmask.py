"""One bit for each position."""

from typing import final

import equinox as eqx
import numpy as np
from jaxtyping import Array, Bool, Inexact, Int32, UInt8

from ..._kernels import bitmask_product, bitmask_rows, bitmask_starts
from .base import AbstractLayout
from .host import counts, padded, Slices


@final
class BitmaskLayout(AbstractLayout):
    """Values by rows, and one bit for each position: the smallest from 50% to 80% or so.

    Products rebuild some rows on the fly, never the whole matrix at once. Slices of a stack with fewer entries than
    others are padded with values that no bit names.
    """

    values: Inexact[Array, "*stack nnz"]
    shape: tuple[int, int] = eqx.field(static=True)
    bits: UInt8[Array, "*stack out_size packed"]

    name = "bitmask"

    @classmethod
    def encode(cls, slices: Slices) -> "BitmaskLayout":
        values = [w[k] for w, k in zip(slices.weights, slices.kept, strict=True)]
        nnz = int(counts(slices.kept).max(initial=0))
        return cls(
            slices.restack(padded(values, nnz, 0, slices.weights.dtype)),
            slices.shape,
            slices.restack(np.packbits(slices.kept, axis=2)),
        )

    @classmethod
    def bytes_of(cls, kept: Bool[np.ndarray, "slices out_size in_size"], itemsize: int) -> int | None:
        most = int(counts(kept).max(initial=0))
        return None if most >= 2**31 else len(kept) * (most * itemsize + kept.shape[1] * (-(-kept.shape[2] // 8)))

    def rows(self, start: Int32[Array, ""], count: int) -> Inexact[Array, "count in_size"]:
        return bitmask_rows(self.values, self.bits, bitmask_starts(self.bits), start, count, self.shape[1])

    def kept(self, values: np.ndarray, bits: np.ndarray) -> Bool[np.ndarray, "out_size in_size"]:
        return np.unpackbits(bits, axis=-1, count=self.shape[1]).view(bool)

    def product(self, x: Array) -> Inexact[Array, "*batch out_size"]:
        return bitmask_product(self.values, (self.bits,), x, self.shape)
