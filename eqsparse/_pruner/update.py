"""An update of masks, if it is due: a group of sites at a time, and all that it changes in place."""

import dataclasses
import functools
from typing import Any, NamedTuple, TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from .._criterion import AbstractCriterion
from .._mask import Mask
from .._selection import on_one_device, update_if
from .._sites import weights_of, write
from ._transition import Moment
from .optimiser import mask_like, OptimiserState, start
from .turn import key_for, Turn
from .view import Place

if TYPE_CHECKING:
    from .base import AbstractPruner


class Held(NamedTuple):
    """What an update changes at one group of sites. It leaves the conditional in the buffers that it came in.

    - `masks`, `trained`, `weights`: by path.
    - `state`: parts of the optimiser's state, by their place.
    """

    masks: dict[str, Mask]
    trained: dict[str, Mask]
    weights: dict[str, Array]
    state: dict[int, Array]

    def with_those_of(self, other: "Held") -> "Held":
        """What both hold."""
        masks, trained, weights = self.masks | other.masks, self.trained | other.trained, self.weights | other.weights
        return Held(masks, trained, weights, self.state | other.state)


def choose(turn: Turn) -> Turn:
    """New masks if they are due; weights and the optimiser's state follow."""
    if turn.setting.due is False:
        return turn
    return _Update(turn).run()


class _Update:
    """What all groups of an update see."""

    def __init__(self, turn: Turn):
        self.turn, self.setting = turn, turn.setting
        self.pruner: AbstractPruner = turn.setting.pruner
        self.weights = weights_of(turn.parameters)
        self.grads = None if turn.setting.grads is None else weights_of(turn.setting.grads)
        self.state = OptimiserState(turn.optim, turn.setting.owners)

    def run(self) -> Turn:
        turn, new = self.turn, Held({}, {}, {}, {})
        rest = (None, *(path for path in self.setting.sites if path not in self.setting.plan.sites))
        for paths in self._groups():
            held = self._held(paths, (*paths, *rest))
            rest = ()  # parameters that are not pruned go with the first group
            held = update_if(self.setting.due, functools.partial(self._update, paths), held, self._after(paths))
            new = new.with_those_of(held)
        return dataclasses.replace(
            turn,
            masks=turn.masks | new.masks,
            trained=turn.trained | new.trained,
            parameters=write(turn.parameters, new.weights),
            optim=self.state.tree(new.state),
        )

    def _groups(self) -> list[tuple[str, ...]]:
        """Sites that are updated together. On several devices all: a loop for each would wait for the others."""
        apart = all(type(c).scores is AbstractCriterion.scores for c in self.pruner.criteria().values())
        if not apart or not on_one_device():
            return [tuple(self.setting.plan.sites)]
        everything = tuple(self.setting.plan.sites)
        return self.pruner.transition.groups(self._moment(everything, self._held(everything, ())))

    def _held(self, paths: tuple[str, ...], owners: tuple[str | None, ...]) -> Held:
        turn = self.turn
        masks, trained = ({p: table[p] for p in paths if p in table} for table in (turn.masks, turn.trained))
        weights = {path: self.weights[path] for path in paths}
        state = {} if self.pruner.optim is None else self.state.parts(owners)
        return Held(masks, trained, weights, state)

    def _after(self, paths: tuple[str, ...]) -> list[Array]:
        """What is there when the backward pass is over.

        Before that, it and an update would hold scratch memory at the same time, and weights and masks that are still
        to be read would be copied. On several devices the two would wait for each other's all-reduces.
        """
        if self.grads is None:
            return []
        if on_one_device():
            return [self.grads[path] for path in paths if self.grads[path].size > 0]
        # No entry can be taken out of an array that is sharded.
        return [jnp.sum(min(jax.tree.leaves(self.setting.grads), key=lambda leaf: leaf.size))]

    def _update(self, paths: tuple[str, ...], held: Held) -> Held:
        moment = self._moment(paths, held)
        masks, trained = self.pruner.transition.update({p: m.dense() for p, m in held.masks.items()}, moment)
        masks = {path: held.masks[path].replace(mask) for path, mask in masks.items()}
        trained = {path: held.trained[path].replace(mask) for path, mask in trained.items()}
        chosen = held._replace(masks=masks, trained=trained)
        land = lambda path, w: self.setting.view(path).land(w, w, self._place(path, chosen))
        weights = {path: land(path, w) for path, w in held.weights.items()}
        return chosen._replace(weights=weights, state=self._renewed(held, chosen))

    def _renewed(self, held: Held, chosen: Held) -> dict[int, Array]:
        fresh = functools.cache(self._fresh)

        def alive(place: int, leaf: Array, now: Held) -> Bool[Array, "..."] | None:
            site = self.state.site(place)
            if site is None or site not in self.turn.masks:
                return None
            mask = self.setting.view(site).alive(self._place(site, now))
            return None if mask is None else mask_like(mask, leaf)

        def renewed(place: int, leaf: Array) -> Array:
            before, now = alive(place, leaf, held), alive(place, leaf, chosen)
            return self.pruner.upkeep.renewed(leaf, lambda: fresh().at(place), before, now)

        return {place: renewed(place, leaf) for place, leaf in held.state.items()}

    def _fresh(self) -> OptimiserState:
        """The optimiser's state as it begins."""
        assert self.pruner.optim is not None
        return OptimiserState(start(self.pruner.optim, self.turn.parameters), self.setting.owners)

    def _place(self, path: str, held: Held) -> Place:
        masks, trained = self.turn.masks | held.masks, self.turn.trained | held.trained
        other = trained.get(path)
        return Place(masks[path].dense(), None if other is None else other.dense(), None)

    def _moment(self, paths: tuple[str, ...], held: Held) -> Moment:
        setting = self.setting
        planner = setting.pruner.plan_for(setting.sites)
        plan_for = lambda distribution: planner(distribution).only(paths)
        scored = functools.partial(self._scored, paths, held)
        return Moment(setting.plan.only(paths), plan_for, scored, lambda role: True, self.pruner.schedule, setting.step)

    def _scored(self, paths: tuple[str, ...], held: Held, role: str) -> dict[str, Array]:
        setting, criterion = self.setting, self.pruner.criteria()[role]
        weights = {path: held.weights[path] for path in paths}
        memory = self.turn.memory.get(role)
        if memory is None and criterion.optimiser_field is not None:
            memory = self._in_optimiser(criterion, weights, held)
        key = None if setting.key is None else key_for(setting.key, setting.step, role)
        return criterion.scores(weights, grads=self.grads, key=key, memory=memory)

    def _in_optimiser(self, criterion: Any, weights: dict[str, Array], held: Held) -> dict[str, Array]:
        """The memory that the optimiser keeps for a criterion; while it is as it began, that of this gradient.

        So it is before the optimiser's first step, which wrappers (`MultiSteps`, `apply_if_finite`) may put off.
        """
        kept = OptimiserState(self.state.tree(held.state), self.setting.owners).by_site(criterion.optimiser_field)
        grads = weights_of(self.setting.grads)
        first = lambda path: criterion.remember(None, weights[path], grads[path])
        fresh = self._fresh().by_site(criterion.optimiser_field)
        begun = {p: jnp.any((kept[p] != fresh[p]) & (kept[p] != 0)) for p in weights}
        return {p: jnp.where(begun[p], kept[p].astype(first(p).dtype), first(p)) for p in weights}
