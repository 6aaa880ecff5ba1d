"""Checks that gradients and state belong to the model they come with."""

from typing import Any, TYPE_CHECKING

import equinox as eqx
import jax
from jaxtyping import PyTree

from .._sites import leaves_by_path

if TYPE_CHECKING:
    from .base import PrunerState


def like_parameters(grads: PyTree, parameters: PyTree) -> PyTree:
    """The gradients in the tree of the parameters; raises if they are of another model."""
    want = {path: leaf.shape for path, leaf in leaves_by_path(parameters)}
    there = dict(leaves_by_path(grads))
    found = {path: leaf for path, leaf in there.items() if eqx.is_inexact_array(leaf)}
    got = {path: leaf.shape for path, leaf in found.items()}
    if want != got:
        path = next(p for p in {**want, **got} if want.get(p) != got.get(p))
        raise ValueError(
            "`grads` must have one floating-point array for each parameter of `model`, as `eqx.filter_grad` gives "
            f"them. At `{path}` the model has {_shape(want.get(path))}. Got {_leaf(there.get(path))}."
        )
    return jax.tree.unflatten(jax.tree.structure(parameters), [found[path] for path in want])


def same_sites(state: "PrunerState", sites: tuple[tuple[str, tuple[int, ...]], ...]) -> None:
    """Raises if the state was made for another model."""
    there = getattr(state, "sites", None)
    if there is None:
        raise ValueError(f"`state` must come from `init` or the last `step`. Got {type(state).__name__}.")
    if there != sites:
        here, was = dict(sites), dict(there)
        path = next((p for p in {**here, **was} if here.get(p) != was.get(p)), "")
        raise ValueError(
            f"`state` must be that of `model`. At `{path}` the model has {_shape(here.get(path))}. "
            f"Got a state of {_shape(was.get(path))}."
        )


def _leaf(leaf: Any) -> str:
    if eqx.is_inexact_array(leaf):
        return _shape(leaf.shape)
    return "nothing" if leaf is None else f"dtype {leaf.dtype}" if eqx.is_array(leaf) else repr(leaf)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else f"shape {tuple(shape)}"
