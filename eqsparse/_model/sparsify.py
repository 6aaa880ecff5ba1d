"""From a plain Equinox model to one of masked layers, and back."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from .._layers import AbstractMasked, maskable_fields, twin_of
from .._mask import BYTE, check_whole, Mask
from .._sites import is_model, join, map_layers, pick, read, replace_fields, Where
from .buffers import own_buffers


def sparsify(model: PyTree, where: Where = None, *, packed: bool = False) -> PyTree:
    """Every eligible layer becomes its masked twin, all masks full: outputs stay the same, bit for bit.

    **Arguments:**

    - `model`: An Equinox model, or any PyTree of Equinox modules. Layers that are masked already stay
        as they are.
    - `where`: Which weights: a glob on weight paths (`"encoder.*"`), a list of globs, a compiled
        regular expression, or a callable `(path, array) -> bool`. All by default.
    - `packed`: Store masks with eight weights to a byte.

    **Returns:** The model, with `eqsparse.MaskedLinear` in the place of `eqx.nn.Linear`, and so on. Weights
    that `eqx.nn.Shared` ties to a masked one are tied to its effective weight. No two leaves are in the same
    buffer, so that the model can be donated.

    **Raises:** `ValueError` if a pattern matches no weight, the model has no layer that can be masked, or the bytes of
    a packed mask would be cut by the shards of a weight.
    """
    arrays = _maskable(model)
    if not arrays:
        raise ValueError(
            "`sparsify(model=...)` must contain a layer that can be masked (`eqx.nn.Linear`, `Conv`, `Embedding`, "
            "`GRUCell`, `LSTMCell`, or `eqsparse.Masked` around a module of your own). Got "
            f"{type(model).__name__} without any."
        )
    chosen = pick(where, arrays)

    def mask_layer(path: str, layer: Any) -> Any:
        fields = [name for name in _fields(layer) if join(path, name) in chosen]
        if not fields:
            return layer
        twin = twin_of(layer)
        masked = layer if twin is None else twin.holding(layer, {})
        had = masked.masks
        if packed:
            for name in fields:
                check_whole("packed=True", join(path, name), getattr(masked.layer, name), BYTE)
        new = {n: Mask.full(getattr(masked.layer, n), packed=packed) for n in fields if n not in had}
        return replace_fields(masked, {"masks": {**had, **new}})

    return own_buffers(_map_shared(map_layers(model, mask_layer), _tie))


def materialise(model: PyTree) -> PyTree:
    """The inverse of `sparsify`: a plain Equinox model, zeros written in.

    **Arguments:**

    - `model`: A model with masked layers. Differentiable with respect to their weights.

    **Returns:** The model with `eqx.nn.Linear` in the place of `eqsparse.MaskedLinear`, and so on.
    """
    write_zeros = lambda path, layer: layer.materialise() if isinstance(layer, AbstractMasked) else layer
    return _map_shared(map_layers(model, write_zeros), _untie)


def is_sparsified(model: PyTree) -> bool:
    """Whether there is a masked layer in the model."""
    return is_model(model) and any(site.mask is not None for site in read(model).values())


def _fields(layer: Any) -> tuple[str, ...]:
    """The fields of a layer that are masked or could be."""
    if isinstance(layer, AbstractMasked):  # asked of the class: an instance reads through to what it masks
        names, inner = getattr(type(layer), "fields", layer.masks), layer.layer
    else:
        names, inner = maskable_fields(layer), layer
    return tuple(name for name in names if eqx.is_inexact_array(getattr(inner, name)))


def _maskable(model: PyTree) -> dict[str, Array]:
    found: dict[str, Array] = {}

    def visit(path: str, layer: Any) -> Any:
        found.update({join(path, name): getattr(layer, name) for name in _fields(layer)})
        return layer

    if is_model(model):
        map_layers(model, visit)
    return found


def _map_shared(model: PyTree, change: Callable[[eqx.nn.Shared], eqx.nn.Shared]) -> PyTree:
    is_shared = lambda x: isinstance(x, eqx.nn.Shared)
    return jax.tree.map(lambda x: change(x) if is_shared(x) else x, model, is_leaf=is_shared)


class _EffectiveGet(eqx.Module):
    """`eqx.nn.Shared`'s `get`, on the effective weights."""

    get: Callable

    def __call__(self, pytree: PyTree) -> PyTree:
        return self.get(materialise(pytree))


def _tie(shared: eqx.nn.Shared) -> eqx.nn.Shared:
    if isinstance(shared.get, _EffectiveGet) or not is_sparsified(shared.pytree):
        return shared
    return replace_fields(shared, {"get": _EffectiveGet(shared.get)})


def _untie(shared: eqx.nn.Shared) -> eqx.nn.Shared:
    return replace_fields(shared, {"get": shared.get.get}) if isinstance(shared.get, _EffectiveGet) else shared
