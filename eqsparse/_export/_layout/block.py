"""Dense blocks."""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Inexact, Int32, Integer

from ..._kernels import block_product
from .base import AbstractLayout
from .host import padded, Slices, smallest


@final
class BlockLayout(AbstractLayout):
    """Kept blocks, and the coordinates of each: batched dense products. For masks of `eqsparse.Block` or `Channel`.

    Blocks are as large as the mask allows: the largest tiles, counted from the first row and column, in which nothing
    changes. Those at the far edges may stick out. Slices of a stack with fewer blocks than others are padded with
    blocks of zeros below the last row.
    """

    values: Inexact[Array, "*stack blocks height width"]
    shape: tuple[int, int] = eqx.field(static=True)
    block_rows: Integer[Array, "*stack blocks"]
    block_columns: Integer[Array, "*stack blocks"]
    widest: int = eqx.field(static=True)  # blocks in the fullest row of blocks

    name = "block"
    rule = "made of whole blocks of more than one weight"
    value_rank = 3

    @classmethod
    def encode(cls, slices: Slices) -> "BlockLayout":
        height, width = _tile(slices.kept)
        chosen = slices.kept[:, ::height, ::width]
        down, across = chosen.shape[1:]
        most = int(np.count_nonzero(chosen, axis=(1, 2)).max(initial=0))
        edges = ((0, 0), (0, down * height - slices.shape[0]), (0, across * width - slices.shape[1]))
        tiles = np.pad(slices.weights, edges).reshape(-1, down, height, across, width).swapaxes(2, 3)
        places = [np.nonzero(one) for one in chosen]
        return cls(
            slices.restack(padded([t[c] for t, c in zip(tiles, chosen, strict=True)], most, 0, slices.weights.dtype)),
            slices.shape,
            slices.restack(padded([rows for rows, _ in places], most, down, smallest(down))),
            slices.restack(padded([columns for _, columns in places], most, 0, smallest(across))),
            int(np.count_nonzero(chosen, axis=2).max(initial=0)),
        )

    @classmethod
    def bytes_of(cls, kept: Bool[np.ndarray, "slices out_size in_size"], itemsize: int) -> int | None:
        height, width = _tile(kept)
        if height * width == 1:
            return None
        chosen = kept[:, ::height, ::width]
        most = int(np.count_nonzero(chosen, axis=(1, 2)).max(initial=0))
        indices = sum(np.dtype(smallest(size)).itemsize for size in chosen.shape[1:])
        return len(kept) * most * (height * width * itemsize + indices)

    def rows(self, start: Int32[Array, ""], count: int) -> Inexact[Array, "count in_size"]:
        blocks, height, width = self.values.shape
        across = -(-self.shape[1] // width)
        down = -(-self.shape[0] // height)
        first = start // height
        reached = min(down, (count - 1) // height + 2)  # rows of blocks that `count` rows can touch
        first = jnp.minimum(first, down - reached)
        window = min(blocks, reached * self.widest)
        rows = self.block_rows.astype(jnp.int32)
        at = jnp.minimum(jnp.searchsorted(rows, first).astype(jnp.int32), blocks - window)
        part = lambda array: jax.lax.dynamic_slice_in_dim(array, at, window)
        row = part(rows) - first
        row = jnp.where(row < 0, reached, row)  # dropped
        dense = jnp.zeros((reached, across, height, width), self.values.dtype)
        dense = dense.at[row, part(self.block_columns).astype(jnp.int32)].set(part(self.values), mode="drop")
        lines = dense.swapaxes(1, 2).reshape(reached * height, across * width)
        return jax.lax.dynamic_slice_in_dim(lines, start - first * height, count)[:, : self.shape[1]]

    def kept(self, values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> Bool[np.ndarray, "out_size in_size"]:
        _, height, width = values.shape
        chosen = np.zeros((-(-self.shape[0] // height) + 1, -(-self.shape[1] // width)), bool)  # padding is below
        chosen[rows, columns] = True
        return np.repeat(np.repeat(chosen, height, 0), width, 1)[: self.shape[0], : self.shape[1]]

    def product(self, x: Array) -> Inexact[Array, "*batch out_size"]:
        return block_product(self.values, (self.block_rows, self.block_columns), x, self.shape)


def _tile(kept: Bool[np.ndarray, "slices out_size in_size"]) -> tuple[int, int]:
    """The largest block in which nothing changes. Tiles constant along each axis are constant blocks."""
    return _run(kept, 1), _run(kept, 2)


def _run(kept: np.ndarray, axis: int) -> int:
    lines = np.moveaxis(kept, axis, 0)
    if 0 in kept.shape:
        return 1
    changes = np.any(lines[1:] != lines[:-1], axis=(1, 2))
    return int(np.gcd.reduce(np.flatnonzero(changes) + 1)) or len(lines)
