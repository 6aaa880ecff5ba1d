"""Tiles of weights."""

import math
from typing import final, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Shaped, UInt32

from .._check import integers
from .._selection import in_float32
from .base import AbstractPooling, Geometry, is_lot


@final
class Block(AbstractPooling):
    """Whole tiles of weights are kept or removed.

    Where the shape does not divide, the tiles at the far edges are smaller; their score is pooled over the
    weights they have, and they count with these. As many tiles are kept as come nearest to the target.

    ??? cite

        [GPU Kernels for Block-Sparse Weights](https://arxiv.org/abs/1711.09224);
        [Block-Sparse Recurrent Neural Networks](https://arxiv.org/abs/1711.02782)
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    pool: Literal["avg", "max"] = eqx.field(static=True)
    axes: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, shape: tuple[int, ...], pool: Literal["avg", "max"] = "avg", axes: tuple[int, ...] = (0, 1)):
        """**Arguments:**

        - `shape`: Lengths of a tile, one for each of `axes`.
        - `pool`: A tile is worth the average or the maximum of its weights' scores.
        - `axes`: Axes of one layer's weight that the tiles span.
        """
        shape, axes = integers(shape, "Block(shape=...)"), integers(axes, "Block(axes=...)")
        if len(shape) != len(axes) or len(set(axes)) != len(axes):
            raise ValueError(
                f"`Block(shape=..., axes=...)` must have one length for each of different axes. Got {shape}, {axes}."
            )
        if not shape or min(shape) < 1:
            raise ValueError(f"`Block(shape=...)` must be lengths of at least 1. Got {shape}.")
        if pool not in ("avg", "max"):
            raise ValueError(f'`Block(pool=...)` must be "avg" or "max". Got {pool!r}.')
        self.shape, self.pool, self.axes = shape, pool, axes

    def pooled(self, scores: Shaped[Array, "..."], geometry: Geometry) -> Shaped[Array, "..."]:
        tile = self._tile(geometry.core_rank)
        core = geometry.core(scores.shape)
        stack = scores.ndim - len(core)
        if is_lot(scores):
            strides = (*(1,) * stack, *tile)  # as a slice of JAX's own: indexing may gather what is sharded
            return jax.lax.slice(scores, (0,) * scores.ndim, scores.shape, strides)
        scores = in_float32(scores)
        if self.pool == "avg":
            total = jnp.sum(_tiled(scores, core, tile, 0.0), axis=_within(stack, len(core)))
            sizes = jnp.asarray(np.broadcast_to(self.sizes(core), total.shape[stack:]), total.dtype)
            return total / jnp.broadcast_to(sizes, total.shape)
        # A NaN ranks below every number: it must not hide the others of its tile.
        tiled = _tiled(scores, core, tile, jnp.nan)
        known = ~jnp.isnan(tiled)
        within = _within(stack, len(core))
        largest = jnp.max(jnp.where(known, tiled, -jnp.inf), axis=within)
        return jnp.where(jnp.any(known, axis=within), largest, jnp.nan)

    def sizes(self, core: tuple[int, ...]) -> int | np.ndarray:
        tile = self._tile(len(core))
        if all(d % b == 0 for d, b in zip(core, tile, strict=True)):
            return math.prod(tile)
        lengths = [np.minimum(b, d - b * np.arange(-(-d // b))) for d, b in zip(core, tile, strict=True)]
        return np.asarray(np.prod(np.stack(np.meshgrid(*lengths, indexing="ij")), axis=0), np.uint32)

    def spread(self, chosen: Bool[Array, "..."], shape: tuple[int, ...], geometry: Geometry) -> Bool[Array, "..."]:
        tile = self._tile(geometry.core_rank)
        stack = chosen.ndim - len(tile)
        for axis, length in enumerate(tile, start=stack):
            chosen = _repeated(chosen, axis, length)
        return chosen[(slice(None),) * stack + tuple(slice(0, d) for d in shape[stack:])]

    def rivals(self, geometry: Geometry) -> int:
        return geometry.core_rank

    def runs(self, geometry: Geometry) -> dict[int, int]:
        return {geometry.place(axis): length for axis, length in zip(self.axes, self.shape, strict=True)}

    def check(self, path: str, core: tuple[int, ...], density: UInt32[Array, ""] | None, geometry: Geometry) -> None:
        at = f"shape {core}" + (f" at `{path}`" if path else "")
        if not all(-len(core) <= axis < len(core) for axis in self.axes):
            raise ValueError(f"`Block(axes=...)` must be axes of the weight. Got {self.axes} for {at}.")
        if len({axis % len(core) for axis in self.axes}) < len(self.axes):
            raise ValueError(f"`Block(axes=...)` must be different axes of the weight. Got {self.axes} for {at}.")

    def _tile(self, rank: int) -> tuple[int, ...]:
        """Lengths of a tile along all axes of the core."""
        lengths = {axis % rank: b for axis, b in zip(self.axes, self.shape, strict=True)}
        return tuple(lengths.get(axis, 1) for axis in range(rank))


def _tiled(array: Array, core: tuple[int, ...], tile: tuple[int, ...], fill: float) -> Array:
    """Each core axis split into (groups, tile), padded at the far edge."""
    stack = array.ndim - len(core)
    groups = [-(-d // b) for d, b in zip(core, tile, strict=True)]
    missing = [(0, g * b - d) for g, b, d in zip(groups, tile, core, strict=True)]
    if any(far for _, far in missing):
        array = jnp.pad(array, [(0, 0)] * stack + missing, constant_values=fill)
    for axis in reversed(range(len(core))):  # one at a time, as reshapes of sharded arrays must be
        shape, place = array.shape, stack + axis
        array = array.reshape(*shape[:place], groups[axis], tile[axis], *shape[place + 1 :])
    return array


def _repeated(array: Array, axis: int, times: int) -> Array:
    """Each entry along an axis several times over."""
    shape = array.shape
    spread = jnp.broadcast_to(jnp.expand_dims(array, axis + 1), (*shape[: axis + 1], times, *shape[axis + 1 :]))
    return spread.reshape(*shape[:axis], shape[axis] * times, *shape[axis + 1 :])


def _within(stack: int, rank: int) -> tuple[int, ...]:
    return tuple(stack + 2 * i + 1 for i in range(rank))
