"""Transitions: from old masks and a choice to new masks."""

import abc
from collections.abc import Mapping
from typing import final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped

from .._schedule import AbstractSchedule
from .plan import Plan

Masks = Mapping[str, Bool[Array, "..."]]
Scores = Mapping[str, Shaped[Array, "..."]]


class AbstractTransition(eqx.Module):
    """How masks change at an update."""

    @abc.abstractmethod
    def update(
        self, masks: Masks, scores: Scores, plan: Plan, schedule: AbstractSchedule | None, step: Array | None
    ) -> dict[str, Bool[Array, "..."]]:
        """New masks of the plan's sites: at a step of a schedule, or (`None`) at the target."""


@final
class Monotone(AbstractTransition):
    """Of the weights still there the best are kept: what is removed never comes back."""

    def update(
        self, masks: Masks, scores: Scores, plan: Plan, schedule: AbstractSchedule | None, step: Array | None
    ) -> dict[str, Bool[Array, "..."]]:
        among = {path: _last(scores[path], masks[path]) for path in plan.sites}
        chosen = plan.masks(among, schedule, step)
        # No weight comes back where fewer are left than the budget allows.
        return {path: chosen[path] & masks[path] for path in chosen}


def _last(scores: Shaped[Array, "*shape"], mask: Bool[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """Scores with removed weights below all that are left, also below those of unknown (NaN) worth."""
    if jnp.issubdtype(scores.dtype, jnp.unsignedinteger):
        return jnp.where(mask, jnp.maximum(scores, 1), 0)
    known = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
    return jnp.where(mask, known, jnp.nan)
