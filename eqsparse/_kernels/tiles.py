"""Products by tiles: some rows of the matrix are made dense, multiplied, and forgotten.

For layouts whose places are cheap to store and dear to look up. At no time is there more of the dense matrix than
a tile, in the gradients neither.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, Int32, UInt8

from ._native import calls
from .batch import to_be_written
from .bits import spread, unpack
from .linear import SparseProduct

_TILE = 2**16  # weights in a tile: 256 kB in float32, which fits a core's cache with its decoding


def tile_height(shape: tuple[int, int]) -> int:
    """How many rows a tile has."""
    return max(1, min(shape[0], _TILE // max(shape[1], 1)))


def multiply_by_tiles(
    rows: Callable[[Array, int], Array], x: Inexact[Array, "batch in_size"], shape: tuple[int, int]
) -> Inexact[Array, "batch out_size"]:
    """`x @ A.T`."""
    if 0 in (*shape, x.size):
        return jnp.zeros((x.shape[0], shape[0]), x.dtype)
    height = tile_height(shape)

    @jax.checkpoint
    def step(y: Array, start: Array) -> tuple[Array, None]:
        return jax.lax.dynamic_update_slice_in_dim(y, x @ rows(start, height).T, start, 1), None

    starts = jnp.minimum(jnp.arange(-(-shape[0] // height), dtype=jnp.int32) * height, shape[0] - height)
    return jax.lax.scan(step, to_be_written((x.shape[0], shape[0]), x), starts)[0]


# Values and one bit for each position.


def bitmask_starts(bits: UInt8[Array, "out_size packed"]) -> Int32[Array, " out_size"]:
    """Where the values of each row begin."""
    counts = jnp.sum(jnp.bitwise_count(bits), axis=1, dtype=jnp.int32)
    return jnp.cumsum(counts, dtype=jnp.int32) - counts


def bitmask_rows(
    values: Inexact[Array, " nnz"],
    bits: UInt8[Array, "out_size packed"],
    starts: Int32[Array, " out_size"],
    start: Int32[Array, ""],
    count: int,
    in_size: int,
) -> Inexact[Array, "count in_size"]:
    """Rows `start` to `start + count`, dense."""
    bit, before = spread(jax.lax.dynamic_slice_in_dim(bits, start, count))
    place = jax.lax.dynamic_slice_in_dim(starts, start, count)[:, None] + before
    found = values.at[place].get(mode="clip") if values.size else jnp.zeros(place.shape, values.dtype)
    return jnp.where(bit != 0, found, jnp.zeros((), values.dtype))[:, :in_size]


def _bitmask_product(values: Array, bits: Array, x: Array, *, shape: tuple[int, int]) -> Array:
    starts = bitmask_starts(bits)
    rows = lambda start, count: bitmask_rows(values, bits, starts, start, count, shape[1])
    return multiply_by_tiles(rows, x, shape)


bitmask_product = SparseProduct("eqsparse_bitmask", _bitmask_product, faster=[calls("eqsparse_bitmask")])


# n values of each run of m, and their places in it.


def nm_rows(
    values: Inexact[Array, "out_size kept_in_row"],
    places: UInt8[Array, "out_size packed"],
    start: Int32[Array, ""],
    count: int,
    n: int,
    m: int,
    in_size: int,
) -> Inexact[Array, "count in_size"]:
    """Rows `start` to `start + count`, dense."""
    kept = jax.lax.dynamic_slice_in_dim(values, start, count).reshape(count, -1, n)
    codes = unpack(jax.lax.dynamic_slice_in_dim(places, start, count), width(m), values.shape[1])
    codes = codes.reshape(count, -1, n)
    place = jax.lax.broadcasted_iota(jnp.int32, (count, in_size // m, m), 2)
    dense = jnp.zeros(place.shape, values.dtype)
    for i in range(n):
        dense = jnp.where(place == codes[..., i, None], kept[..., i, None], dense)
    return dense.reshape(count, in_size)


def width(m: int) -> int:
    """Bits for a place in a run of `m`."""
    return max(1, (m - 1).bit_length())


def _nm_product(values: Array, places: Array, x: Array, *, shape: tuple[int, int], n: int, m: int) -> Array:
    return multiply_by_tiles(lambda start, count: nm_rows(values, places, start, count, n, m, shape[1]), x, shape)


nm_product = SparseProduct("eqsparse_nm", _nm_product, faster=[calls("eqsparse_nm", "n", "m")])
