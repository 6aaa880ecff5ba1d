"""A model or PyTree read into a table of sites, and the table written back."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array

from .._layers import AbstractMasked, CONTRACTION_AXIS, core_rank, maskable_fields
from .._mask import Mask, masked
from .walk import is_model, join, leaves_by_path, map_layers, replace_fields


@dataclasses.dataclass(frozen=True)
class Site:
    """One prunable weight.

    - `weight`: the array, axes of a stack first.
    - `mask`: its mask, `None` in a model that is not sparsified.
    - `core_rank`: rank of one layer's weight; the axes before are a stack of layers.
    - `contraction_axis`: which axis of the core is summed over when the layer is called.
    - `default`: whether the site is pruned unless someone says otherwise.
    """

    path: str
    weight: Array
    mask: Mask | None
    core_rank: int
    contraction_axis: int
    default: bool = True

    @property
    def effective(self) -> Array:
        """The weight, zero where it is masked."""
        return self.weight if self.mask is None else masked(self.weight, self.mask)

    @property
    def core(self) -> tuple[int, ...]:
        """Shape of one layer's weight."""
        return tuple(self.weight.shape[self.weight.ndim - self.core_rank :])

    @property
    def stack(self) -> tuple[int, ...]:
        """Shape of the stack of layers; empty for a single layer."""
        return tuple(self.weight.shape[: self.weight.ndim - self.core_rank])

    @property
    def slice_size(self) -> int:
        """Weights in one layer."""
        return math.prod(self.core)

    @property
    def slices(self) -> int:
        """Layers in the stack."""
        return math.prod(self.stack)


Sites = dict[str, Site]


def read(tree: Any) -> Sites:
    """The sites of a model or PyTree, by path, in the order of its leaves.

    With masked layers in it: the masked fields. A plain model: the weights of the layers that have a
    masked twin. A PyTree without modules: its floating-point arrays, by default those of rank 2 or more.
    """
    if not is_model(tree):
        leaves = leaves_by_path(tree)
        _unique([path for path, _ in leaves])  # of all, sites or not: `write` finds its leaves by path
        return {path: _leaf_site(path, leaf) for path, leaf in leaves if _is_inexact(leaf)}
    masked: list[Site] = []
    plain: list[Site] = []

    def visit(path: str, layer: Any) -> Any:
        if isinstance(layer, AbstractMasked):
            for name, mask in sorted(layer.masks.items()):
                masked.append(_masked_site(path, layer, name, mask))
        else:
            plain.extend(_plain_site(path, layer, name) for name in maskable_fields(layer) if _has(layer, name))
        return layer

    map_layers(tree, visit)
    sites = masked or plain
    _unique([site.path for site in sites])
    return {site.path: site for site in sites}


def write(tree: Any, weights: Mapping[str, Any], masks: Mapping[str, Mask] | None = None) -> Any:
    """The tree with new weights and masks at the paths given."""
    masks = masks or {}
    if not is_model(tree):
        flat, treedef = jtu.tree_flatten(tree)
        paths = [path for path, _ in leaves_by_path(tree)]
        return treedef.unflatten([weights.get(path, leaf) for path, leaf in zip(paths, flat, strict=True)])

    def visit(path: str, layer: Any) -> Any:
        names = layer.masks if isinstance(layer, AbstractMasked) else maskable_fields(layer)
        fields = {name: weights[join(path, name)] for name in names if join(path, name) in weights}
        if not isinstance(layer, AbstractMasked):
            return replace_fields(layer, fields) if fields else layer
        new = {name: masks.get(join(path, name), mask) for name, mask in layer.masks.items()}
        return replace_fields(layer, {"layer": replace_fields(layer.layer, fields), "masks": new})

    return map_layers(tree, visit)


def weights_of(tree: Any) -> dict[str, Any]:
    """What stands at the place of each site (in gradients or updates of a model, say): path → array."""
    return {path: site.weight for path, site in read(tree).items()}


def masks_of(sites: Sites) -> dict[str, Mask]:
    """The masks of the sites that have one."""
    return {path: site.mask for path, site in sites.items() if site.mask is not None}


def _leaf_site(path: str, leaf: Any) -> Site:
    array = jnp.asarray(leaf)
    return Site(path, array, None, array.ndim, max(array.ndim - 1, 0), default=array.ndim >= 2)


def _plain_site(path: str, layer: Any, name: str) -> Site:
    return Site(join(path, name), getattr(layer, name), None, core_rank(layer), CONTRACTION_AXIS)


def _masked_site(path: str, layer: AbstractMasked, name: str, mask: Mask) -> Site:
    weight = getattr(layer.layer, name)
    return Site(join(path, name), weight, mask, layer.core_rank(name), layer.contraction_axis(name))


def _unique(paths: list[str]) -> None:
    seen: set[str] = set()
    for path in paths:
        if path in seen:
            raise ValueError(
                f"paths must be unique: two leaves share the path `{path}`. Rename a key (a dict key with a dot in "
                "it, say)."
            )
        seen.add(path)


def _has(layer: Any, name: str) -> bool:
    return _is_inexact(getattr(layer, name))


def _is_inexact(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and hasattr(leaf, "shape") and jnp.issubdtype(leaf.dtype, np.inexact)
