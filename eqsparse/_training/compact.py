"""A model whose pruned layers hold only what their masks keep, and its other forms."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PyTree

from .._export import BCSRLayout, SparseLayer
from .._layers import AbstractMasked, MaskedLinear
from .._pruner.optimiser import Parameter, Parameters
from .._sites import join, map_layers, path_of, replace_fields

_FIELD = "weight"

Layouts = dict[str, BCSRLayout]


def compact(model: PyTree, paths: Collection[str]) -> PyTree:
    """The masked model with only the kept values of the weights at some paths, and its other layers plain."""

    def change(path: str, layer: Any) -> Any:
        if not isinstance(layer, AbstractMasked):
            return layer
        if join(path, _FIELD) not in paths:
            return layer.materialise()
        layout = BCSRLayout.from_dense(layer.layer.weight, layer.masks[_FIELD].dense())
        # Where entries move, any row may come to hold as many as it has columns.
        return SparseLayer(layer, {_FIELD: dataclasses.replace(layout, widest=layout.shape[1])})

    return map_layers(model, change)


def is_compact(node: Any) -> bool:
    return isinstance(node, SparseLayer)


def layouts_of(model: PyTree) -> Layouts:
    """Path of the weight → its layout."""
    found, _ = jtu.tree_flatten_with_path(model, is_leaf=is_compact)
    return {join(path_of(keys), _FIELD): node.weights[_FIELD] for keys, node in found if is_compact(node)}


def with_layouts(model: PyTree, layouts: Mapping[str, BCSRLayout]) -> PyTree:
    """The model on other layouts."""
    return _mapped(model, lambda path, node: replace_fields(node, {"weights": {_FIELD: layouts[path]}}))


def densified(model: PyTree) -> PyTree:
    """The plain model, zeros written in."""
    return _mapped(model, lambda path, node: node.materialise())


def skeleton(model: PyTree) -> PyTree:
    """A plain model of the same shapes and paths, whose pruned weights are zero."""
    zeros = lambda layout: jnp.zeros(layout.shape, layout.dtype)
    return _mapped(model, lambda path, node: replace_fields(node.layer, {_FIELD: zeros(node.weights[_FIELD])}))


def as_masked(model: PyTree) -> PyTree:
    """The masked model: dense weights again, and the masks."""

    def change(path: str, node: SparseLayer) -> MaskedLinear:
        return MaskedLinear.from_layer(node.materialise(), mask=jnp.asarray(node.weights[_FIELD].mask()))

    return _mapped(model, change)


def parameters_of(model: PyTree) -> Parameters:
    """Each parameter of the compact model by its path, the kept values as those of their site."""
    tree = eqx.filter(model, eqx.is_inexact_array)
    owner = {id(layout.values): path for path, layout in layouts_of(tree).items()}
    found, _ = jtu.tree_flatten_with_path(tree)
    return {path_of(keys): Parameter(owner.get(id(x)), tuple(x.shape), len(keys)) for keys, x in found}


def _mapped(model: PyTree, change: Callable[[str, SparseLayer], Any]) -> PyTree:
    found, treedef = jtu.tree_flatten_with_path(model, is_leaf=is_compact)
    at = lambda keys: join(path_of(keys), _FIELD)
    return jax.tree.unflatten(treedef, [change(at(keys), x) if is_compact(x) else x for keys, x in found])
