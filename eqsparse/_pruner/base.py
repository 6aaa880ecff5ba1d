"""What every pruner does: `init`, `step`, `prune`."""

from collections.abc import Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Bool, Int32, PRNGKeyArray, PyTree

from .._check import instance, random_key
from .._criterion import AbstractCriterion
from .._distribution import AbstractDistribution, Uniform
from .._mask import Mask, masked, on_mask, zeroed
from .._model import is_sparsified, own_buffers, sparsify
from .._schedule import AbstractSchedule, NoSchedule
from .._selection import own_key, update_if
from .._show import show
from .._sites import (
    as_patterns,
    is_model,
    leaves_by_path,
    masks_of,
    Pattern,
    PatternMap,
    read,
    Sites,
    weights_of,
    Where,
    write,
)
from .._structure import AbstractStructure, Unstructured
from .match import like_parameters, same_sites
from .optimiser import mask_state, numbers_as_arrays, optimise, parameter_places, start
from .plan import frozen_sites, Plan, plan
from .transition import AbstractTransition

_Tree = TypeVar("_Tree")


class PrunerState(eqx.Module):
    """What a pruner carries from step to step, beside the model (which holds the masks).

    - `step`: how many steps were taken.
    - `optim`: the optimiser's state, `None` without one.
    - `key`: what random criteria draw from, `None` for others.
    """

    step: Int32[Array, ""]
    optim: PyTree
    key: PRNGKeyArray | None
    sites: tuple[tuple[str, tuple[int, ...]], ...] = eqx.field(static=True)


