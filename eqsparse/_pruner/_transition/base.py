"""What a transition is: from old masks and scores to new masks."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Shaped, UInt32

from ..._criterion import AbstractCriterion
from ..._distribution import AbstractDistribution, geometry_of
from ..._mask import laid_out_as
from ..._schedule import AbstractSchedule
from ..._selection import density_of, fraction_of
from ..._structure import AbstractPooling, AbstractStructure, Geometry, is_lot
from ..plan import apart, Plan

Masks: TypeAlias = dict[str, Bool[Array, "..."]]
Scores: TypeAlias = dict[str, Shaped[Array, "..."]]

WORTH = "worth"
"""The role of the pruner's own criterion, which says what a weight is worth."""


@dataclasses.dataclass(frozen=True)
class Moment:
    """What a transition sees of one step.

    - `plan_for`: a distribution → the sites, who shares their weights, and their structures.
    - `plan`: that of the pruner's own distribution.
    - `scored`: role of a criterion → scores by path. `WORTH` is the pruner's own, the others are the transition's.
    - `scorable`: whether a criterion has what it needs (gradients are not there at `init`).
    - `schedule`, `step`: where in training this is; `None` for one shot.
    """

    plan: Plan
    plan_for: Callable[[AbstractDistribution], Plan]
    scored: Callable[[str], Scores]
    scorable: Callable[[str], bool]
    schedule: AbstractSchedule | None = None
    step: Array | None = None

    def choose(self, scores: Scores, kept: Masks | None = None) -> Masks:
        """The best weights, as many as the schedule allows at this step, those `kept` among them."""
        return self.plan.masks(scores, self._scheduled, kept)

    def choose_target(self, scores: Scores, kept: Masks | None = None) -> Masks:
        """The best weights, as many as the target allows whatever the step, those `kept` among them."""
        return self.plan.masks(scores, kept=kept)

    def _scheduled(self, density: UInt32[Array, ""]) -> UInt32[Array, ""]:
        """The density at this step; that of the target verbatim where the schedule says the target."""
        if self.schedule is None or self.step is None:
            return density
        target = 1 - fraction_of(density)
        now = self.schedule.sparsity(target, self.step)
        return jnp.where(now == target, density, density_of(now))


class AbstractTransition(eqx.Module):
    """How masks change at an update.

    One that goes by more criteria than the pruner's own names them in `criteria`. One that keeps masks beside
    those of the model (a backward set, say) returns these as its second value.
    """

    def criteria(self) -> dict[str, AbstractCriterion]:
        """The transition's own criteria, by role."""
        return {}

    def is_due(self, schedule: AbstractSchedule, step: ArrayLike) -> Bool[Array, ""] | bool:
        """Whether masks are updated at this step."""
        return schedule.is_due(step)

    def groups(self, moment: Moment) -> list[tuple[str, ...]]:
        """The sites that are updated together, by path: one group of all of them, unless a transition says that
        `update` treats each as if the others weren't there."""
        return [tuple(moment.plan.sites)]

    def start(self, masks: Masks, moment: Moment) -> tuple[Masks, Masks]:
        """The masks that training begins with, from those of the model; and the others it keeps."""
        return masks, {}

    @abc.abstractmethod
    def update(self, masks: Masks, moment: Moment) -> tuple[Masks, Masks]:
        """New masks of the plan's sites, and the others it keeps."""


class AbstractBudgetwise(AbstractTransition):
    """One that knows nothing of a site but what its budget shares: those without a common budget are updated one
    after the other, so that scratch memory for one is enough."""

    def groups(self, moment: Moment) -> list[tuple[str, ...]]:
        return apart([moment.plan])


def ranked_last(plan: Plan, scores: Scores, masks: Masks) -> Scores:
    """Scores with removed groups below all that are there, also below those of unknown (NaN) worth.

    A removed weight of a group that is there in part adds nothing to its worth.
    """
    return {p: _last(scores[p], masks[p], plan.structures[p], geometry_of(site)) for p, site in plan.sites.items()}


def _last(
    scores: Shaped[Array, "*shape"], mask: Bool[Array, "*shape"], structure: AbstractStructure, geometry: Geometry
) -> Shaped[Array, "*shape"]:
    def where_group(holds: Callable[[Array], Array], weights: Array) -> Bool[Array, "*shape"]:
        """The weights of the groups for which something holds (of their pooled weights)."""
        if not isinstance(structure, AbstractPooling) or weights.size == 0:
            return holds(weights)
        groups = holds(structure.pooled(weights, geometry))
        return laid_out_as(structure.spread(groups, weights.shape, geometry), weights)

    there = where_group(lambda part: part > 0, mask.astype(jnp.float32))
    if is_lot(scores):
        return jnp.where(there, jnp.maximum(scores, 1), 0)
    known = jnp.where(mask, jnp.where(jnp.isnan(scores), -jnp.inf, scores), 0)
    unknown = where_group(jnp.isnan, known)  # infinities of both signs together, say
    return jnp.where(there, jnp.where(unknown, -jnp.inf, known), jnp.nan)


def by_path(function: Callable[..., Any], *tables: Mapping[str, Any]) -> dict[str, Any]:
    """The function of what the tables have at each path."""
    return {path: function(*(table[path] for table in tables)) for path in tables[0]}
