"""One step of training, from where it stands to where it ends: the pieces that orders put in sequence."""

import dataclasses
import zlib
from typing import Any, TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from .._mask import Mask
from .._selection import update_if
from .._sites import Sites, weights_of, write
from ._transition import Moment, WORTH
from .optimiser import optimise, Parameters, renew_state, start, state_by_site
from .plan import Plan
from .view import AbstractView, OnMask, Place

if TYPE_CHECKING:
    from .base import AbstractPruner

Memory = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What does not change during a step.

    - `sites`: the model as it was before.
    - `plan`: which of its sites are pruned.
    - `due`: whether masks are updated.
    - `grads`: gradients with respect to the effective weights, in the tree of the parameters.
    - `owners`: the parameters by their paths in that tree.
    """

    pruner: "AbstractPruner"
    sites: Sites
    plan: Plan
    step: Array
    due: Bool[Array, ""] | bool
    key: Array | None
    grads: PyTree
    extra: dict[str, Any]
    owners: Parameters

    def view(self, path: str) -> AbstractView:
        """Sites that have a mask but are not pruned just stay on it."""
        return self.pruner.view if path in self.plan.sites else OnMask()


@dataclasses.dataclass(frozen=True)
class Turn:
    """Where a step stands.

    - `parameters`: the model's floating-point arrays.
    - `masks`, `trained`: of all masked sites, and the sets that train where these are others.
    - `optim`: the optimiser's state.
    - `memory`: what criteria and the order remember, by role.
    - `updates`: what the optimiser has added to the parameters, before it landed on the masks; `None` so far.
    """

    setting: Setting
    parameters: PyTree
    masks: dict[str, Mask]
    trained: dict[str, Mask]
    optim: PyTree
    memory: Memory
    updates: PyTree = None

    def remember(self) -> "Turn":
        """Criteria that go by many steps see this one."""
        setting, weights = self.setting, weights_of(self.parameters)
        memory = dict(self.memory)
        for role, criterion in setting.pruner.criteria().items():
            if role in memory:
                grads = weights_of(setting.grads)
                memory[role] = {p: criterion.remember(m, weights[p], grads[p]) for p, m in memory[role].items()}
        return dataclasses.replace(self, memory=memory)

    def choose(self) -> "Turn":
        """New masks if they are due; weights and the optimiser's state follow."""
        setting = self.setting
        planner, schedule = setting.pruner.plan_for(setting.sites), setting.pruner.schedule
        moment = Moment(setting.plan, planner, self._scored, lambda role: True, schedule, setting.step)

        def update(masks: tuple[dict[str, Mask], dict[str, Mask]]) -> tuple[dict[str, Mask], dict[str, Mask]]:
            old, others = masks
            new, trained = setting.pruner.transition.update({p: m.dense() for p, m in old.items()}, moment)
            return {p: old[p].replace(m) for p, m in new.items()}, {p: others[p].replace(m) for p, m in trained.items()}

        due = setting.due
        if setting.grads is not None and not isinstance(due, bool):
            # After the backward pass: at the same time, both would hold scratch memory, and on several devices
            # wait for each other's all-reduces.
            due, _ = jax.lax.optimization_barrier((due, setting.grads))
        pruned = {path: self.masks[path] for path in setting.plan.sites}
        pruned, trained = update_if(due, update, (pruned, self.trained))
        chosen = dataclasses.replace(self, masks=self.masks | pruned, trained=trained)
        before, now = self.alive(), chosen.alive()
        return chosen.landed(self.parameters).renewed(before, now)

    def optimise(self) -> "Turn":
        """The optimiser's step on the gradient pulled back, landed."""
        setting, weights, places = self.setting, weights_of(self.parameters), self.places()
        optim = setting.pruner.optim
        if optim is None:
            return self
        grads = weights_of(setting.grads)
        pulled = {p: setting.view(p).pull_back(grads[p], weights[p], place) for p, place in places.items()}
        updates, stepped, state = optimise(
            optim, write(setting.grads, pulled), self.optim, self.parameters, setting.extra
        )
        return dataclasses.replace(self, optim=state, updates=updates).landed(stepped)

    def landed(self, stepped: PyTree) -> "Turn":
        """With the parameters that an optimiser has made, landed on the masks."""
        weights, made = weights_of(self.parameters), weights_of(stepped)
        land = lambda path, place: self.setting.view(path).land(made[path], weights[path], place)
        landed = write(stepped, {path: land(path, place) for path, place in self.places().items()})
        return dataclasses.replace(self, parameters=landed)

    def renewed(self, before: dict[str, Any], now: dict[str, Any]) -> "Turn":
        """With the optimiser's state as masks that have changed ask for."""
        setting, optim = self.setting, self.setting.pruner.optim
        if optim is None:
            return self
        fresh = lambda: start(optim, self.parameters)
        upkeep = setting.pruner.upkeep
        state = renew_state(upkeep, self.optim, fresh, setting.owners, before, now, setting.due)
        return dataclasses.replace(self, optim=state)

    def unless(self, held: Bool[Array, ""] | bool, other: "Turn") -> "Turn":
        """This one, but the parameters and the optimiser's state of the other one where `held`."""
        pick = lambda a, b: jax.tree.map(lambda x, y: jnp.where(held, x, y), a, b)
        updates = self.updates
        if updates is not None:
            zeros = jax.tree.map(jnp.zeros_like, updates)
            updates = pick(zeros if other.updates is None else other.updates, updates)
        return dataclasses.replace(
            self,
            parameters=pick(other.parameters, self.parameters),
            optim=pick(other.optim, self.optim),
            updates=updates,
        )

    def places(self) -> dict[str, Place]:
        """Masks as views see them."""
        densities = self.setting.plan.densities()
        trained = {path: mask.dense() for path, mask in self.trained.items()}
        return {p: Place(mask.dense(), trained.get(p), densities.get(p)) for p, mask in self.masks.items()}

    def alive(self) -> dict[str, Bool[Array, "..."] | None]:
        """Where weights have an optimiser state."""
        return {path: self.setting.view(path).alive(place) for path, place in self.places().items()}

    def landed_updates(self, parameters: PyTree) -> PyTree:
        """What to add to the parameters as they were before the step to come where it ends."""
        weights, updates = weights_of(parameters), weights_of(self.updates)
        land = lambda path, place: self.setting.view(path).land_update(updates[path], weights[path], place)
        return write(self.updates, {path: land(path, place) for path, place in self.places().items()})

    def _scored(self, role: str) -> dict[str, Array]:
        setting = self.setting
        criterion = setting.pruner.criteria()[role]
        weights = weights_of(self.parameters)
        weights = {path: weights[path] for path in setting.plan.sites}
        grads = None if setting.grads is None else weights_of(setting.grads)
        memory = self.memory.get(role)
        if memory is None and criterion.optimiser_field is not None:
            memory = self._in_optimiser(criterion, weights, grads)
        key = None if setting.key is None else key_for(setting.key, setting.step, role)
        return criterion.scores(weights, grads=grads, key=key, memory=memory)

    def _in_optimiser(self, criterion: Any, weights: dict[str, Array], grads: Any) -> dict[str, Array]:
        """The memory that the optimiser keeps for a criterion; before its first step, that of this gradient."""
        kept = state_by_site(self.optim, criterion.optimiser_field, self.setting.owners)
        first = lambda path: criterion.remember(None, weights[path], grads[path])
        return {p: jnp.where(self.setting.step == 0, first(p), kept[p].astype(first(p).dtype)) for p in weights}


def key_for(key: Array, step: Any, role: str) -> Array:
    """The key that the criterion of a role draws from at a step."""
    at_step = jax.random.fold_in(key, step)
    return at_step if role == WORTH else jax.random.fold_in(at_step, zlib.crc32(role.encode()))


def masked_sites(sites: Sites, masks: dict[str, Mask]) -> Sites:
    """The sites with these masks."""
    return {p: dataclasses.replace(site, mask=masks.get(p, site.mask)) for p, site in sites.items()}