class AbstractPruner(eqx.Module):
    """An algorithm that finds masks: a criterion, a distribution, a schedule, a structure and a transition.

    A named algorithm says which criterion and transition it is made of.
    """

    optim: optax.GradientTransformation | None = eqx.field(static=True)
    distribution: AbstractDistribution
    schedule: AbstractSchedule
    structure: AbstractStructure | PatternMap
    where: tuple[Pattern, ...] | None = eqx.field(static=True)
    key: PRNGKeyArray | None
    packed: bool = eqx.field(static=True)

    criterion: eqx.AbstractVar[AbstractCriterion]
    transition: eqx.AbstractVar[AbstractTransition]

    def __init__(
        self,
        optim: optax.GradientTransformation | None = None,
        *,
        distribution: AbstractDistribution | ArrayLike,
        schedule: AbstractSchedule = NoSchedule(),  # noqa: B008 (a module: immutable)
        structure: AbstractStructure | Mapping[Any, AbstractStructure] = Unstructured(),  # noqa: B008
        where: Where = None,
        key: PRNGKeyArray | None = None,
        packed: bool = False,
    ):
        """**Arguments:**

        - `optim`: The Optax optimiser that `step` runs. Without one, `step` updates masks only.
        - `distribution`: How many weights each site keeps; a float stands for `Uniform`.
        - `schedule`: When masks are updated, and how far towards the target.
        - `structure`: The shape of the masks, or pattern → structure (unstructured where none matches).
        - `where`: Which weights: a glob on paths, a regular expression, a callable, or a list. All by default.
        - `key`: Needed by those that draw.
        - `packed`: Store masks with eight weights to a byte, where `init` sparsifies a plain model.

        **Raises:** `ValueError` for arguments of a wrong kind, or if a key is needed and missing.
        """
        instance(schedule, AbstractSchedule, f"{type(self).__name__}(schedule=...)", "a schedule")
        random_key(key, f"{type(self).__name__}(key=...)")
        self.optim = as_optim(optim, f"{type(self).__name__}(optim=...)")
        self.distribution = as_distribution(distribution)
        self.schedule = schedule
        self.structure = as_structures(structure)
        self.where = as_patterns(where)
        self.key = key
        self.packed = bool(packed)
        if key is None and "key" in self.criterion.needs:
            raise ValueError(f"`{type(self).__name__}(key=...)` must be a `jax.random.key`: it draws. Got None.")

    def init(self, model: PyTree) -> tuple[PyTree, PrunerState]:
        """The model ready to be trained, and the pruner's state.

        **Arguments:**

        - `model`: A model with masked layers, or a plain one, which is sparsified first.

        **Returns:** `(model, state)`: masks as they were (full for a plain model), weights on their masks, no two
        leaves in the same buffer (so that both can be donated).

        **Raises:** `ValueError` if there is nothing to prune, a pattern matches no weight, or a structure does not
        fit a weight or its target.
        """
        model = self._sparsified(model)
        sites = read(model)
        self._plan(sites).check()
        model = write(model, {path: masked(sites[path].weight, mask) for path, mask in masks_of(sites).items()})
        optim = None if self.optim is None else start(self.optim, eqx.filter(model, eqx.is_inexact_array))
        witness = next(iter(sites.values())).weight
        # A copy: donating the state must not delete the pruner's own key.
        key = None if self.key is None else jnp.copy(own_key(self.key, witness))
        return own_buffers((model, PrunerState(jnp.zeros((), jnp.int32), optim, key, frozen_sites(sites))))

    def step(self, model: PyTree, grads: PyTree, state: PrunerState, **extra: Any) -> tuple[PyTree, PrunerState]:
        """One sparse training step: masks if they are due, then the optimiser, then the weights on their masks.

        **Arguments:**

        - `model`: The model, from `init` or the last step.
        - `grads`: Gradients with respect to it, as `eqx.filter_grad` gives them.
        - `state`: The state, from `init` or the last step.
        - `**extra`: Goes to the optimiser's `update`, as `value=` for some.

        **Returns:** `(model, state)`. Compiled on first use, once for one optimiser object.

        **Raises:** `ValueError` if `grads` or `state` belong to another model.
        """
        sites = read(model)
        same_sites(state, frozen_sites(sites))
        if grads is not None or self.optim is not None or "grads" in self.criterion.needs:
            grads = like_parameters(grads, eqx.filter(model, eqx.is_inexact_array))
        return self._step(model, grads, state, numbers_as_arrays(extra))

    def prune(self, model: _Tree, *, grads: PyTree = None, key: PRNGKeyArray | None = None) -> _Tree:
        """Prunes to the target at once, without training.

        **Arguments:**

        - `model`: An Equinox model, or arrays in any PyTree: of these the floating-point arrays of rank 2 or
            more are pruned.
        - `grads`: Gradients, as `model` is, for criteria that need them.
        - `key`: For criteria that draw; that of the pruner by default.

        **Returns:** A model with masked layers, weights zeroed; arrays, dicts, lists and tuples as they came, with
        zeros.

        **Raises:** `ValueError` if there is nothing to prune, or an input of the criterion is missing.
        """
        if is_model(model):
            model = self._sparsified(model)
        made = self._plan(read(model))
        if not made.sites and not any(site.default for site in read(model).values()):
            name = type(self).__name__
            raise ValueError(f"`{name}.prune(model=...)` must hold a floating-point array of rank 2 or more. Got none.")
        made.check()
        sites = read(model)
        random_key(key, f"{type(self).__name__}.prune(key=...)")
        key = self.key if key is None else key
        if key is not None:  # under `vmap` each member draws its own, as from `init`
            key = own_key(key, next(iter(sites.values())).weight)
        masks = self._prune(model, grads, key)
        new = {path: (sites[path].mask or Mask(mask)).replace(mask) for path, mask in masks.items()}
        kept = {path: new.get(path, site.mask) for path, site in sites.items()}
        given = weights_of(model) if is_model(model) else dict(leaves_by_path(model))
        weights = {path: zeroed(given[path], mask) for path, mask in kept.items() if mask is not None}
        return write(model, weights, new)

    @eqx.filter_jit
    def _prune(self, model: PyTree, grads: PyTree, key: PRNGKeyArray | None) -> dict[str, Bool[Array, "..."]]:
        sites = read(model)
        made = self._plan(sites)
        old = {p: jnp.ones_like(s.weight, bool) if s.mask is None else s.mask.dense() for p, s in made.sites.items()}
        gradients = None if grads is None else weights_of(grads)
        return self.transition.update(old, self._scores(made.sites, gradients, key), made, None, None)

    @eqx.filter_jit
    def _step(self, model: PyTree, grads: PyTree, state: PrunerState, extra: dict) -> tuple[PyTree, PrunerState]:
        sites = read(model)
        masks = self._updated_masks(sites, None if grads is None else weights_of(grads), state)
        dense = {path: mask.dense() for path, mask in masks.items()}
        land = lambda tree: write(tree, {path: on_mask(w, dense[path]) for path, w in weights_of(tree).items()})
        model = write(land(model), {}, masks)
        optim = state.optim
        if self.optim is not None:
            parameters, rest = eqx.partition(model, eqx.is_inexact_array)
            # Masked before the update, where it fuses with it.
            optim = mask_state(optim, dense, parameter_places(parameters, sites))
            parameters, optim = optimise(self.optim, land(grads), optim, parameters, extra)
            model = land(eqx.combine(parameters, rest))
        return model, PrunerState(state.step + 1, optim, state.key, state.sites)

    def _updated_masks(self, sites: Sites, grads: Mapping[str, Array] | None, state: PrunerState) -> dict[str, Mask]:
        """The masks of all sites, those of the pruned ones changed if an update is due."""
        made = self._plan(sites)
        old = masks_of(sites)
        pruned = {path: old[path] for path in made.sites}

        def update(pruned: dict[str, Mask]) -> dict[str, Mask]:
            key = None if state.key is None else jax.random.fold_in(state.key, state.step)
            scores = self._scores(made.sites, grads, key)
            dense = {path: mask.dense() for path, mask in pruned.items()}
            new = self.transition.update(dense, scores, made, self.schedule, state.step)
            return {path: pruned[path].replace(mask) for path, mask in new.items()}

        due = self.schedule.is_due(state.step)
        if grads is not None:
            # After the backward pass: at the same time, both would hold scratch memory, and on several devices
            # wait for each other's all-reduces.
            due, _ = jax.lax.optimization_barrier((due, grads))
        return old | update_if(due, update, pruned)

    def _scores(self, sites: Sites, grads: Mapping[str, Array] | None, key: PRNGKeyArray | None) -> dict[str, Array]:
        weights = {path: site.weight for path, site in sites.items()}
        return self.criterion.scores(weights, grads=grads, key=key)

    def __repr__(self) -> str:
        return show(self)

    def _plan(self, sites: Sites) -> Plan:
        return plan(sites, self.distribution, self.structure, self.where)

    def _sparsified(self, model: PyTree) -> PyTree:
        return model if is_sparsified(model) else sparsify(model, packed=self.packed)


