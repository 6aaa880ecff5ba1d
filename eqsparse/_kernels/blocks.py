"""Products of a matrix of dense blocks."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, Integer

from . import _native, _pallas
from .linear import SparseProduct

_CHUNK = 2**19  # numbers gathered at a time


def _product(
    values: Inexact[Array, "blocks height width"],
    rows: Integer[Array, " blocks"],
    columns: Integer[Array, " blocks"],
    x: Inexact[Array, "batch in_size"],
    *,
    shape: tuple[int, int],
) -> Inexact[Array, "batch out_size"]:
    """`x @ A.T`: a batch of dense products, added up by rows of blocks. A block in a row past the last is padding."""
    blocks, height, width = values.shape
    batch, down, across = x.shape[0], -(-shape[0] // height), -(-shape[1] // width)
    if 0 in (blocks, x.size):
        return jnp.zeros((batch, shape[0]), x.dtype)
    total = jnp.float32 if x.dtype.itemsize < 4 else x.dtype
    parts = jnp.pad(x, ((0, 0), (0, across * width - shape[1]))).reshape(batch, across, width).transpose(1, 0, 2)
    size = min(blocks, max(1, _CHUNK // (batch * (height + width))))

    @jax.checkpoint
    def add(y: Array, chunk: tuple[Array, Array, Array]) -> tuple[Array, None]:
        values, rows, columns = chunk
        gathered = parts.at[columns].get(mode="clip").astype(total)
        products = jax.lax.dot_general(gathered, values.astype(total), (((2,), (2,)), ((0,), (0,))))
        return y.at[rows].add(products, mode="drop", indices_are_sorted=True), None

    whole = blocks // size * size
    chunked = tuple(a[:whole].reshape(-1, size, *a.shape[1:]) for a in (values, _wide(rows), _wide(columns)))
    y = jnp.zeros((down, batch, height), total)
    y = jax.lax.scan(add, y, chunked)[0]
    if whole < blocks:
        y = add(y, (values[whole:], _wide(rows[whole:]), _wide(columns[whole:])))[0]
    return y.transpose(1, 0, 2).reshape(batch, down * height)[:, : shape[0]].astype(x.dtype)


def _wide(indices: Array) -> Array:
    return indices.astype(jnp.int32)


_faster = (_pallas.calls(), _native.calls("eqsparse_block", fewest=2))
block_product = SparseProduct("eqsparse_block", _product, faster=_faster)
