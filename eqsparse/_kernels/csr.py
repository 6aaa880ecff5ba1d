"""Products of a CSR matrix with dense ones, on whole matrices.

The primitives of `spmm.py` lower to these three functions where eqsparse's own kernels do not serve. Conventions:

- The sparse matrix has the static `shape` (out, in). Its rows are sorted, its entries unique.
- Entries past `row_pointers[-1]` are padding: value 0, column `in` (one past the end). No product reads them.
- Dense arrays have the examples first: `x` is (batch, in), `y` is (batch, out).
- Values and dense arrays have one dtype, which the caller sees to. Half precisions are computed in float32: JAX has
    no kernel for them on CPU.
- Columns are int32, or of a smaller type, which is widened: JAX's kernels take int32 only.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import sparse
from jaxtyping import Array, Inexact, Int32, Integer

from .batch import over_batch
from .plain import plain


def _widened(function: Callable) -> Callable:
    """The function, on whatever it does not take."""

    @functools.wraps(function)
    def run(*arrays: Array, **static: Any) -> Array:
        dtype = arrays[-1].dtype
        wide = jnp.dtype(jnp.float32) if dtype.itemsize < 4 else dtype
        is_index = lambda array: jnp.issubdtype(array.dtype, jnp.integer)
        return function(*(a.astype(jnp.int32 if is_index(a) else wide) for a in arrays), **static).astype(dtype)

    return run


@_widened
def product(
    values: Inexact[Array, " nnz"],
    columns: Int32[Array, " nnz"],
    row_pointers: Int32[Array, " ends"],
    x: Inexact[Array, "batch in_size"],
    *,
    shape: tuple[int, int],
) -> Inexact[Array, "batch out_size"]:
    """`x @ A.T`."""
    if 0 in (values.size, x.size):
        return jnp.zeros((x.shape[0], shape[0]), x.dtype)
    if plain():
        return _plain_product(values, columns, row_pointers, x, shape=shape)

    def multiply(x: Array) -> Array:
        # Only this form reaches a kernel on CPU: sparse times dense, both of rank 2, contracted over the
        # sparse matrix's last axis and the dense one's first, of one dtype that is not a half precision,
        # indices and pointers both int32. Anything else falls back to a gather of size nnz × batch without
        # a word. The flags `indices_sorted` and `unique_indices` make no difference.
        matrix = sparse.BCSR((values, columns, row_pointers), shape=shape, indices_sorted=True, unique_indices=True)
        return sparse.bcsr_dot_general(matrix, x.T, dimension_numbers=(((1,), (0,)), ((), ()))).T

    def multiply_padded(x: Array) -> Array:
        # JAX's CPU kernel runs scalar code unless the rows of its output are aligned: at 3072×768, 90%, a batch
        # of 1 takes 3.1 ms, of 8 0.9 ms, of 16 0.5 ms, of 100 2.9 ms, of 128 1.3 ms.
        lanes = max(1, _CACHE_LINE // x.dtype.itemsize)
        return multiply(jnp.pad(x, ((0, -x.shape[0] % lanes), (0, 0))))[: x.shape[0]]

    on_cpu = lambda x: over_batch(multiply_padded, x, shape[0])
    return jax.lax.platform_dependent(x, cpu=on_cpu, default=multiply)


@_widened
def transposed_product(
    values: Inexact[Array, " nnz"],
    columns: Int32[Array, " nnz"],
    row_pointers: Int32[Array, " ends"],
    y: Inexact[Array, "batch out_size"],
    *,
    shape: tuple[int, int],
) -> Inexact[Array, "batch in_size"]:
    """`y @ A`: adds each entry's row of `y.T`, scaled, to the row of the result that its column names."""
    total = jnp.zeros((shape[1], y.shape[0]), y.dtype)
    if 0 in (values.size, y.size):
        return total.T
    y_rows = y.T

    def add(total: Array, part: tuple[Array, Array, Array]) -> tuple[Array, None]:
        values, columns, rows = part
        terms = values[:, None] * y_rows.at[rows].get(mode="clip", indices_are_sorted=True)
        return total.at[columns].add(terms, mode="drop"), None

    parts = (values, columns, row_indices(row_pointers, values.size))
    return _over_chunks(add, total, parts, y.shape[0], padding=(0, *reversed(shape)))[0].T


