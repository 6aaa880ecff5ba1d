"""Whole rows, columns or filters."""

from typing import final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped, UInt32

from .._check import integer
from .._selection import in_float32
from .base import AbstractPooling, Geometry, is_lot


@final
class Channel(AbstractPooling):
    """All weights with the same index along one axis are kept or removed together, worth their average score.

    `Channel(0)` removes output channels (rows of a Linear, filters of a Conv), `Channel(1)` input channels.
    """

    axis: int = eqx.field(static=True)

    def __init__(self, axis: int = 0):
        """**Arguments:**

        - `axis`: Axis of one layer's weight whose entries are the channels.
        """
        self.axis = integer(axis, "Channel(axis=...)")

    def pooled(self, scores: Shaped[Array, "..."], geometry: Geometry) -> Shaped[Array, "..."]:
        others = self._others(scores.ndim, geometry)
        if is_lot(scores):
            for axis in others:  # by sums, as nothing can be sliced out of a sharded axis
                first = (jnp.arange(scores.shape[axis]) == 0).astype(scores.dtype)
                scores = scores * first.reshape(*(-1 if a == axis else 1 for a in range(scores.ndim)))
            return jnp.sum(scores, axis=others, keepdims=True, dtype=scores.dtype)
        return jnp.mean(in_float32(scores), axis=others, keepdims=True)

    def sizes(self, core: tuple[int, ...]) -> int:
        size = 1
        for axis, length in enumerate(core):
            size *= 1 if axis == self.axis % len(core) else length
        return size

    def spread(self, chosen: Bool[Array, "..."], shape: tuple[int, ...], geometry: Geometry) -> Bool[Array, "..."]:
        return jnp.broadcast_to(chosen, shape)

    def rivals(self, geometry: Geometry) -> int:
        return geometry.core_rank

    def check(self, path: str, core: tuple[int, ...], density: UInt32[Array, ""] | None, geometry: Geometry) -> None:
        if not -len(core) <= self.axis < len(core):
            at = f"shape {core}" + (f" at `{path}`" if path else "")
            raise ValueError(f"`Channel(axis=...)` must be an axis of the weight. Got {self.axis} for {at}.")

    def _others(self, rank: int, geometry: Geometry) -> tuple[int, ...]:
        channel = rank + geometry.place(self.axis)
        return tuple(a for a in range(rank - geometry.core_rank, rank) if a != channel)
