"""Exchanging the masked layers of a model, but for those that others reach into."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax.core import Tracer
from jaxtyping import PyTree

from .._layers import AbstractMasked
from .._model import is_sparsified, materialise
from .._sites import map_layers


def checked(model: PyTree, name: str) -> PyTree:
    """The model that a user gave to the function of that name."""
    if any(isinstance(leaf, Tracer | jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(model)):
        raise ValueError(
            f"`{name}(model=...)` must hold arrays whose numbers are known, and so be called outside `jax.jit`, "
            "`jax.vmap` and the like: how many weights are kept shapes the arrays. Got traced ones."
        )
    if not is_sparsified(model):
        raise ValueError(
            f"`{name}(model=...)` must contain a masked layer; `eqsparse.sparsify` makes them, pruners fill their "
            f"masks. Got {type(model).__name__} without any."
        )
    return model


def exchange_masked(model: PyTree, change: Callable[[str, AbstractMasked], Any]) -> PyTree:
    """The model with `change(path, layer)` in the place of each masked layer.

    Wrappers that reach into the weights of what they hold are left out: layers within `eqx.nn.Shared` become plain,
    those within `eqx.nn.WeightNorm` and `eqx.nn.SpectralNorm`, which compute the weight anew in each call, stay
    masked.
    """
    exchanged = map_layers(
        _without_wrappers(model, _Held),
        lambda path, layer: change(path, layer) if isinstance(layer, AbstractMasked) else layer,
    )
    return jax.tree.map(lambda x: _put_back(x.node) if isinstance(x, _Held) else x, exchanged)


def exchangeable(model: PyTree) -> PyTree:
    """The model without the parts that `exchange_masked` leaves out."""
    return _without_wrappers(model, lambda node: None)


class _Held:
    """A part of the model that `map_layers` must not walk into: a leaf, as it is no PyTree."""

    def __init__(self, node: Any):
        self.node = node


def _without_wrappers(model: PyTree, replace: Callable[[Any], Any]) -> PyTree:
    leaves, treedef = jax.tree.flatten(model, is_leaf=_reaches_in)
    return treedef.unflatten([replace(leaf) if _reaches_in(leaf) else leaf for leaf in leaves])


def _reaches_in(node: Any) -> bool:
    return isinstance(node, eqx.nn.Shared | eqx.nn.WeightNorm | eqx.nn.SpectralNorm)


def _put_back(node: Any) -> Any:
    return materialise(node) if isinstance(node, eqx.nn.Shared) else node
