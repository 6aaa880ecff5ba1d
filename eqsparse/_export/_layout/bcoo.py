"""By coordinates, in the smallest dtypes: the interchange format."""

from typing import final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse
from jaxtyping import Array, Bool, Inexact, Int32, Integer

from .base import AbstractLayout
from .bcsr import BCSRLayout, pointers_of
from .host import counts, padded, Slices, smallest


@final
class BCOOLayout(AbstractLayout):
    """Values, and a row and a column for each in the smallest dtype that holds them, sorted by rows.

    Slices of a stack with fewer entries than others are padded with value 0 at out-of-bounds indices.
    """

    values: Inexact[Array, "*stack nnz"]
    shape: tuple[int, int] = eqx.field(static=True)
    row_indices: Integer[Array, "*stack nnz"]
    columns: Integer[Array, "*stack nnz"]
    widest: int = eqx.field(static=True)  # entries in the fullest row

    name = "bcoo"

    @classmethod
    def encode(cls, slices: Slices) -> "BCOOLayout":
        places = [np.nonzero(k) for k in slices.kept]
        nnz = max((len(rows) for rows, _ in places), default=0)
        values = [w[k] for w, k in zip(slices.weights, slices.kept, strict=True)]
        out_size, in_size = slices.shape
        return cls(
            slices.restack(padded(values, nnz, 0, slices.weights.dtype)),
            slices.shape,
            slices.restack(padded([rows for rows, _ in places], nnz, out_size, smallest(out_size))),
            slices.restack(padded([columns for _, columns in places], nnz, in_size, smallest(in_size))),
            int(np.count_nonzero(slices.kept, axis=2).max(initial=0)),
        )

    @classmethod
    def bytes_of(cls, kept: Bool[np.ndarray, "slices out_size in_size"], itemsize: int) -> int | None:
        most = int(counts(kept).max(initial=0))
        if max(most, *kept.shape[1:]) >= 2**31:
            return None
        indices = sum(np.dtype(smallest(size)).itemsize for size in kept.shape[1:])
        return len(kept) * most * (itemsize + indices)

    @property
    def bcoo(self) -> sparse.BCOO:
        """As a `jax.experimental.sparse.BCOO` with int32 indices; a stack's axes are its batch axes."""
        indices = jnp.stack([self.row_indices.astype(jnp.int32), self.columns.astype(jnp.int32)], axis=-1)
        shape = (*self.stack, *self.shape)
        return sparse.BCOO((self.values, indices), shape=shape, indices_sorted=True, unique_indices=True)

    def decoded(self) -> BCSRLayout:
        pointers = pointers_of(self.row_indices.astype(jnp.int32), self.shape[0])
        return BCSRLayout(self.values, self.shape, self.columns.astype(jnp.int32), pointers, self.widest)

    def rows(self, start: Int32[Array, ""], count: int) -> Inexact[Array, "count in_size"]:
        return self.decoded().rows(start, count)

    def kept(self, values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> Bool[np.ndarray, "out_size in_size"]:
        kept = np.zeros(self.shape, bool)
        is_entry = rows < self.shape[0]
        kept[rows[is_entry], columns[is_entry]] = True
        return kept

    def product(self, x: Array) -> Inexact[Array, "*batch out_size"]:
        return self.decoded().product(x)
