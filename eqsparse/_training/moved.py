"""Kept values that move to other places: what an update of masks does to a layer that holds no others."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, Integer, Shaped, UInt32

from .._export import BCSRLayout
from .._kernels import row_indices
from .._selection import Contest, select, share, subtract, wide

_BITS = 32  # of a word


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
    words = _packed(mask)  # a bit for each weight: what passes over it passes over an eighth of the mask
    in_words = jnp.bitwise_count(words).astype(jnp.int32)
    pointers = jnp.cumsum(jnp.sum(in_words, axis=1, dtype=jnp.int32), dtype=jnp.int32)
    pointers = jnp.concatenate([jnp.zeros(1, jnp.int32), pointers])
    rows = row_indices(pointers, nnz)
    # The how manieth of its row each entry is, from one; the word that it lies in; and the how manieth of that.
    nth = jnp.arange(1, nnz + 1, dtype=jnp.int32) - pointers[rows]
    counted = jnp.cumsum(in_words, axis=1, dtype=jnp.int32)
    word = _first_to_reach(nth, counted, rows)
    nth = nth - (counted[rows, word] - in_words[rows, word])
    columns = word * _BITS + _place_of_nth(words[rows, word], nth)
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


def _packed(mask: Bool[Array, "out_size in_size"]) -> UInt32[Array, "out_size words"]:
    """The mask in words, the first column in the lowest bit."""
    columns = mask.shape[1]
    whole = jnp.pad(mask, ((0, 0), (0, -columns % _BITS))).reshape(len(mask), -(-columns // _BITS), _BITS)
    places = jax.lax.broadcasted_iota(jnp.uint32, whole.shape, 2)
    return jnp.sum(whole.astype(jnp.uint32) << places, axis=2, dtype=jnp.uint32)


def _place_of_nth(words: UInt32[Array, " nnz"], nth: Int32[Array, " nnz"]) -> Int32[Array, " nnz"]:
    """The place of the nth bit that is set, from one: by halving what it can lie in."""
    place = jnp.zeros_like(nth)
    for half in (16, 8, 4, 2, 1):
        low = jnp.bitwise_count(words & (2**half - 1)).astype(jnp.int32)
        is_above = nth > low
        place = jnp.where(is_above, place + half, place)
        nth = jnp.where(is_above, nth - low, nth)
        words = jnp.where(is_above, words >> half, words)
    return place
