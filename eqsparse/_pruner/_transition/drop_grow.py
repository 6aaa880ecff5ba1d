"""Some weights go, as many come."""

from collections.abc import Callable
from typing import Any, final

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Float32, Shaped

from ..._check import unit
from ..._criterion import AbstractCriterion, Random
from ..._schedule import AbstractSchedule
from ..._selection import density_of
from .base import AbstractBudgetwise, by_path, Masks, Moment, ranked_last, WORTH
from .fixed import DRAW, drawn

GAIN = "gain"
"""The role of the criterion that says what a removed weight would gain."""


@final
class DropGrow(AbstractBudgetwise):
    """At an update a share of the weights that are there is dropped, and as many grow: the count stays.

    Two exact selections: of the weights there, those of most worth stay; then the target is filled up with those of
    most gain, which may be some just dropped (they keep their values then). A weight whose gain is NaN never grows.
    What a structure keeps together is dropped and grown together; N:M runs that lose a weight grow one.

    Masks are drawn at `init`, as those of `Fixed`.
    """

    grow: AbstractCriterion
    drop_fraction: Float32[Array, "..."] | Callable[[Any], Any]

    def __init__(self, grow: AbstractCriterion, drop_fraction: ArrayLike | Callable[[Any], Any] = 0.3):
        """**Arguments:**

        - `grow`: What a removed weight would gain.
        - `drop_fraction`: Share of the weights that go, in `[0, 1]`: a number at step 0, falling with a cosine to 0 at
            the schedule's last update (staying if it has none); or a function of the step, as Optax's schedules.
        """
        self.grow = grow
        numeric = not callable(drop_fraction)
        self.drop_fraction = unit(drop_fraction, "drop_fraction") if numeric else drop_fraction

    def criteria(self) -> dict[str, AbstractCriterion]:
        return {GAIN: self.grow, DRAW: Random()}

    def start(self, masks: Masks, moment: Moment) -> tuple[Masks, Masks]:
        return drawn(masks, moment), {}

    def update(self, masks: Masks, moment: Moment) -> tuple[Masks, Masks]:
        worth = ranked_last(moment.plan, moment.scored(WORTH), masks)
        drop = density_of(1 - self.fraction(moment.schedule, moment.step))  # that share of the weights
        stay = moment.plan.survivors(worth, masks, drop)
        gain = by_path(unknown_last, moment.scored(GAIN), masks)
        return moment.choose_target(gain, stay), {}

    def fraction(self, schedule: AbstractSchedule | None, step: ArrayLike | None) -> Float[Array, ""]:
        """The share that goes at a step."""
        if callable(self.drop_fraction):
            return jnp.clip(jnp.asarray(self.drop_fraction(step), jnp.float32), 0, 1)
        last = None if schedule is None else schedule.last()
        if last is None:
            return self.drop_fraction
        way = jnp.clip(jnp.asarray(step, jnp.float32) / jnp.maximum(last, 1).astype(jnp.float32), 0, 1)
        return self.drop_fraction * (1 + jnp.cos(jnp.float32(np.pi) * way)) / 2


def unknown_last(gain: Shaped[Array, "*shape"], mask: Bool[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """Gains of which NaN ranks last; rather than grow such a weight, one just dropped comes back."""
    if jnp.issubdtype(gain.dtype, jnp.unsignedinteger):
        return gain
    return jnp.where(jnp.isnan(gain) & mask, -jnp.inf, gain)