def as_optim(value: Any, argument: str) -> optax.GradientTransformation | None:
    """An Optax optimiser; also what has `init` and `update` without being one, as `optax.MultiSteps` does."""
    if value is None or isinstance(value, optax.GradientTransformation):
        return value
    if callable(getattr(value, "init", None)) and callable(getattr(value, "update", None)):
        return optax.GradientTransformationExtraArgs(value.init, value.update)
    raise ValueError(f"`{argument}` must be an Optax optimiser or `None`. Got {value!r}.")


def as_distribution(value: AbstractDistribution | ArrayLike) -> AbstractDistribution:
    """A distribution, for which a number stands for `Uniform`."""
    if isinstance(value, AbstractDistribution):
        return value
    if hasattr(value, "dtype") or isinstance(value, int | float):
        return Uniform(value)
    raise ValueError(f"`distribution` must be a distribution, or a sparsity for `Uniform`. Got {value!r}.")


def as_structures(value: Any) -> AbstractStructure | PatternMap:
    """A structure, or a map from patterns to structures."""
    every = value.values() if isinstance(value, Mapping) else [value]
    for structure in every:
        instance(structure, AbstractStructure, "structure", "a structure, or a dict of pattern → structure")
    return PatternMap(value) if isinstance(value, Mapping) else value
