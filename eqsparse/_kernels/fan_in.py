"""Gather and sum: the product of a matrix whose rows all store as many entries.

The arrays are stored by entries, not by rows: `values[k]` and `columns[k]` are the k-th entries of all rows. So
each step of a loop adds, to all rows of the result, one scaled row of `x.T` each, in vector instructions over the
batch and on all cores. Column `in` (one past the end) is padding.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, Integer

from ._native import calls
from .batch import over_batch
from .linear import SparseProduct

# Entries of each row added in one pass over the result. On 2 cores, 3072×768 at 90%, batch 128, with 8: 4.0 ms,
# with 16: 5.1, with 32: 6.8; a dense product took 10.1, JAX's CSR kernel 6.3.
_UNROLL = 8


def _product(
    values: Inexact[Array, "fan_in out_size"],
    columns: Integer[Array, "fan_in out_size"],
    x: Inexact[Array, "batch in_size"],
    *,
    shape: tuple[int, int],
) -> Inexact[Array, "batch out_size"]:
    def multiply(x: Array) -> Array:
        x_rows = _rows(x)

        def add(y: Array | None, values: Array, columns: Array) -> Array | None:
            for value, column in zip(values, columns, strict=True):
                row = x_rows.at[column.astype(jnp.int32)].get(mode="promise_in_bounds")
                term = value.astype(row.dtype)[:, None] * row
                y = term if y is None else y + term
            return y

        def step(i: Array, y: Array) -> Array | None:
            part = lambda array: jax.lax.dynamic_slice_in_dim(array, rest + i * _UNROLL, _UNROLL)
            return add(y, part(values), part(columns))

        # What the steps of the loop leave over comes first: the loop begins with it, not with zeros, as `batch.py`
        # tells.
        fan_in = values.shape[0]
        rest = fan_in % _UNROLL or min(fan_in, _UNROLL)
        y = add(None, values[:rest], columns[:rest])
        if y is None:
            return jnp.zeros((x.shape[0], shape[0]), x.dtype)
        steps = (fan_in - rest) // _UNROLL
        return (jax.lax.fori_loop(0, steps, step, y) if steps else y).T.astype(x.dtype)

    return over_batch(multiply, x, shape[0])


def _transposed(values: Array, columns: Array, y: Array, *, shape: tuple[int, int]) -> Array:
    y_rows = y.T.astype(_total(y))

    def step(total: Array, entry: tuple[Array, Array]) -> tuple[Array, None]:
        value, column = entry
        return total.at[column.astype(jnp.int32)].add(value.astype(total.dtype)[:, None] * y_rows, mode="drop"), None

    total = jnp.zeros((shape[1], y.shape[0]), y_rows.dtype)
    return jax.lax.scan(step, total, (values, columns))[0].T.astype(y.dtype)


def _sampled(columns: Array, y: Array, x: Array, *, shape: tuple[int, int], stored: tuple[int, ...]) -> Array:
    y_rows, x_rows = y.T.astype(_total(y)), _rows(x)

    def dots(column: Array) -> Array:
        row = x_rows.at[column.astype(jnp.int32)].get(mode="promise_in_bounds")
        return jnp.sum(y_rows * row, axis=1).astype(x.dtype)

    return jax.lax.map(dots, columns)


# Gathered and summed by XLA a product is as fast as by a kernel that has to sort entries by rows first.
_native = calls("eqsparse_fan_in", fewest=2)._replace(product=None)
fan_in_product = SparseProduct("eqsparse_fan_in", _product, _transposed, _sampled, [_native])


def _rows(x: Array) -> Array:
    """`x.T`, and a row of zeros for the padding."""
    return jnp.pad(x.astype(_total(x)), ((0, 0), (0, 1))).T


def _total(x: Array) -> jnp.dtype:
    return jnp.dtype(jnp.float32) if x.dtype.itemsize < 4 else x.dtype
