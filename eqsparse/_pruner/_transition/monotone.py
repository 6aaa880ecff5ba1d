"""What is removed never comes back."""

from typing import final

import jax.numpy as jnp

from .base import AbstractBudgetwise, by_path, Masks, Moment, ranked_last, WORTH


@final
class Monotone(AbstractBudgetwise):
    """Of the weights still there the best are kept: what is removed never comes back."""

    def update(self, masks: Masks, moment: Moment) -> tuple[Masks, Masks]:
        chosen = moment.choose(ranked_last(moment.plan, moment.scored(WORTH), masks))
        # No weight comes back where fewer are left than the budget allows.
        return by_path(jnp.logical_and, chosen, masks), {}
