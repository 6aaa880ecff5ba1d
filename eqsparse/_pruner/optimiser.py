"""Keeping optimiser state on the masks: matched to weights by key path, whatever the optimiser."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array, Bool, PyTree

from .._mask import on_mask
from .._sites import path_of, Sites, write

_Tree = TypeVar("_Tree")


def start(optim: optax.GradientTransformation, parameters: PyTree) -> PyTree:
    """The state that an Optax optimiser begins with."""
    with jax.numpy_dtype_promotion("standard"):  # some call schedules of theirs here already
        return optim.init(parameters)


def optimise(
    optim: optax.GradientTransformation, grads: PyTree, state: PyTree, parameters: PyTree, extra: dict[str, Any]
) -> tuple[PyTree, PyTree]:
    """One step of an Optax optimiser: new parameters, in their own dtypes, and new state."""
    with jax.numpy_dtype_promotion("standard"):  # which Optax's own arithmetic relies on
        updates, state = optax.with_extra_args_support(optim).update(grads, state, parameters, **extra)
        return optax.apply_updates(parameters, updates), state


def numbers_as_arrays(extra: _Tree) -> _Tree:
    """Python's numbers as arrays: as constants of the compiled step, each `value=float(loss)` would compile anew."""
    number = lambda x: isinstance(x, int | float | complex) and not isinstance(x, bool)
    return jax.tree.map(lambda x: jnp.asarray(x) if number(x) else x, extra)


def mask_state(state: PyTree, masks: Mapping[str, Bool[Array, "..."]], places: Mapping[str, str | None]) -> PyTree:
    """Zeros the parts of an optimiser's state that belong to masked weights.

    A leaf belongs to the parameter whose key path its own ends with, if their shapes are equal; so it works for
    moments in any chain, wrapper or partition, and leaves counters and factored statistics alone.

    - `places`: path of every parameter in the tree that the optimiser sees → path of its site (`None` if it is none).
    """

    def zeroed(site: str | None, leaf: Any) -> Any:
        mask = None if site is None else masks[site]
        if mask is None or not hasattr(leaf, "shape") or leaf.shape != mask.shape:
            return leaf
        return on_mask(leaf, mask)

    # Also the empty places of parameters that a wrapper leaves out: they tell where its copies of the tree begin.
    found, treedef = jtu.tree_flatten_with_path(state, is_leaf=lambda x: isinstance(x, tuple) and not x)
    owners = _sites_of([[path_of([key]) for key in keys] for keys, _ in found], places)
    return treedef.unflatten([zeroed(site, leaf) for site, (_, leaf) in zip(owners, found, strict=True)])


def parameter_places(parameters: PyTree, sites: Sites) -> dict[str, str | None]:
    """Path of each parameter in its tree → path of its site, if it is one."""
    tagged = write(parameters, {path: _Tag(path) for path in sites})
    is_tag = lambda x: isinstance(x, _Tag)
    found, _ = jtu.tree_flatten_with_path(tagged, is_leaf=is_tag)
    return {path_of(keys): leaf.path if is_tag(leaf) else None for keys, leaf in found}


class _Tag:
    """A mark in the place of an array."""

    def __init__(self, path: str):
        self.path = path


def _sites_of(leaves: list[list[str]], places: Mapping[str, str | None]) -> list[str | None]:
    """The site of each leaf of a state, given by the names on its way.

    Where several ends of its way are paths of parameters (a model may have a field called `mu`, as Adam's state
    has), that one counts before which most parameters are found: there a copy of their tree begins.
    """
    starts = [[at for at in range(len(names) + 1) if ".".join(names[at:]) in places] for names in leaves]
    found = Counter(tuple(names[:at]) for names, ats in zip(leaves, starts, strict=True) for at in ats)
    owners: list[str | None] = []
    for names, ats in zip(leaves, starts, strict=True):
        best = max(ats, key=lambda at, names=names: found[tuple(names[:at])], default=None)
        owners.append(None if best is None else places[".".join(names[best:])])
    return owners
