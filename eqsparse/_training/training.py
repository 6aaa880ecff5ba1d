"""Sparse training that stores and computes the kept weights only."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, final, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, PyTree

from .._check import instance
from .._criterion import GradientMagnitude, Magnitude, Random
from .._distribution.budget import SiteBudget
from .._layers import MaskedLinear
from .._model import own_buffers
from .._pruner import (
    AbstractPruner,
    After,
    Before,
    DropGrow,
    Fixed,
    FreshWhereGrown,
    Instead,
    Kept,
    OnMask,
    PrunerState,
)
from .._pruner.match import like_parameters, same_model
from .._pruner.optimiser import numbers_as_arrays, optimise, start
from .._pruner.plan import Plan
from .._selection import count, step_if
from .._sites import is_model, leaves_by_path, map_layers, read
from .._structure import Unstructured
from .compact import as_masked, compact, layouts_of
from .update import Update

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

        - `model`: A plain model, or a masked one whose masks already remove something (these are kept; where masks
            move, they must hold as many weights as the distribution says). Call this outside `jax.jit`.

        **Returns:** `(model, state)`: pruned linear layers as `eqsparse.SparseLayer`, the rest plain.

        **Raises:** `ValueError` if a weight to be pruned is not that of a single `eqx.nn.Linear`, or, while masks move,
        shares its budget with others or has a mask of another count.
        """
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(model)):
            raise ValueError(
                "`SparseTraining.init(model=...)` must hold arrays, not tracers: how many weights are kept shapes the "
                "arrays, so call it outside `jax.jit`, `jax.vmap` and `jax.eval_shape`. Got tracers."
            )
        if not is_model(model):
            raise ValueError("`SparseTraining.init(model=...)` must be an Equinox model. Got a PyTree without modules.")
        masked, begun = _without_optimiser(self.pruner).init(model)
        sites = read(masked)
        made = self.pruner.plan_for(sites)(self.pruner.distribution)
        removes = lambda mask: mask is not None and not bool(jnp.all(mask.dense()))
        paths = [path for path, site in sites.items() if path in made.sites or removes(site.mask)]
        _check_layers(masked, paths)
        if isinstance(self.pruner.transition, DropGrow):
            _check_budgets(made)
            _check_counts(made)
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
        transition = self.pruner.transition
        by_gradient = isinstance(transition, DropGrow) and "grads" in transition.grow.needs
        if by_gradient and dense is None:
            raise ValueError(
                f"`SparseTraining.step(dense=...)` must be a function from the plain model to its gradient: "
                f"{type(self.pruner).__name__} grows weights by it. Got None."
            )
        dense = dense if by_gradient else None
        return self._step(model, grads, state, dense, numbers_as_arrays(extra))

    def masked(self, model: PyTree) -> PyTree:
        """The same model with dense weights and masks, to go on in any other way. Call this outside `jax.jit`."""
        if not layouts_of(model):
            raise ValueError(
                "`SparseTraining.masked(model=...)` must come from `init` or the last `step`. "
                f"Got {type(model).__name__} without a layer of kept weights."
            )
        return as_masked(model)

    @eqx.filter_jit
    def _step(
        self, model: PyTree, grads: PyTree, state: PrunerState, dense: Callable | None, extra: dict
    ) -> tuple[PyTree, PrunerState]:
        update = Update(self.pruner, model, grads, state, dense)
        optimised = lambda model, optim: self._optimised(model, grads, optim, extra)
        if isinstance(self.pruner.order, After):
            model, optim = update.run(*optimised(model, state.optim))
        else:
            model, optim = self._unless(update.due, optimised, *update.run(model, state.optim))
        return model, dataclasses.replace(state, step=state.step + 1, optim=optim)

    def _optimised(self, model: PyTree, grads: PyTree, optim: PyTree, extra: dict) -> tuple[PyTree, PyTree]:
        if self.pruner.optim is None:
            return model, optim
        parameters, rest = eqx.partition(model, eqx.is_inexact_array)
        _, parameters, optim = optimise(self.pruner.optim, grads, optim, parameters, extra)
        return eqx.combine(parameters, rest), optim

    def _unless(self, held: Array | bool, optimised: Callable, model: PyTree, optim: PyTree) -> tuple[PyTree, PyTree]:
        """The optimiser's step where it is not held."""
        parameters, rest = eqx.partition(model, eqx.is_inexact_array)

        def step(now: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            model, optim = optimised(eqx.combine(now[0], rest), now[1])
            return eqx.filter(model, eqx.is_inexact_array), optim

        taken = not held if isinstance(held, bool) else ~held
        parameters, optim = step_if(taken, step, (parameters, optim))
        return eqx.combine(parameters, rest), optim


def _check_kind(pruner: AbstractPruner) -> None:
    transition, name = pruner.transition, type(pruner).__name__
    if not (isinstance(pruner.view, OnMask) and isinstance(pruner.order, Before | After | Instead)):
        raise ValueError(
            "`SparseTraining(pruner=...)` must train the weights on its masks and no others, and not rewind. "
            f"Got {name}."
        )
    if isinstance(transition, Fixed | Kept):
        return
    fits = (
        isinstance(transition, DropGrow)
        and isinstance(transition.grow, Random | GradientMagnitude)
        and isinstance(pruner.criterion, Magnitude)
        and isinstance(pruner.order, After | Instead)
        and isinstance(pruner.upkeep, FreshWhereGrown)
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


def _check_counts(plan: Plan) -> None:
    for budget in plan.budgets:
        for path in budget.paths:
            site = plan.sites[path]
            kept = 0 if site.mask is None else int(site.mask.nnz())
            target = int(count(site.weight.size, budget.density).lo)
            if kept != target:
                raise ValueError(
                    "`SparseTraining.init(model=...)` must keep as many weights as the distribution says where masks "
                    f"move, {target} at `{path}`. Got {kept}: prune the model to it first, or give `NoPruning`."
                )
            if site.weight.size >= 2**31:
                raise ValueError(
                    "`SparseTraining.init(model=...)` must have fewer than 2**31 weights in a layer where masks move. "
                    f"Got {site.weight.size} at `{path}`."
                )


def _outline(parameters: PyTree) -> tuple[tuple[str, str], ...]:
    return tuple((path, f"shape {tuple(leaf.shape)}") for path, leaf in leaves_by_path(parameters))


def _without_optimiser(pruner: _Pruner) -> _Pruner:
    """So that no state of a dense weight is made."""
    alone = copy.copy(pruner)
    object.__setattr__(alone, "optim", None)
    return alone
