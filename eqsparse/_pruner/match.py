"""Checks that gradients and state belong to the model they come with."""

from collections.abc import Mapping
from typing import Any, TYPE_CHECKING, TypeAlias

import equinox as eqx
import jax
from jaxtyping import PyTree

from .._mask import Mask
from .._sites import leaves_by_path, read, weights_of

if TYPE_CHECKING:
    from .state import PrunerState

Outline: TypeAlias = tuple[tuple[str, str], ...]


def like_parameters(grads: PyTree, parameters: PyTree, argument: str = "grads", model: str = "model") -> PyTree:
    """The gradients in the tree of the parameters; raises if they are of another model.

    `argument` and `model` are what the caller's own arguments are called, here and below.
    """
    want = {path: leaf.shape for path, leaf in leaves_by_path(parameters)}
    there = dict(leaves_by_path(grads))
    found = {path: leaf for path, leaf in there.items() if eqx.is_inexact_array(leaf)}
    got = {path: leaf.shape for path, leaf in found.items()}
    if want != got:
        path = next(p for p in {**want, **got} if want.get(p) != got.get(p))
        raise ValueError(
            f"`{argument}` must have one floating-point array for each parameter of `{model}`, as a gradient has. "
            f"{_at(_as_site(path, parameters))} `{model}` has {_shape(want.get(path))}. Got {_leaf(there.get(path))}."
        )
    return jax.tree.unflatten(jax.tree.structure(parameters), [found[path] for path in want])


def outline(parameters: PyTree, masks: Mapping[str, Mask]) -> Outline:
    """Path → shape and storage of the mask, of all sites and of the other parameters: to tell models apart."""
    sites = read(parameters)
    form = lambda path: "" if path not in masks else " with a packed mask" if masks[path].packed else " with a mask"
    found = [(path, f"shape {tuple(site.weight.shape)}{form(path)}") for path, site in sites.items()]
    weights = {id(site.weight) for site in sites.values()}
    others = [(path, leaf) for path, leaf in leaves_by_path(parameters) if id(leaf) not in weights]
    return (*found, *((path, f"shape {tuple(leaf.shape)}") for path, leaf in others if path not in sites))


def same_model(state: "PrunerState", here: Outline, maker: str, model: str = "model") -> None:
    """Raises if the state was made for another model or by another pruner."""
    there = getattr(state, "outline", None)
    if there is None:
        raise ValueError(f"`state` must come from `init` or the last `step`. Got {type(state).__name__}.")
    if state.maker != maker:
        raise ValueError(f"`state` must be that of this pruner, a {maker}. Got that of a {state.maker}.")
    if there != here:
        now, was = dict(here), dict(there)
        path = next((p for p in {**now, **was} if now.get(p) != was.get(p)), "")
        raise ValueError(
            f"`state` must be that of `{model}`. {_at(path)} `{model}` has {now.get(path, 'nothing')}. "
            f"Got a state of {was.get(path, 'nothing')}."
        )


def same_optimiser(state: PyTree, fresh: PyTree) -> None:
    """Raises if the state is that of another optimiser."""
    if jax.tree.structure(state) != jax.tree.structure(fresh):
        raise ValueError(
            "`state` must be that of this pruner's optimiser. "
            f"Got {_names(state)}, where the optimiser has {_names(fresh)}."
        )


def _as_site(path: str, parameters: PyTree) -> str:
    """The path of the site that a leaf is, where it is one: without the layer that a masked one holds."""
    leaf = dict(leaves_by_path(parameters)).get(path)
    return next((site for site, weight in weights_of(parameters).items() if weight is leaf), path)


def _at(path: str) -> str:
    return f"At `{path}`" if path else "As a single array"


def _names(state: PyTree) -> str:
    kinds = [type(part).__name__ for part in (state if type(state) is tuple else (state,))]
    return " and ".join(kinds)


def _leaf(leaf: Any) -> str:
    if eqx.is_inexact_array(leaf):
        return _shape(leaf.shape)
    return "nothing" if leaf is None else f"dtype {leaf.dtype}" if eqx.is_array(leaf) else repr(leaf)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else f"shape {tuple(shape)}"
