"""What the weights will take once `to_bcoo` has exported them."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
from jaxtyping import PyTree

from .._export import BCSRLayout
from .._layers import AbstractMasked, MaskedLinear
from .._sites import join, map_layers, Site

Form: TypeAlias = Literal["dense", "masked", "bcoo"]

_NORMS = (eqx.nn.WeightNorm, eqx.nn.SpectralNorm)
_WRAPPERS = (eqx.nn.Shared, *_NORMS)


def export_forms(model: PyTree) -> dict[str, Form]:
    """How `to_bcoo` stores each masked weight, by path.

    Linear layers become sparse. Wrappers that reach into the weights of what they hold prevent that: within a
    norm layers stay masked, within `eqx.nn.Shared` they become dense, as other layers do everywhere.
    """
    everywhere: dict[str, Form] = dict.fromkeys(_forms(model, lambda node: False), "masked")
    outside_norms: dict[str, Form] = dict.fromkeys(_forms(model, lambda node: isinstance(node, _NORMS)), "dense")
    return {**everywhere, **outside_norms, **_forms(model, lambda node: isinstance(node, _WRAPPERS))}


def exported_bytes(site: Site, kept: list[int], form: Form, dense: int, masked: int) -> int:
    """Bytes of a weight that keeps so many in each slice of its stack.

    For BCOO every slice is as large as the fullest.
    """
    if form == "bcoo":
        out_size, in_size = site.core
        shape, itemsize = (out_size, in_size), site.weight.dtype.itemsize
        return site.slices * BCSRLayout.bytes_of_slice(max(kept, default=0), shape, itemsize)
    return masked if form == "masked" else dense


def _forms(model: PyTree, cut: Callable[[Any], bool]) -> dict[str, Form]:
    """The form of each masked weight as if no wrapper held it; wrappers are left out where `cut` says so."""
    is_wrapper = lambda node: isinstance(node, _WRAPPERS)
    rest = jax.tree.map(lambda node: None if cut(node) else node, model, is_leaf=is_wrapper)
    found: dict[str, Form] = {}

    def visit(path: str, layer: Any) -> Any:
        if isinstance(layer, AbstractMasked):
            # A subclass of `Linear` may do anything with its weight.
            linear = isinstance(layer, MaskedLinear) and type(layer.layer) is eqx.nn.Linear
            found.update({join(path, name): "bcoo" if linear else "dense" for name in layer.masks})
        return layer

    map_layers(rest, visit)
    return found
