"""Sparse training that stores and computes the kept weights only."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, final, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._check import instance
from .._criterion import GradientMagnitude, Magnitude, Random
from .._distribution.budget import SiteBudget
from .._layers import MaskedLinear
from .._model import own_buffers
from .._pruner import AbstractPruner, After, DropGrow, Fixed, Instead, Kept, PrunerState
from .._pruner._transition.drop_grow import GAIN, unknown_last
from .._pruner.match import like_parameters, same_model
from .._pruner.optimiser import numbers_as_arrays, optimise, OptimiserState, start
from .._pruner.plan import Plan
from .._pruner.turn import key_for
from .._selection import density_of, update_if
from .._sites import is_model, leaves_by_path, map_layers, read, weights_of
from .._structure import Unstructured
from .compact import as_masked, compact, densified, Layouts, layouts_of, parameters_of, skeleton, with_layouts
from .moved import dense_mask, move, Moves, survivors

_Pruner = TypeVar("_Pruner", bound=AbstractPruner)


@final
class SparseTraining(eqx.Module):
    """Trains the weights that a pruner keeps, without the others: their values alone are stored, have an optimiser
    state, and are multiplied (by the kernels of `eqsparse.kernels` on CPU).

    ```python
    pruner = eqsparse.SET(optax.adam(1e-3), distribution=0.9, schedule=eqsparse.Periodic(0, 7500, 100), key=key)
    training = eqsparse.SparseTraining(pruner)
    model, state = training.init(model)
    grads = eqx.filter_grad(loss)(model, x, y)
    model, state = training.step(model, grads, state)
    ```

    Masks are those of `pruner.step`, and losses too, but for rounding. The layers are those that
    `eqsparse.export(layout="bcsr")` makes: a model in training runs, and is saved and reported on, as an exported one.

    For `StaticSparse`, `NoPruning` and others whose masks stay, and for `SET`, `RigL` and `DynamicSparse` that drop by
    `Magnitude` and grow by `Random` or `GradientMagnitude`, after the optimiser's step or instead of it. These draw
    lots of one array of a layer's size where masks are updated; at no time is there a dense weight or gradient, but
    for `RigL`, which takes a dense gradient at updates.

    Optimisers that treat each number by itself (SGD, Adam, Lion, ...) do here what they do in a masked model; those
    that look at the shape of a weight (Adafactor, Muon, Shampoo) see a vector of the kept values.
    """

    pruner: AbstractPruner

    def __init__(self, pruner: AbstractPruner):
        """**Arguments:**

        - `pruner`: Says which weights, when, and with which optimiser.

        **Raises:** `ValueError` if the pruner is not one of those above.
        """
        instance(pruner, AbstractPruner, "SparseTraining(pruner=...)", "a pruner")
        _check_kind(pruner)
        self.pruner = pruner

    def init(self, model: PyTree) -> tuple[PyTree, PrunerState]:
        """The model that holds the kept weights only, and the pruner's state.

        **Arguments:**

        - `model`: A plain model, or a masked one whose masks already remove something (these are kept).

        **Returns:** `(model, state)`: pruned linear layers as `eqsparse.SparseLayer`, the rest plain.

        **Raises:** `ValueError` if a weight to be pruned is not that of a single `eqx.nn.Linear`, or shares its budget
        with others while masks move.
        """
        if not is_model(model):
            raise ValueError("`SparseTraining.init(model=...)` must be an Equinox model. Got a PyTree without modules.")
        masked, begun = _without_optimiser(self.pruner).init(model)
        sites = read(masked)
        made = self.pruner.plan_for(sites)(self.pruner.distribution)
        paths = [path for path in sites if path in made.sites or not bool(jnp.all(sites[path].mask.dense()))]
        _check_layers(masked, paths)
        if _moves(self.pruner):
            _check_budgets(made)
        small = compact(masked, paths)
        parameters = eqx.filter(small, eqx.is_inexact_array)
        optim = None if self.pruner.optim is None else start(self.pruner.optim, parameters)
        return own_buffers((small, dataclasses.replace(begun, optim=optim, outline=_outline(parameters))))

    def step(
        self,
        model: PyTree,
        grads: PyTree,
        state: PrunerState,
        *,
        dense: Callable[[PyTree], PyTree] | None = None,
        **extra: Any,
    ) -> tuple[PyTree, PrunerState]:
        """One training step.

        **Arguments:**

        - `model`: The model, from `init` or the last step.
        - `grads`: Gradients with respect to it, as `eqx.filter_grad` gives them.
        - `state`: The state, from `init` or the last step.
        - `dense`: For `RigL`: a function from the plain model (zeros written in) to its gradient. It is called only
            where masks are updated. In a step that is not within `jax.jit` give `eqx.Partial(function, batch)`, since
            another lambda at each step would compile anew.
        - `**extra`: Goes to the optimiser's `update`.

        **Returns:** `(model, state)`.

        **Raises:** `ValueError` if `grads` or `state` belong to another model, or `dense` is needed and missing.
        """
        parameters = eqx.filter(model, eqx.is_inexact_array)
        same_model(state, _outline(parameters), type(self.pruner).__name__)
        grads = like_parameters(grads, parameters)
        if dense is None and _moves(self.pruner) and "grads" in self.pruner.transition.grow.needs:
            raise ValueError(
                f"`SparseTraining.step(dense=...)` must be a function from the plain model to its gradient: "
                f"{type(self.pruner).__name__} grows weights by it. Got None."
            )
        return self._step(model, grads, state, dense, numbers_as_arrays(extra))

    def masked(self, model: PyTree) -> PyTree:
        """The same model with dense weights and masks, to go on in any other way. Call this outside `jax.jit`."""
        return as_masked(model)

    @eqx.filter_jit
    def _step(
        self, model: PyTree, grads: PyTree, state: PrunerState, dense: Callable | None, extra: dict
    ) -> tuple[PyTree, PrunerState]:
        due = self.pruner.transition.is_due(self.pruner.schedule, state.step)
        arrived = jax.tree.leaves(grads)
        origin = model
        update = lambda held: self._update(origin, *held, state, dense)
        optimised = lambda held: self._optimised(held[0], grads, held[1], extra)
        if isinstance(self.pruner.order, After):
            model, optim = optimised((model, state.optim))
            layouts, optim = update_if(due, update, (layouts_of(model), optim), arrived)
            model = with_layouts(model, layouts)
        else:
            layouts, optim = update_if(due, update, (layouts_of(model), state.optim), arrived)
            model = with_layouts(model, layouts)
            arrays, rest = eqx.partition(model, eqx.is_array)
            step = lambda held: eqx.filter(optimised((eqx.combine(held[0], rest), held[1])), eqx.is_array)
            held = not due if isinstance(due, bool) else ~due
            arrays, optim = update_if(held, step, (arrays, optim))
            model = eqx.combine(arrays, rest)
        return model, dataclasses.replace(state, step=state.step + 1, optim=optim)

    def _optimised(self, model: PyTree, grads: PyTree, optim: PyTree, extra: dict) -> tuple[PyTree, PyTree]:
        if self.pruner.optim is None:
            return model, optim
        parameters, rest = eqx.partition(model, eqx.is_inexact_array)
        _, parameters, optim = optimise(self.pruner.optim, grads, optim, parameters, extra)
        return eqx.combine(parameters, rest), optim

    def _update(
        self, origin: PyTree, layouts: Layouts, optim: PyTree, state: PrunerState, dense: Callable | None
    ) -> tuple[Layouts, PyTree]:
        """Entries on new masks, and what the optimiser keeps of them. `origin` is the model of the gradients."""
        masks = self._masks(origin, layouts, state, dense)
        moved = {path: move(layouts[path], mask) for path, mask in masks.items()}
        new = layouts | {path: layout for path, (layout, _) in moved.items()}
        return new, self._kept(origin, optim, {path: moves for path, (_, moves) in moved.items()})

    def _masks(self, origin: PyTree, layouts: Layouts, state: PrunerState, dense: Callable | None) -> dict[str, Array]:
        pruner, transition = self.pruner, self.pruner.transition
        assert isinstance(transition, DropGrow)
        sites = read(skeleton(origin))
        plan = pruner.plan_for(sites)(pruner.distribution)
        drop = density_of(1 - transition.fraction(pruner.schedule, state.step))
        stay = {p: survivors(pruner.criterion.score(layouts[p].values), drop) for p in plan.sites}
        zeros = {path: site.weight for path, site in plan.sites.items()}  # for their shapes
        gradient = None if dense is None else weights_of(dense(densified(origin)))
        key = key_for(state.key, state.step, GAIN)
        gain = transition.grow.scores(zeros, grads=gradient, key=key)
        gain = {path: unknown_last(gain[path], dense_mask(layouts[path])) for path in plan.sites}
        return plan.masks(gain, kept={path: dense_mask(layouts[path], stay[path]) for path in plan.sites})

    def _kept(self, model: PyTree, optim: PyTree, moves: dict[str, Moves]) -> PyTree:
        if self.pruner.optim is None:
            return optim
        owners = parameters_of(model)
        state = OptimiserState(optim, owners)
        fresh = OptimiserState(start(self.pruner.optim, eqx.filter(model, eqx.is_inexact_array)), owners)
        there = state.parts(list(moves))
        return state.tree({at: moves[state.site(at) or ""].of(leaf, fresh.at(at)) for at, leaf in there.items()})


def _check_kind(pruner: AbstractPruner) -> None:
    transition, name = pruner.transition, type(pruner).__name__
    if isinstance(transition, Fixed | Kept):
        return
    fits = (
        isinstance(transition, DropGrow)
        and isinstance(transition.grow, Random | GradientMagnitude)
        and isinstance(pruner.criterion, Magnitude)
        and isinstance(pruner.order, After | Instead)
    )
    if not fits:
        raise ValueError(
            "`SparseTraining(pruner=...)` must keep its masks, or drop by `Magnitude` and grow by `Random` or "
            f"`GradientMagnitude` after or instead of the optimiser's step: what others need is dense. Got {name}."
        )
    if not (isinstance(pruner.structure, Unstructured) and pruner.structure == Unstructured()):
        raise ValueError(
            "`SparseTraining(pruner=...)` must have the structure `Unstructured()` where masks move. "
            f"Got {pruner.structure!r}."
        )


def _moves(pruner: AbstractPruner) -> bool:
    return isinstance(pruner.transition, DropGrow)


def _check_layers(model: PyTree, paths: list[str]) -> None:
    single: set[str] = set()

    def visit(path: str, layer: Any) -> Any:
        if isinstance(layer, MaskedLinear) and type(layer.layer) is eqx.nn.Linear and layer.layer.weight.ndim == 2:
            single.add(f"{path}.weight" if path else "weight")
        return layer

    map_layers(model, visit)
    others = [path for path in paths if path not in single]
    if others:
        raise ValueError(
            "`SparseTraining.init(model=...)` must have its pruned weights in single `eqx.nn.Linear` layers; choose "
            f"them by `where=`. Got {others[:5]}."
        )


def _check_budgets(plan: Plan) -> None:
    shared = [budget.paths for budget in plan.budgets if not isinstance(budget, SiteBudget)]
    if shared:
        raise ValueError(
            "`SparseTraining(pruner=...)` must give each weight a number of its own where masks move, as `Uniform`, "
            f"`ERK` and `PerPath` do. Got one for {list(shared[0])[:5]} together."
        )


def _outline(parameters: PyTree) -> tuple[tuple[str, str], ...]:
    return tuple((path, f"shape {tuple(leaf.shape)}") for path, leaf in leaves_by_path(parameters))


def _without_optimiser(pruner: _Pruner) -> _Pruner:
    """So that no state of a dense weight is made."""
    alone = copy.copy(pruner)
    object.__setattr__(alone, "optim", None)
    return alone
