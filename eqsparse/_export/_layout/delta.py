"""Distances from one entry to the next, in few bits."""

from typing import final, get_args, Literal, TypeAlias

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Inexact, Int32, UInt8

from ..._kernels import pack, unpack, unpack_on_host
from .base import AbstractLayout
from .bcsr import BCSRLayout, pointers_of
from .host import padded, Slices

Width: TypeAlias = Literal[2, 3, 4, 5, 6, 7, 8]
_WIDTHS = get_args(Width)


@final
class DeltaLayout(AbstractLayout):
    """Values, and for each the distance from the one before in 2 to 8 bits: the smallest above 80% or so.

    Distances run on through the rows, so no row pointers are stored. One that the bits do not hold is made up by
    steps of `2**width - 1` that store a zero each. These are no entries: no gradient reaches them.

    ??? cite

        [Deep Compression](https://arxiv.org/abs/1510.00149), section 3
    """

    values: Inexact[Array, "*stack steps"]
    shape: tuple[int, int] = eqx.field(static=True)
    codes: UInt8[Array, "*stack packed"]
    width: Width = eqx.field(static=True)  # bits for a distance
    widest: int = eqx.field(static=True)  # steps in the fullest row

    name = "delta"
    rule = "of fewer than 2**31 places"

    @classmethod
    def encode(cls, slices: Slices) -> "DeltaLayout":
        gaps = [_gaps(kept) for kept in slices.kept]
        width = _best_width(gaps, slices.weights.dtype.itemsize)
        skip = 2**width - 1
        codes, values = [], []
        for gap, weights, kept in zip(gaps, slices.weights, slices.kept, strict=True):
            at = np.cumsum((gap - 1) // skip + 1) - 1  # where the entries stand among the steps
            code = np.full(at[-1] + 1 if len(at) else 0, skip, np.uint8)
            code[at] = (gap - 1) % skip
            value = np.zeros(len(code), weights.dtype)
            value[at] = weights[kept]
            codes.append(code)
            values.append(value)
        steps = max(map(len, codes), default=0)
        filled = padded(codes, steps, skip, np.uint8)
        return cls(
            slices.restack(padded(values, steps, 0, slices.weights.dtype)),
            slices.shape,
            slices.restack(pack(filled, width)),
            width,
            _widest(filled, skip, slices.shape),
        )

    @classmethod
    def bytes_of(cls, kept: Bool[np.ndarray, "slices out_size in_size"], itemsize: int) -> int | None:
        gaps = [_gaps(one) for one in kept]
        width = _best_width(gaps, itemsize)
        steps = _steps(gaps, width)
        # Padding walks past the end.
        if kept.shape[1] * kept.shape[2] + (steps - min(map(len, gaps), default=0)) * 2**width >= 2**31:
            return None
        return len(kept) * _size(steps, width, itemsize)

    def decoded(self) -> BCSRLayout:
        skip = 2**self.width - 1
        codes = unpack(self.codes, self.width, self.values.shape[0])
        is_entry = codes != skip
        place = jnp.cumsum(codes + is_entry.astype(jnp.int32), dtype=jnp.int32) - 1
        rows = place // max(self.shape[1], 1)
        columns = place - rows * self.shape[1]
        pointers = pointers_of(rows, self.shape[0])
        values = jnp.where(is_entry, self.values, jnp.zeros((), self.values.dtype))
        return BCSRLayout(values, self.shape, columns, pointers, self.widest)

    def rows(self, start: Int32[Array, ""], count: int) -> Inexact[Array, "count in_size"]:
        return self.decoded().rows(start, count)

    def kept(self, values: np.ndarray, codes: np.ndarray) -> Bool[np.ndarray, "out_size in_size"]:
        codes = unpack_on_host(codes, self.width, len(values))
        is_entry = codes != 2**self.width - 1
        kept = np.zeros(self.shape, bool)
        kept.ravel()[(np.cumsum(codes + is_entry, dtype=np.int64) - 1)[is_entry]] = True
        return kept

    def product(self, x: Array) -> Inexact[Array, "*batch out_size"]:
        return self.decoded().product(x)


def _gaps(kept: Bool[np.ndarray, "out_size in_size"]) -> np.ndarray:
    return np.diff(np.flatnonzero(kept), prepend=-1)


def _steps(gaps: list[np.ndarray], width: int) -> int:
    """Steps that the slice with the most takes."""
    return max((int(((gap - 1) // (2**width - 1) + 1).sum()) for gap in gaps), default=0)


def _size(steps: int, width: int, itemsize: int) -> int:
    return steps * itemsize + -(-steps // 8) * width


def _best_width(gaps: list[np.ndarray], itemsize: int) -> Width:
    return min(_WIDTHS, key=lambda width: _size(_steps(gaps, width), width, itemsize))


def _widest(codes: np.ndarray, skip: int, shape: tuple[int, int]) -> int:
    place = np.cumsum(codes + (codes != skip), axis=1, dtype=np.int64) - 1
    rows = np.minimum(place // max(shape[1], 1), shape[0])  # padding may walk past the end
    return max((int(np.bincount(one, minlength=shape[0] + 1)[: shape[0]].max(initial=0)) for one in rows), default=0)
