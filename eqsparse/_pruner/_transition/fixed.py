"""Masks that stay."""

from typing import final

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool

from ..._criterion import AbstractCriterion, Random
from ..._schedule import AbstractSchedule
from .base import AbstractTransition, Masks, Moment

DRAW = "draw"
"""The role of the criterion that masks are drawn by at `init`."""


@final
class Kept(AbstractTransition):
    """Masks stay as they are in the model."""

    def is_due(self, schedule: AbstractSchedule, step: ArrayLike) -> bool:
        return False

    def update(self, masks: Masks, moment: Moment) -> tuple[Masks, Masks]:
        return masks, {}


@final
class Fixed(AbstractTransition):
    """Masks stay as `init` draws them: each site and each layer of a stack its own, exactly at the target.

    A model whose masks remove something already keeps them: to go on training a pruned model.
    """

    def criteria(self) -> dict[str, AbstractCriterion]:
        return {DRAW: Random()}

    def is_due(self, schedule: AbstractSchedule, step: ArrayLike) -> bool:
        return False

    def start(self, masks: Masks, moment: Moment) -> tuple[Masks, Masks]:
        return drawn(masks, moment), {}

    def update(self, masks: Masks, moment: Moment) -> tuple[Masks, Masks]:
        return masks, {}


def drawn(masks: Masks, moment: Moment) -> Masks:
    """Masks drawn by lot, in the place of those that keep everything (if all of them do)."""
    if not masks:
        return masks
    new = moment.choose_target(moment.scored(DRAW))
    untouched: Bool[Array, ""] = jnp.all(jnp.stack([jnp.all(mask) for mask in masks.values()]))
    return {path: jnp.where(untouched, new[path], mask) for path, mask in masks.items()}
