"""What every pruner does: `init`, `step`, `prune`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, PRNGKeyArray, PyTree

from .._check import instance, random_key
from .._criterion import AbstractCriterion
from .._distribution import AbstractDistribution
from .._mask import Mask, zeroed
from .._model import is_sparsified, own_buffers, sparsify
from .._schedule import AbstractSchedule, NoSchedule
from .._selection import in_float32, own_key
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
from ._transition import AbstractTransition, Kept, Moment, Monotone, WORTH
from .arguments import as_distribution, as_optim, as_structures
from .as_optax import as_optax, forward_params
from .match import like_parameters, outline, same_model, same_optimiser
from .optimiser import AbstractUpkeep, FreshWhereGrown, numbers_as_arrays, OptimiserState, parameters_by_path, start
from .order import AbstractOrder, Before
from .plan import Plan, plan
from .shards import check_shards, on_mesh_of
from .state import PrunerState
from .turn import key_for, masked_sites, Memory, Setting, Turn
from .view import AbstractView, OnMask

_Tree = TypeVar("_Tree")
_AT_INIT = 2**32 - 1  # the step that masks drawn at `init` count as


class AbstractPruner(eqx.Module):
    """An algorithm that finds masks, made of pieces.

    Which weights, how many and when is the user's: `distribution`, `schedule`, `structure`, `where`. A named
    algorithm says the rest:

    - `criterion`: what a weight is worth.
    - `transition`: how masks change at an update.
    - `view`: what the optimiser sees of a masked weight.
    - `order`: where the change of masks stands to the optimiser's step.
    - `upkeep`: what becomes of the optimiser's state when a mask changes.

    ```python
    class CarefulPruning(eqsparse.AbstractPruner):
        criterion = MyCriterion()
    ```
    """

    optim: optax.GradientTransformation | None = eqx.field(static=True)
    distribution: AbstractDistribution
    schedule: AbstractSchedule
    structure: AbstractStructure | PatternMap
    where: tuple[Pattern, ...] | None = eqx.field(static=True)
    key: PRNGKeyArray | None
    packed: bool = eqx.field(static=True)

    criterion: eqx.AbstractVar[AbstractCriterion]
    transition: ClassVar[AbstractTransition] = Monotone()
    view: ClassVar[AbstractView] = OnMask()
    order: ClassVar[AbstractOrder] = Before()
    upkeep: ClassVar[AbstractUpkeep] = FreshWhereGrown()

    determined: ClassVar[tuple[str, ...]] = ()
    """Arguments of every pruner that this one does not take."""

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
        instance(packed, bool, f"{type(self).__name__}(packed=...)", "a bool")
        self.packed = packed
        if key is None and "key" in self._needs():
            raise ValueError(f"`{type(self).__name__}(key=...)` must be a `jax.random.key`: it draws. Got None.")

    def init(self, model: PyTree) -> tuple[PyTree, PrunerState]:
        """The model ready to be trained, and the pruner's state.

        **Arguments:**

        - `model`: A model with masked layers, or a plain one, which is sparsified first. Where there are masked
            layers, those that are not stay dense (`eqsparse.sparsify` masks them too).

        **Returns:** `(model, state)`: masks as the algorithm begins with (gradual pruning: as they were, full for a
        plain model; `RigL`: drawn; straight-through: chosen), weights on their masks, no two
        leaves in the same buffer (so that both can be donated).

        **Raises:** `ValueError` if there is nothing to prune, a pattern matches no weight, a structure does not fit a
        weight or its target, or what a mask keeps together (a tile, a run, a byte) is cut by the shards of a weight.
        """
        model = self._sparsified(model)
        parameters, rest = eqx.partition(model, eqx.is_inexact_array)
        turn, state = self.begin(parameters, masks_of(read(model)))
        return own_buffers((write(eqx.combine(turn.parameters, rest), {}, turn.masks), state))

    def step(self, model: PyTree, grads: PyTree, state: PrunerState, **extra: Any) -> tuple[PyTree, PrunerState]:
        """One sparse training step: masks if they are due, then the optimiser, then the weights on their masks.

        **Arguments:**

        - `model`: The model, from `init` or the last step.
        - `grads`: Gradients with respect to it, as `eqx.filter_grad` gives them.
        - `state`: The state, from `init` or the last step.
        - `**extra`: Goes to the optimiser's `update`, as `value=` for some.

        **Returns:** `(model, state)`. Compiled on first use, once for one optimiser object. Differentiable in forward
        mode only: updates are found in loops.

        **Raises:** `ValueError` if `grads` or `state` belong to another model.
        """
        parameters = eqx.filter(model, eqx.is_inexact_array)
        same_model(state, outline(parameters, masks_of(read(model))), type(self).__name__)
        if grads is not None or self.optim is not None or not {"grads", "memory"}.isdisjoint(self._needs()):
            grads = like_parameters(grads, parameters)
        return self._step(model, grads, state, numbers_as_arrays(extra))

    def prune(self, model: _Tree, *, grads: PyTree = None, key: PRNGKeyArray | None = None) -> _Tree:
        """Prunes to the target at once, without training.

        **Arguments:**

        - `model`: An Equinox model, as for `init`, or arrays in any PyTree: of these the floating-point arrays of
            rank 2 or more are pruned (or complex ones).
        - `grads`: Gradients, as `model` is, for criteria that need them.
        - `key`: For criteria that draw; that of the pruner by default.

        **Returns:** A model with masked layers, weights zeroed; arrays, dicts, lists and tuples as they came, with
        zeros.

        **Raises:** `ValueError` if there is nothing to prune, an input of the criterion is missing, or what a mask
        keeps together is cut by the shards of a weight (as `init`).
        """
        model = self._checked(model)
        random_key(key, f"{type(self).__name__}.prune(key=...)")
        key = self.key if key is None else key
        if key is not None:  # under `vmap` each member draws its own, as from `init`
            key = own_key(key, next(iter(read(model).values())).weight)
        return self._pruned(model, self._prune(model, grads, key))

    def _checked(self, model: _Tree) -> _Tree:
        """The model sparsified if it is one, after making sure that there is something to prune."""
        if is_model(model):
            model = self._sparsified(model)
        made = self.plan_for(read(model))(self.distribution)
        if not made.sites and not any(site.default for site in read(model).values()):
            name = type(self).__name__
            raise ValueError(f"`{name}.prune(model=...)` must hold a floating-point array of rank 2 or more. Got none.")
        made.check()
        check_shards(made, read(model), masks_of(read(model)))
        return model

    def _pruned(self, model: _Tree, masks: Mapping[str, Array]) -> _Tree:
        """The model on new masks, its weights zeroed."""
        sites = read(model)
        new = {path: (sites[path].mask or Mask(mask)).replace(mask) for path, mask in masks.items()}
        kept = {path: new.get(path, site.mask) for path, site in sites.items()}
        given = weights_of(model) if is_model(model) else dict(leaves_by_path(model))
        weights = {path: zeroed(given[path], mask) for path, mask in kept.items() if mask is not None}
        return write(model, weights, new)

    def as_optax(self) -> optax.GradientTransformationExtraArgs:
        """The pruner as an Optax transformation, for parameters in any PyTree (Flax, Haiku, plain dicts).

        ```python
        tx = pruner.as_optax()
        state = tx.init(params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)  # pruned weights are zero now
        ```

        Masks are in its state; of a PyTree without modules the floating-point arrays of rank 2 or more are pruned
        (`where` and overrides take paths as `"dense.kernel"`). It runs the pruner's own optimiser and must be the
        outermost transformation: nothing may change its updates after it. The sparsity is exact for finite weights.
        Initial masks that aren't full (`SET`, `RigL`, `StaticSparse`) are on the weights after the first update.
        A model trained straight-through runs on `pruner.forward_params(params, state)`. `update` is compiled on first
        use, in a loop that is compiled and in one that isn't.

        **Raises:** `ValueError` if the pruner has no optimiser.
        """
        if self.optim is None:
            raise ValueError(f"`{type(self).__name__}(optim=...)` must be given for `as_optax`. Got None.")
        return as_optax(self)

    def forward_params(self, params: _Tree, state: PyTree) -> _Tree:
        """The parameters that the model is to run on: those of `as_optax`, zero where they are masked.

        **Arguments:**

        - `params`: The parameters.
        - `state`: The state of `as_optax()`, or a state that holds it.
        """
        return forward_params(params, state)

    def to_config(self) -> dict[str, Any]:
        """The pruner as plain data, ready for JSON, YAML or TOML; `eqsparse.from_config` is the inverse.

        The optimiser is left out: give `from_config` its `optim`.

        **Raises:** `ValueError` if a pattern, a drop fraction or an optimiser policy is code rather than data.
        """
        from .config import to_config  # it knows all algorithms

        return to_config(self)

    def check_config(self, config: Any) -> None:
        """Makes sure that a checkpoint is of this pruner, by the `to_config()` that was stored in it.

        ```python
        pruner.check_config(json.loads(path.read_text()))
        ```

        `eqsparse.load` does so by itself if the pruner is part of what was saved.

        **Raises:** `ValueError` if the configuration is another one, naming the first difference.
        """
        from .config import check_config

        check_config(self, config)

    def mask_at_first(self, weight: Array) -> Mask:
        """The mask that a weight without one begins with, in `as_optax`."""
        return Mask.full(weight, packed=self.packed)

    def criteria(self) -> dict[str, AbstractCriterion]:
        """All criteria by role: the pruner's own, and those of its transition."""
        return {WORTH: self.criterion, **self.transition.criteria()}

    def plan_for(self, sites: Sites) -> Callable[[AbstractDistribution], Plan]:
        """A distribution → which of the sites are pruned, who shares their weights, and their structures."""
        return lambda distribution: plan(sites, distribution, self.structure, self.where)

    @eqx.filter_jit
    def _prune(self, model: PyTree, grads: PyTree, key: PRNGKeyArray | None) -> dict[str, Array]:
        sites = read(model)
        made = self.plan_for(sites)(self.distribution)
        old = {p: jnp.ones_like(s.weight, bool) if s.mask is None else s.mask.dense() for p, s in made.sites.items()}
        gradients = None if grads is None else weights_of(grads)
        weights = {path: site.weight for path, site in made.sites.items()}
        scored = lambda role: self.criterion.scores(weights, grads=gradients, key=key)
        moment = Moment(made, self.plan_for(sites), scored, lambda role: True)
        return Monotone().update(old, moment)[0]

    def begin(self, parameters: PyTree, masks: dict[str, Mask]) -> tuple[Turn, PrunerState]:
        """Where training begins, from parameters and the masks they have."""
        sites = masked_sites(read(parameters), masks)
        made = self.plan_for(sites)(self.distribution)
        made.check()
        check_shards(made, sites, masks)
        if not made.sites and not isinstance(self.transition, Kept):
            raise ValueError(
                f"`{type(self).__name__}` must have a weight to prune: `where` and the distribution leave none of "
                f"{list(sites)}. `NoPruning` trains without."
            )
        witness = next(iter(sites.values())).weight
        # A copy: donating the state must not delete the pruner's own key.
        key = None if self.key is None else jnp.copy(own_key(self.key, witness))
        masks, trained = self._started(parameters, masks, key)
        known = outline(parameters, masks)
        state = PrunerState(jnp.zeros((), jnp.int32), None, key, trained, {}, known, type(self).__name__)
        turn = self.turn(parameters, masks, state, None, {}).landed(parameters)
        if self.optim is not None:
            turn = dataclasses.replace(turn, optim=start(self.optim, turn.parameters)).settled()
        memory = self._memory(turn, turn.optim) | self.order.start(turn.parameters)
        return turn, on_mesh_of(sites, dataclasses.replace(state, optim=turn.optim, memory=memory))

    def advance(self, turn: Turn, state: PrunerState) -> tuple[Turn, PrunerState]:
        """Where a step ends, from where the last one did."""
        if self.optim is not None:
            same_optimiser(state.optim, eqx.filter_eval_shape(start, self.optim, turn.parameters))
        turn = self.order.run(turn.remember())
        changed = {"step": state.step + 1, "optim": turn.optim, "trained": turn.trained, "memory": turn.memory}
        return turn, dataclasses.replace(state, **changed)

    def turn(
        self, parameters: PyTree, masks: dict[str, Mask], state: PrunerState, grads: PyTree, extra: dict[str, Any]
    ) -> Turn:
        """A step at its beginning."""
        sites = masked_sites(read(parameters), masks)
        made = self.plan_for(sites)(self.distribution)
        due = self.transition.is_due(self.schedule, state.step)
        owners = parameters_by_path(parameters, sites)
        setting = Setting(self, sites, made, state.step, due, state.key, grads, extra, owners)
        return Turn(setting, parameters, masks, state.trained, state.optim, state.memory)

    @eqx.filter_jit
    def _step(self, model: PyTree, grads: PyTree, state: PrunerState, extra: dict) -> tuple[PyTree, PrunerState]:
        parameters, rest = eqx.partition(model, eqx.is_inexact_array)
        turn, state = self.advance(self.turn(parameters, masks_of(read(model)), state, grads, extra), state)
        return write(eqx.combine(turn.parameters, rest), {}, turn.masks), state

    @eqx.filter_jit
    def _started(
        self, parameters: PyTree, masks: dict[str, Mask], key: PRNGKeyArray | None
    ) -> tuple[dict[str, Mask], dict[str, Mask]]:
        """Masks that training begins with, and those of what trains where these are others."""
        planner, criteria = self.plan_for(masked_sites(read(parameters), masks)), self.criteria()
        made = planner(self.distribution)
        weights = {path: site.weight for path, site in made.sites.items()}
        draw = lambda role: None if key is None else key_for(key, _AT_INIT, role)
        scored = lambda role: criteria[role].scores(weights, key=draw(role))
        known = lambda role: {"key"}.issuperset(criteria[role].needs)
        moment = Moment(made, planner, scored, known, self.schedule, jnp.zeros((), jnp.int32))
        new, trained = self.transition.start({path: masks[path].dense() for path in made.sites}, moment)
        stored = lambda table: {path: masks[path].replace(mask) for path, mask in table.items()}
        return masks | stored(new), stored(trained)

    def _memory(self, turn: Turn, optim: PyTree) -> Memory:
        """Zeros for each criterion that remembers, unless the optimiser does it."""
        weights, memory = weights_of(turn.parameters), {}
        for role, criterion in self.criteria().items():
            field = criterion.optimiser_field
            there = {} if field is None else OptimiserState(optim, turn.setting.owners).by_site(field)
            if "memory" in criterion.needs and not set(turn.setting.plan.sites) <= set(there):
                memory[role] = {p: jnp.zeros_like(in_float32(weights[p])) for p in turn.setting.plan.sites}
        return memory

    def _needs(self) -> set[str]:
        return {name for criterion in self.criteria().values() for name in criterion.needs}

    def __repr__(self) -> str:
        return show(self)

    def _sparsified(self, model: PyTree) -> PyTree:
        return model if is_sparsified(model) else sparsify(model, packed=self.packed)
