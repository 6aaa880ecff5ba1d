"""N of every M neighbours."""

from typing import final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Shaped, UInt32

from .._check import integer, known
from .._selection import count_up, FULL, HALF_STEP, Pending, select_in_runs
from .base import AbstractStructure, Geometry


@final
class NM(AbstractStructure):
    """At most `n` of every `m` neighbours along an axis are kept once the target `1 - n/m` is reached.

    On the way there `max(n, ceil(m * (1 - sparsity)))` of each run are kept, never less than asked: 2:4
    passes through 4:4 and 3:4 under a schedule. The competition is within the run, so a target beyond
    `1 - n/m` and a global distribution are errors.

    ??? cite

        [Accelerating Sparse Deep Neural Networks](https://arxiv.org/abs/2104.08378)
    """

    n: int = eqx.field(static=True)
    m: int = eqx.field(static=True)
    axis: int | None = eqx.field(static=True)

    def __init__(self, n: int, m: int, axis: int | None = None):
        """**Arguments:**

        - `n`: How many of a run are kept at the target.
        - `m`: Length of a run.
        - `axis`: Axis of one layer's weight along which runs lie. By default the one that is summed over when
            the layer is called: the last of a Linear's, axis 1 of a Conv's; the last of a bare array.
        """
        n, m = integer(n, "NM(n=...)"), integer(m, "NM(m=...)")
        if not 1 <= n <= m:
            raise ValueError(f"`NM(n, m)` must have 1 <= n <= m. Got n={n}, m={m}.")
        self.n, self.m = n, m
        self.axis = None if axis is None else integer(axis, "NM(axis=...)")

    def enter(
        self,
        scores: Shaped[Array, "..."],
        density: UInt32[Array, ""],
        geometry: Geometry,
        kept: Bool[Array, "..."] | None = None,
    ) -> Pending:
        keep = count_up(self.m, density).clip(np.uint32(self.n), np.uint32(self.m))
        axis = scores.ndim + self._place(geometry)
        if scores.shape[axis] % self.m:  # `check` lets only dense weights through
            return Pending([], lambda _: jnp.ones_like(scores, bool))
        return Pending([], lambda _: select_in_runs(scores, self.m, axis, keep, kept))

    def runs(self, geometry: Geometry) -> dict[int, int]:
        return {self._place(geometry): self.m}

    def check(self, path: str, core: tuple[int, ...], density: UInt32[Array, ""] | None, geometry: Geometry) -> None:
        axis = geometry.contraction_axis if self.axis is None else self.axis
        if not core or not -len(core) <= axis < len(core):
            raise ValueError(f"`{self}` needs an axis {axis}. Got shape {core}{_at(path)}.")
        length = core[axis]
        asked = int(density) if density is not None and known(density) else None
        if asked == FULL:
            return
        if length % self.m:
            raise ValueError(
                f"`{self}` must divide the axis its runs lie on. Got length {length} of axis {axis} of shape "
                f"{core}{_at(path)}."
            )
        if asked is not None and self.m * (asked + HALF_STEP) < self.n << 32:
            raise ValueError(
                f"`{self}` reaches a sparsity of {1 - self.n / self.m:g} at most. Got a target of "
                f"{1 - asked / 2**32:g}{_at(path)}."
            )

    def _place(self, geometry: Geometry) -> int:
        return geometry.place(geometry.contraction_axis if self.axis is None else self.axis)


def _at(path: str) -> str:
    return f" at `{path}`" if path else ""