@_widened
def sampled_product(
    columns: Int32[Array, " nnz"],
    row_pointers: Int32[Array, " ends"],
    y: Inexact[Array, "batch out_size"],
    x: Inexact[Array, "batch in_size"],
    *,
    shape: tuple[int, int],
) -> Inexact[Array, " nnz"]:
    """The entries of `y.T @ x` at the places the matrix stores; 0 for its padding."""
    if 0 in (columns.size, x.size, y.size):
        return jnp.zeros(columns.shape, x.dtype)
    y_rows, x_rows = y.T, x.T

    def dots(carry: None, part: tuple[Array, Array]) -> tuple[None, Array]:
        columns, rows = part
        left = y_rows.at[rows].get(mode="clip", indices_are_sorted=True)
        dots = jnp.sum(left * x_rows.at[columns].get(mode="clip"), axis=1)
        return carry, jnp.where(columns < shape[1], dots, jnp.zeros((), dots.dtype))

    parts = (columns, row_indices(row_pointers, columns.size))
    return _over_chunks(dots, None, parts, x.shape[0], padding=tuple(reversed(shape)))[1]


def row_indices(row_pointers: Int32[Array, " ends"], count: int) -> Int32[Array, " nnz"]:
    """The row of each of `count` stored entries; the number of rows for padding."""
    starts = jnp.zeros(count, jnp.int32).at[row_pointers[1:]].add(1, mode="drop", indices_are_sorted=True)
    return jnp.cumsum(starts, dtype=jnp.int32)


def dense_csr(
    values: Inexact[Array, " nnz"],
    columns: Integer[Array, " nnz"],
    row_pointers: Int32[Array, " ends"],
    shape: tuple[int, int],
) -> Inexact[Array, "out_size in_size"]:
    """The matrix with its zeros."""
    # Transposed: so a convolution on CPU takes its weight, and a product the other factor, without another copy.
    # The first row begins at 0: a zero that is not there before the matrix is (see `not_before`).
    dense = jnp.broadcast_to(row_pointers[0].astype(values.dtype), shape[::-1])
    rows = row_indices(row_pointers, values.size)
    return dense.at[columns.astype(jnp.int32), rows].set(values, mode="drop").T


def _plain_product(
    values: Inexact[Array, " nnz"],
    columns: Int32[Array, " nnz"],
    row_pointers: Int32[Array, " ends"],
    x: Inexact[Array, "batch in_size"],
    *,
    shape: tuple[int, int],
) -> Inexact[Array, "batch out_size"]:
    """`product` by gathers and sums, which every platform has."""
    x_rows = x.T

    def add(total: Array, part: tuple[Array, Array, Array]) -> tuple[Array, None]:
        values, columns, rows = part
        terms = values[:, None] * x_rows.at[columns].get(mode="clip")
        return total.at[rows].add(terms, mode="drop", indices_are_sorted=True), None

    total = jnp.zeros((shape[0], x.shape[0]), x.dtype)
    parts = (values, columns, row_indices(row_pointers, values.size))
    return _over_chunks(add, total, parts, x.shape[0], padding=(0, *reversed(shape)))[0].T


_CACHE_LINE = 64  # bytes
_CHUNK = 2**19  # numbers gathered at a time: 2 MB in float32. Half of it costs a quarter more time.


def _over_chunks(
    step: Callable, carry: Any, parts: tuple[Array, ...], batch: Any, padding: tuple[int, ...]
) -> tuple[Any, Any]:
    """Scans `step` over the stored entries, so that what is gathered for them never has size nnz × batch."""
    count = parts[0].size
    # `jax.export` may leave the batch open: then as for a batch of 128.
    size = min(count, max(1, _CHUNK // (batch if isinstance(batch, int) else 128)))
    chunks = -(-count // size)
    if chunks == 1:
        return step(carry, parts)
    padded = [jnp.pad(p, (0, chunks * size - count), constant_values=v) for p, v in zip(parts, padding, strict=True)]
    carry, out = jax.lax.scan(step, carry, tuple(p.reshape(chunks, size) for p in padded))
    return carry, None if out is None else out.reshape(-1)[:count]
