"""Kept values that move to other places: what an update of masks does to a layer that holds no others."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, Shaped, UInt32

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
    nnz, in_size = layout.values.size, layout.shape[1]
    before, now = dense_mask(layout).reshape(-1), mask.reshape(-1)
    place = jnp.cumsum(before, dtype=jnp.int32) - 1
    flat = jnp.nonzero(now, size=nnz, fill_value=0)[0].astype(jnp.int32)
    moves = Moves(jnp.maximum(place[flat], 0), before[flat])
    ends = jnp.cumsum(jnp.sum(mask, axis=1, dtype=jnp.int32), dtype=jnp.int32)
    values = moves.of(layout.values, jnp.zeros_like(layout.values))
    columns = (flat % jnp.int32(in_size)).astype(layout.columns.dtype)
    pointers = jnp.concatenate([jnp.zeros(1, jnp.int32), ends])
    return BCSRLayout(values, layout.shape, columns, pointers, layout.widest), moves
