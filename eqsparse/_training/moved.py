"""Kept values that move to other places: what an update of masks does to a layer that holds no others."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, Integer, Shaped, UInt32

from .._export import BCSRLayout
from .._kernels import row_indices
from .._selection import Contest, select, share, subtract, wide


class Moves(NamedTuple):
    """Where each entry of a layout was before: `source`, if it `stayed`; else it has grown."""

    source: Int32[Array, " nnz"]
    stayed: Bool[Array, " nnz"]

    def of(self, old: Shaped[Array, "*history nnz"], grown: Shaped[Array, "*history nnz"]) -> Shaped[Array, "..."]:
        """What goes with the entries, after the move."""
        return jnp.where(self.stayed, jnp.take(old, self.source, axis=-1), grown)


def dense_mask(layout: BCSRLayout, kept: Bool[Array, " nnz"] | None = None) -> Bool[Array, "out_size in_size"]:
    """The mask of a layout, or of the entries of it that are `kept`."""
    rows = row_indices(layout.row_pointers, layout.values.size)
    there = jnp.ones(layout.values.shape, bool) if kept is None else kept
    return jnp.zeros(layout.shape, bool).at[rows, layout.columns.astype(jnp.int32)].set(there)


def survivors(worth: Shaped[Array, " nnz"], drop: UInt32[Array, ""]) -> Bool[Array, " nnz"]:
    """The entries that are left when the share `drop` of them goes, those of the least worth; NaN first, of equal
    ones the later."""
    there = wide(worth.size)
    return select(Contest(jnp.where(jnp.isnan(worth), -jnp.inf, worth), 1), subtract(there, share(there, drop)))


def move(layout: BCSRLayout, mask: Bool[Array, "out_size in_size"]) -> tuple[BCSRLayout, Moves]:
    """The layout on another mask of as many weights. What was there keeps its value, the rest is zero."""
    nnz, in_size = layout.values.size, jnp.int32(layout.shape[1])
    pointers = jnp.cumsum(jnp.sum(mask, axis=1, dtype=jnp.int32), dtype=jnp.int32)
    pointers = jnp.concatenate([jnp.zeros(1, jnp.int32), pointers])
    rows = row_indices(pointers, nnz)
    # The how manieth of its row each entry is, from one; and how many of the row there are up to each column.
    nth = jnp.arange(1, nnz + 1, dtype=jnp.int32) - pointers[rows]
    columns = _first_to_reach(nth, jnp.cumsum(mask, axis=1, dtype=_counter(layout.shape[1])), rows)
    old = row_indices(layout.row_pointers, nnz) * in_size + layout.columns.astype(jnp.int32)
    new = rows * in_size + columns
    source = jnp.minimum(jnp.searchsorted(old, new).astype(jnp.int32), jnp.int32(max(nnz - 1, 0)))
    moves = Moves(source, old[source] == new)
    values = moves.of(layout.values, jnp.zeros_like(layout.values))
    columns = columns.astype(layout.columns.dtype)
    return BCSRLayout(values, layout.shape, columns, pointers, layout.widest), moves


def _first_to_reach(
    count: Int32[Array, " nnz"], counted: Integer[Array, "out_size in_size"], rows: Int32[Array, " nnz"]
) -> Int32[Array, " nnz"]:
    """The first column of its row at which each entry's count is reached: by bisection."""
    size = counted.shape[1]

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        reached = counted[rows, middle].astype(jnp.int32) >= count
        return jnp.where(reached, low, middle + 1), jnp.where(reached, middle, high)

    bounds = jnp.zeros_like(rows), jnp.full_like(rows, size - 1)
    return jax.lax.fori_loop(0, max(size - 1, 1).bit_length(), halve, bounds)[1]


def _counter(largest: int) -> Any:
    """The smallest dtype that counts so far."""
    return jnp.uint8 if largest < 2**8 else jnp.uint16 if largest < 2**16 else jnp.int32
