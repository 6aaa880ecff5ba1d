"""An update of masks, if it is due, on a model that holds the kept weights only."""

import dataclasses
import functools
from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array, Bool, PyTree

from .._pruner import AbstractPruner, DropGrow, GAIN, PrunerState, unknown_last
from .._pruner.optimiser import OptimiserState, start
from .._pruner.plan import Plan
from .._pruner.turn import key_for
from .._selection import density_of, update_if
from .._sites import read, weights_of
from .compact import densified, Layouts, layouts_of, parameters_of, skeleton, with_layouts
from .moved import dense_mask, move, Moves, survivors


@dataclasses.dataclass(frozen=True)
class Update:
    """What an update sees of a step.

    - `origin`: the model that `grads` are of.
    - `dense`: a plain model → its gradient, for those that grow by it.
    """

    pruner: AbstractPruner
    origin: PyTree
    grads: PyTree
    state: PrunerState
    dense: Callable[[PyTree], PyTree] | None

    @property
    def due(self) -> Bool[Array, ""] | bool:
        return self.pruner.transition.is_due(self.pruner.schedule, self.state.step)

    def run(self, model: PyTree, optim: PyTree) -> tuple[PyTree, PyTree]:
        """The model and its optimiser's state, on new masks where these are due."""
        if self.due is False:
            return model, optim
        sites = read(skeleton(self.origin))  # zeros: only their shapes count
        plan = self.pruner.plan_for(sites)(self.pruner.distribution)
        arrived = [leaf for leaf in jax.tree.leaves(self.grads) if leaf.size > 0]
        layouts = layouts_of(model)
        # One after the other, so that scratch memory for one is enough; a gradient is that of all.
        groups = [[path] for path in plan.sites] if self.dense is None else [list(plan.sites)]
        for paths in groups:
            change = functools.partial(self._move, plan.only(paths))
            moved, optim = update_if(self.due, change, ({path: layouts[path] for path in paths}, optim), arrived)
            layouts = layouts | moved
        return with_layouts(model, layouts), optim

    def _move(self, plan: Plan, held: tuple[Layouts, PyTree]) -> tuple[Layouts, PyTree]:
        layouts, optim = held
        moved = {path: move(layouts[path], mask) for path, mask in self._masks(plan, layouts).items()}
        optim = self._kept(optim, {path: moves for path, (_, moves) in moved.items()})
        return {path: layout for path, (layout, _) in moved.items()}, optim

    def _masks(self, plan: Plan, layouts: Layouts) -> dict[str, Bool[Array, "out_size in_size"]]:
        transition = self.pruner.transition
        assert isinstance(transition, DropGrow) and self.state.key is not None
        drop = density_of(1 - transition.fraction(self.pruner.schedule, self.state.step))
        stay = {path: survivors(self.pruner.criterion.score(layouts[path].values), drop) for path in plan.sites}
        zeros = {path: site.weight for path, site in plan.sites.items()}
        gradient = None if self.dense is None else weights_of(self.dense(densified(self.origin)))
        key = key_for(self.state.key, self.state.step, GAIN)
        gain = transition.grow.scores(zeros, grads=gradient, key=key)
        gain = {path: unknown_last(gain[path], dense_mask(layouts[path])) for path in plan.sites}
        return plan.masks(gain, kept={path: dense_mask(layouts[path], stay[path]) for path in plan.sites})

    def _kept(self, optim: PyTree, moves: dict[str, Moves]) -> PyTree:
        """What the optimiser keeps of the entries, after their moves; of those that have grown as it begins."""
        if self.pruner.optim is None:
            return optim
        owners = parameters_of(self.origin)
        state = OptimiserState(optim, owners)
        fresh = OptimiserState(start(self.pruner.optim, eqx.filter(self.origin, eqx.is_inexact_array)), owners)
        there = state.parts(list(moves))
        return state.tree({at: moves[state.site(at) or ""].of(leaf, fresh.at(at)) for at, leaf in there.items()})
