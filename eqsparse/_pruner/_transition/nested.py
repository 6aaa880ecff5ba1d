"""A set that runs, inside a larger one that trains."""

from typing import final

import jax.numpy as jnp

from ..._distribution import AbstractDistribution
from ..plan import apart
from .base import AbstractTransition, Masks, Moment, WORTH


@final
class Nested(AbstractTransition):
    """The best weights run; the best of a larger number train. Both at their targets from `init` on, chosen afresh
    at each update."""

    backward: AbstractDistribution

    def groups(self, moment: Moment) -> list[tuple[str, ...]]:
        return apart([moment.plan, moment.plan_for(self.backward)])

    def start(self, masks: Masks, moment: Moment) -> tuple[Masks, Masks]:
        return self.update(masks, moment) if moment.scorable(WORTH) else (masks, masks)

    def update(self, masks: Masks, moment: Moment) -> tuple[Masks, Masks]:
        scores = moment.scored(WORTH)
        forward = moment.choose_target(scores)
        wide = moment.plan_for(self.backward).masks(scores)
        trained = {path: mask | wide.get(path, jnp.ones_like(mask)) for path, mask in forward.items()}
        return forward, trained
