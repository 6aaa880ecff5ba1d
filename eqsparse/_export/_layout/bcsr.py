"""By rows: values, a column for each, and where each row begins."""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse
from jaxtyping import Array, Bool, Inexact, Int32, Integer

from ..._kernels import csr_convolution, dense_csr, row_indices, spmm, Window
from .base import AbstractLayout
from .host import counts, padded, Slices


@final
class BCSRLayout(AbstractLayout):
    """Values by rows, a column for each, and where each row begins.

    Columns take 16 bits where they fit: in a product with a vector they are a third of what is read, not half.

    Slices of a stack with fewer entries than others are padded with value 0 and column `in` (one past the last),
    past the last row pointer: no entry of the matrix, as in JAX's own BCOO.
    """

    values: Inexact[Array, "*stack nnz"]
    shape: tuple[int, int] = eqx.field(static=True)
    columns: Integer[Array, "*stack nnz"]
    row_pointers: Int32[Array, "*stack ends"]
    widest: int = eqx.field(static=True)  # entries in the fullest row

    name = "bcsr"
    convolves = True

    @classmethod
    def encode(cls, slices: Slices) -> "BCSRLayout":
        row_counts = np.count_nonzero(slices.kept, axis=2)
        nnz = int(row_counts.sum(axis=1).max(initial=0))
        values = [w[k] for w, k in zip(slices.weights, slices.kept, strict=True)]
        columns = [np.nonzero(k)[1] for k in slices.kept]
        pointers = np.zeros((len(values), slices.shape[0] + 1), np.int32)
        pointers[:, 1:] = np.cumsum(row_counts, axis=1)
        return cls(
            slices.restack(padded(values, nnz, 0, slices.weights.dtype)),
            slices.shape,
            slices.restack(padded(columns, nnz, slices.shape[1], _column_type(slices.shape[1]))),
            slices.restack(pointers),
            int(row_counts.max(initial=0)),
        )

    @classmethod
    def bytes_of(cls, kept: Bool[np.ndarray, "slices out_size in_size"], itemsize: int) -> int | None:
        most = int(counts(kept).max(initial=0))
        if max(most, *kept.shape[1:]) >= 2**31:
            return None
        return len(kept) * cls.bytes_of_slice(most, (kept.shape[1], kept.shape[2]), itemsize)

    @staticmethod
    def bytes_of_slice(most: int, shape: tuple[int, int], itemsize: int) -> int:
        """Bytes of each slice of a stack, the fullest of which keeps `most`."""
        return most * (itemsize + np.dtype(_column_type(shape[1])).itemsize) + (shape[0] + 1) * 4

    @property
    def bcsr(self) -> sparse.BCSR:
        """As a `jax.experimental.sparse.BCSR` with int32 indices; a stack's axes are its batch axes."""
        parts = (self.values, self.columns.astype(jnp.int32), self.row_pointers)
        shape = (*self.stack, *self.shape)
        return sparse.BCSR(parts, shape=shape, indices_sorted=True, unique_indices=True)

    @property
    def bcoo(self) -> sparse.BCOO:
        """As a `jax.experimental.sparse.BCOO` with int32 indices; a stack's axes are its batch axes."""
        rows = lambda pointers: row_indices(pointers, self.values.shape[-1])
        for _ in self.stack:
            rows = jax.vmap(rows)
        indices = jnp.stack([rows(self.row_pointers), self.columns.astype(jnp.int32)], axis=-1)
        shape = (*self.stack, *self.shape)
        return sparse.BCOO((self.values, indices), shape=shape, indices_sorted=True, unique_indices=True)

    def rows(self, start: Int32[Array, ""], count: int) -> Inexact[Array, "count in_size"]:
        return csr_rows(self.values, self.columns, self.row_pointers, start, count, self.shape, self.widest)

    def kept(
        self, values: np.ndarray, columns: np.ndarray, pointers: np.ndarray
    ) -> Bool[np.ndarray, "out_size in_size"]:
        kept = np.zeros(self.shape, bool)
        kept[np.repeat(np.arange(self.shape[0]), np.diff(pointers)), columns[: pointers[-1]]] = True
        return kept

    def product(self, x: Array) -> Inexact[Array, "*batch out_size"]:
        return spmm(self.values, self.columns, self.row_pointers, x, self.shape)

    def convolution(self, x: Array, window: Window) -> Inexact[Array, "out_size *positions"]:
        return csr_convolution(self.values, self.columns, self.row_pointers, x, self.shape, window)


def csr_rows(
    values: Array, columns: Array, pointers: Array, start: Array, count: int, shape: tuple[int, int], widest: int
) -> Inexact[Array, "count in_size"]:
    """Rows `start` to `start + count` of a CSR matrix: only a window of its entries is read."""
    if count == shape[0]:
        return dense_csr(values, columns, pointers, shape)
    nnz = values.shape[0]
    dense = jnp.broadcast_to(pointers[0].astype(values.dtype), (shape[1], count))  # as in `dense_csr`
    window = min(nnz, count * widest)
    ends = jax.lax.dynamic_slice_in_dim(pointers, start, count + 1)
    first = jnp.clip(ends[0], 0, nnz - window)
    entry = first + jnp.arange(window, dtype=jnp.int32)
    row = jnp.searchsorted(ends, entry, side="right").astype(jnp.int32) - 1
    row = jnp.where(row < 0, count, row)  # of rows before `start`: dropped, as those after are
    part = lambda array: jax.lax.dynamic_slice_in_dim(array, first, window)
    return dense.at[part(columns).astype(jnp.int32), row].set(part(values), mode="drop").T


def _column_type(in_size: int) -> type[np.integer]:
    """What the kernels take, and holds the number one past the last column."""
    return np.uint16 if in_size < 2**16 else np.int32


def pointers_of(rows: Int32[Array, " nnz"], out_size: int) -> Int32[Array, " ends"]:
    """Where each row begins, from the sorted rows of the entries; rows past the last are padding."""
    return jnp.searchsorted(rows, jnp.arange(out_size + 1, dtype=jnp.int32)).astype(jnp.int32)
