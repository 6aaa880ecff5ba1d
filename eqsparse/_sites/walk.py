"""Walking a PyTree layer by layer, with the names a user would write for each place."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import equinox as eqx
import jax.tree_util as jtu

from .._layers import AbstractMasked, twin_of

Change = Callable[[str, Any], Any]


def is_model(tree: Any) -> bool:
    """Whether there is an `eqx.Module` anywhere in the tree."""
    is_module = lambda x: isinstance(x, eqx.Module)
    return any(is_module(x) for x in jtu.tree_leaves(tree, is_leaf=is_module))


def map_layers(tree: Any, change: Change, path: str = "") -> Any:
    """The tree with `change(path, layer)` for each layer that is masked or could be, innermost first.

    A masked layer stands at the place of the layer it masks, so paths are the same before and after
    `sparsify`.
    """
    if isinstance(tree, AbstractMasked):
        inner = _map_children(tree.layer, change, path)
        return change(path, replace_fields(tree, {"layer": inner}))
    if twin_of(tree) is not None:
        return change(path, tree)
    return _map_children(tree, change, path)


def _map_children(tree: Any, change: Change, path: str) -> Any:
    children, rebuild = _one_level(tree)
    if len(children) == 1 and children[0][1] is tree:
        return tree
    return rebuild([map_layers(child, change, join(path, name)) for name, child in children])


def replace_fields(module: Any, values: Mapping[str, Any]) -> Any:
    """The module with some fields exchanged, whatever stands in them (also in a tree of gradients)."""
    children, rebuild = _one_level(module)
    return rebuild([values.get(name, child) for name, child in children])


def leaves_by_path(tree: Any) -> list[tuple[str, Any]]:
    """All leaves of a PyTree, each with its path."""
    found, _ = jtu.tree_flatten_with_path(tree)
    return [(path_of(keys), leaf) for keys, leaf in found]


def path_of(keys: Iterable[Any]) -> str:
    """`layers.0.weight` for the key path `.layers[0].weight`."""
    return ".".join(_name(key) for key in keys)


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _one_level(tree: Any) -> tuple[list[tuple[str, Any]], Callable[[list[Any]], Any]]:
    found, treedef = jtu.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)
    return [(path_of(keys), child) for keys, child in found], treedef.unflatten


def _name(key: Any) -> str:
    for attribute in ("name", "key", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
