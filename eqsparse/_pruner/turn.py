"""One step of training, from where it stands to where it ends: the pieces that orders put in sequence."""

import dataclasses
import zlib
from typing import Any, TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from .._mask import Mask
from .._selection import step_if
from .._sites import Sites, weights_of, write
from ._transition import WORTH
from .optimiser import mask_like, optimise, OptimiserState, Parameters
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

    def optimise(self) -> "Turn":
        """The optimiser's step on the gradient pulled back, landed."""
        setting, weights, places = self.setting, weights_of(self.parameters), self.places()
        optim = setting.pruner.optim
        if optim is None:
            return self
        grads = weights_of(setting.grads)
        pulled = {p: setting.view(p).pull_back(grads[p], weights[p], place) for p, place in places.items()}
        # The optimiser sees what the model runs on, which is made once for both: it takes the weights' own memory.
        runs_on = self.landed(self.parameters).parameters
        updates, stepped, state = optimise(
            optim, write(setting.grads, pulled), self.settled().optim, runs_on, setting.extra
        )
        turn = dataclasses.replace(self, optim=state, updates=_as_wide(updates, self.parameters))
        # On these masks: what some optimisers write behind them is not what weights that grow later start from.
        return dataclasses.replace(turn, updates=turn.landed_updates(self.parameters)).landed(stepped)

    def settled(self) -> "Turn":
        """With an optimiser's state that knows of the masks."""
        state = OptimiserState(self.optim, self.setting.owners)
        parts = {}
        for path, place in self.places().items():
            alive = self.setting.view(path).alive(place)
            if alive is not None:
                upkeep = self.setting.pruner.upkeep
                there = state.parts([path])
                parts |= {at: upkeep.settled(leaf, mask_like(alive, leaf)) for at, leaf in there.items()}
        return dataclasses.replace(self, optim=state.tree(parts))

    def optimise_unless(self, held: Bool[Array, ""] | bool) -> "Turn":
        """`optimise` where it is not `held`. What is to be chosen at each step would be read once more, and copied."""
        if self.setting.pruner.optim is None:
            return self

        def step(parameters: PyTree, optim: PyTree) -> tuple[PyTree, PyTree, PyTree]:
            turn = dataclasses.replace(self, parameters=parameters, optim=optim).optimise()
            return turn.parameters, turn.optim, turn.updates

        traced, seen = jax.closure_convert(step, self.parameters, self.optim)  # once
        after = jax.eval_shape(traced, self.parameters, self.optim, *seen)
        updates = jax.tree.map(jnp.zeros_like, after[2]) if self.updates is None else self.updates
        # Some optimisers change a dtype at their first step.
        cast = lambda x, to: x if x.dtype == to.dtype else x.astype(to.dtype)
        here = jax.tree.map(cast, (self.parameters, self.optim, updates), after)
        taken = not held if isinstance(held, bool) else ~held
        parameters, optim, updates = step_if(taken, lambda here: traced(*here[:2], *seen), here)
        return dataclasses.replace(self, parameters=parameters, optim=optim, updates=updates)

    def landed(self, stepped: PyTree) -> "Turn":
        """With the parameters that an optimiser has made, landed on the masks."""
        weights, made = weights_of(self.parameters), weights_of(stepped)
        land = lambda path, place: self.setting.view(path).land(made[path], weights[path], place)
        landed = write(stepped, {path: land(path, place) for path, place in self.places().items()})
        return dataclasses.replace(self, parameters=landed)

    def places(self) -> dict[str, Place]:
        """Masks as views see them."""
        densities = self.setting.plan.densities()
        trained = {path: mask.dense() for path, mask in self.trained.items()}
        return {p: Place(mask.dense(), trained.get(p), densities.get(p)) for p, mask in self.masks.items()}

    def landed_updates(self, parameters: PyTree) -> PyTree:
        """What to add to the parameters as they were before the step to come where it ends."""
        weights, updates = weights_of(parameters), weights_of(self.updates)
        land = lambda path, place: self.setting.view(path).land_update(updates[path], weights[path], place)
        return write(self.updates, {path: land(path, place) for path, place in self.places().items()})


def _as_wide(updates: PyTree, parameters: PyTree) -> PyTree:
    """Updates in the dtype of their parameter where that is wider: to take a weight to zero they must hold it."""
    wide = lambda u, p: u.astype(p.dtype) if p.dtype.itemsize > u.dtype.itemsize else u
    return jax.tree.map(wide, updates, parameters)


def key_for(key: Array, step: Any, role: str) -> Array:
    """The key that the criterion of a role draws from at a step."""
    at_step = jax.random.fold_in(key, step)
    return at_step if role == WORTH else jax.random.fold_in(at_step, zlib.crc32(role.encode()))


def masked_sites(sites: Sites, masks: dict[str, Mask]) -> Sites:
    """The sites with these masks."""
    return {p: dataclasses.replace(site, mask=masks.get(p, site.mask)) for p, site in sites.items()}
