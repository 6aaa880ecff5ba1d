"""A pruner as an Optax transformation, for parameters in any PyTree."""

import dataclasses
from typing import Any, TYPE_CHECKING

import equinox as eqx
import jax
import optax
from jaxtyping import PyTree

from .._mask import Mask, masked
from .._model import own_buffers
from .._selection import update_if
from .._sites import masks_of, read, weights_of, write
from .match import like_parameters, outline, same_model
from .optimiser import numbers_as_arrays

if TYPE_CHECKING:
    from .base import AbstractPruner
    from .state import PrunerState


class OptaxState(eqx.Module):
    """What a pruner carries from step to step as an Optax transformation.

    - `masks`: of the parameters that are pruned, by path.
    - `pruner`: the pruner's own state.
    """

    masks: dict[str, Mask]
    pruner: "PrunerState"


def as_optax(pruner: "AbstractPruner") -> optax.GradientTransformationExtraArgs:
    """See `AbstractPruner.as_optax`."""

    def init(params: PyTree) -> OptaxState:
        sites = read(params)
        pruned = pruner.plan_for(sites)(pruner.distribution).sites
        masks = {p: s.mask or pruner.mask_at_first(s.weight) for p, s in pruned.items()}
        turn, state = pruner.begin(params, masks_of(sites) | masks)
        return own_buffers(OptaxState(turn.masks, state))

    def update(
        updates: PyTree, state: OptaxState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, OptaxState]:
        if params is None:
            raise ValueError("`params` must be given to `update`: masks are those of the parameters. Got None.")
        if not isinstance(state, OptaxState):
            raise ValueError(f"`state` must come from `init` or the last `update`. Got {type(state).__name__}.")
        same_model(state.pruner, outline(params, state.masks), type(pruner).__name__, "params")
        grads = like_parameters(updates, params, "updates", "params")
        return _update(pruner, params, grads, state, numbers_as_arrays(extra))

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


@eqx.filter_jit  # for those who don't: masks are found in loops, which would be compiled again at each step
def _update(
    pruner: "AbstractPruner", params: PyTree, grads: PyTree, state: OptaxState, extra: dict[str, Any]
) -> tuple[PyTree, OptaxState]:
    begun = pruner.turn(params, state.masks, state.pruner, grads, extra)
    first = state.pruner.step == 0  # when parameters are not on their masks yet
    landed = update_if(first, lambda _: begun.landed(params).parameters, params)
    turn, advanced = pruner.advance(dataclasses.replace(begun, parameters=landed), state.pruner)

    def from_masks(_: PyTree) -> PyTree:
        """What grows at the first step does so from zero, not from where it stands."""
        on_masks = begun.landed(params).parameters
        updates = turn.landed_updates(on_masks)
        added, weights, starts = (weights_of(tree) for tree in (updates, params, on_masks))
        from_there = lambda path: added[path] + (starts[path] - weights[path]).astype(added[path].dtype)
        return write(updates, {path: from_there(path) for path in turn.masks})

    return update_if(first, from_masks, turn.landed_updates(params)), OptaxState(turn.masks, advanced)


def forward_params(params: PyTree, state: PyTree) -> PyTree:
    """See `AbstractPruner.forward_params`."""
    is_ours = lambda x: isinstance(x, OptaxState)
    found = [x for x in jax.tree.leaves(state, is_leaf=is_ours) if is_ours(x)]
    if len(found) != 1:
        raise ValueError(
            "`forward_params(state=...)` must hold the state of one `as_optax()` transformation. "
            f"Got {len(found)} in {type(state).__name__}."
        )
    weights = weights_of(params)
    missing = [path for path in found[0].masks if path not in weights]
    if missing:
        raise ValueError(
            f"`forward_params(params=...)` must be the parameters that the state is of. Got none at {missing[:5]}."
        )
    for path, mask in found[0].masks.items():
        if weights[path].shape != mask.shape:
            raise ValueError(
                f"`forward_params(params=...)` must be the parameters that the state is of: {mask.shape} at `{path}`. "
                f"Got {weights[path].shape}."
            )
    return write(params, {path: masked(weights[path], mask) for path, mask in found[0].masks.items()})
