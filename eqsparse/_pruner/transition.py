"""Transitions: from old masks and a choice to new masks."""

import abc
from collections.abc import Callable, Mapping
from typing import final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped

from .._schedule import AbstractSchedule
from .._sites import Site
from .._structure import AbstractPooling, AbstractStructure, Geometry
from .._structure.base import is_lot
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
        among = {p: _last(scores[p], masks[p], plan.structures[p], site) for p, site in plan.sites.items()}
        chosen = plan.masks(among, schedule, step)
        # No weight comes back where fewer are left than the budget allows.
        return {path: chosen[path] & masks[path] for path in chosen}


def _last(
    scores: Shaped[Array, "*shape"], mask: Bool[Array, "*shape"], structure: AbstractStructure, site: Site
) -> Shaped[Array, "*shape"]:
    """Scores with removed groups below all that are left, also below those of unknown (NaN) worth.

    A removed weight of a group that is there in part adds nothing to its worth.
    """

    def where_group(holds: Callable[[Array], Array], weights: Array) -> Bool[Array, "*shape"]:
        """The weights of the groups for which something holds (of their pooled weights)."""
        if not isinstance(structure, AbstractPooling) or weights.size == 0:
            return holds(weights)
        geometry = Geometry(site.core_rank, site.contraction_axis)
        return structure.spread(holds(structure.pooled(weights, geometry)), weights.shape, geometry)

    there = where_group(lambda part: part > 0, mask.astype(jnp.float32))
    if is_lot(scores):
        return jnp.where(there, jnp.maximum(scores, 1), 0)
    known = jnp.where(mask, jnp.where(jnp.isnan(scores), -jnp.inf, scores), 0)
    unknown = where_group(jnp.isnan, known)  # infinities of both signs together, say
    return jnp.where(there, jnp.where(unknown, -jnp.inf, known), jnp.nan)
