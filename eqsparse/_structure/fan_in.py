"""The same number of inputs for each output."""

import math
from typing import final

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Shaped, UInt32

from .._check import unit
from .._selection import Contest, count, Heat, Pending, select, Wide
from .base import AbstractStructure, Geometry


@final
class FixedFanIn(AbstractStructure):
    """Each output (the first axis of one layer's weight) keeps the same number of weights, at least one.

    With `ablation`, drop and grow also remove whole outputs, as SRigL does: those with fewer *salient* weights than
    `ablation` times the fan-in, where salient are the weights that stay and those that would grow if all
    competed with all. The other outputs share what becomes free, each the same (a remainder smaller than the
    number of outputs is lost). Unlike in the paper's code, an output may come back once its weights are salient.

    ??? cite

        [Dynamic Sparse Training with Structured Sparsity](https://arxiv.org/abs/2305.02299), section 3
    """

    ablation: Float32[Array, "..."] | None

    def __init__(self, ablation: Float[Array, ""] | float | None = None):
        """**Arguments:**

        - `ablation`: The paper's γ, in `[0, 1]` (0.3 there, 0.95 for vision transformers); `None` removes no output.
        """
        self.ablation = None if ablation is None else unit(ablation, "FixedFanIn(ablation=...)")

    def enter(
        self,
        scores: Shaped[Array, "..."],
        density: UInt32[Array, ""],
        geometry: Geometry,
        kept: Bool[Array, "..."] | None = None,
    ) -> Pending:
        shape, core = scores.shape, geometry.core(scores.shape)
        if math.prod(core) == 0:
            return Pending([], lambda _: jnp.zeros(shape, bool))
        rows = shape[: len(shape) - geometry.core_rank + 1]
        each = jnp.broadcast_to(self._fan_in(core, density), rows)
        if kept is not None and self.ablation is not None:
            active, each = self._ablated(scores, geometry, kept, each, self.ablation)
            kept = kept & active.reshape(*rows, *(1 for _ in core[1:]))
        contest = Contest(scores, geometry.core_rank - 1, 1, kept)
        return Pending([Heat([contest], Wide(jnp.zeros_like(each), each))], lambda winners: winners[0][0])

    def check(self, path: str, core: tuple[int, ...], density: UInt32[Array, ""] | None, geometry: Geometry) -> None:
        if len(core) < 2:
            at = f" at `{path}`" if path else ""
            raise ValueError(f"`FixedFanIn` needs a weight with an output axis and an input axis. Got {core}{at}.")

    def _fan_in(self, core: tuple[int, ...], density: UInt32[Array, ""]) -> UInt32[Array, ""]:
        least = jnp.where(density > 0, jnp.uint32(1), jnp.uint32(0))
        return jnp.maximum(count(math.prod(core[1:]), density).lo, least)

    def _ablated(
        self,
        scores: Shaped[Array, "..."],
        geometry: Geometry,
        kept: Bool[Array, "..."],
        each: UInt32[Array, "*rows"],
        ablation: Float32[Array, ""],
    ) -> tuple[Bool[Array, "*rows"], UInt32[Array, "*rows"]]:
        """Which outputs stay, and the fan-in of each."""
        outputs, fan_in = each.shape[-1], math.prod(geometry.core(scores.shape)[1:])
        budget = each[..., 0] * jnp.uint32(outputs)
        salient = select(self.contest(scores, geometry, kept), Wide(jnp.zeros_like(budget), budget))
        inputs = tuple(range(each.ndim, scores.ndim))
        worth = jnp.sum(salient, axis=inputs, dtype=jnp.uint32)
        active = worth.astype(jnp.float32) >= ablation * each.astype(jnp.float32)
        active = active | ~jnp.any(active, axis=-1, keepdims=True)
        shared = budget[..., None] // jnp.sum(active, axis=-1, keepdims=True, dtype=jnp.uint32)
        grown = jnp.minimum(shared, jnp.uint32(fan_in))
        return active, jnp.where(active, grown, jnp.uint32(0))
