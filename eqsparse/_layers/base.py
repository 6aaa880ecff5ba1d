"""What every masked layer does: hold the layer it masks, and run it on its effective weights."""

import abc
import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from .._mask import as_mask, effective, Mask


class AbstractMasked(eqx.Module):
    """A layer that runs on masked weights.

    It *holds* the layer it masks, so that all the layer's own code (initialisation, padding, dtype
    promotion, errors) runs unchanged, on weights with zeros in them.

    Array fields of the layer read through as they are stored (`masked.weight`, also for
    `eqx.tree_at`); methods and properties of the layer run on `materialise()`.
    """

    layer: eqx.AbstractVar[Any]
    masks: eqx.AbstractVar[dict[str, Mask]]

    @abc.abstractmethod
    def core_rank(self, name: str) -> int:
        """Rank of the field in one layer: its axes before that are a stack of layers."""

    @abc.abstractmethod
    def contraction_axis(self, name: str) -> int:
        """The axis of the field in one layer that is summed over when the layer is called."""

    def effective(self, name: str) -> Inexact[Array, "..."]:
        """The weight of that name with zeros where it is masked.

        Its derivative is dense: that with respect to the effective weight, in reverse and forward mode.
        """
        return effective(getattr(self.layer, name), self.masks[name])

    def materialise(self) -> Any:
        """The plain layer, zeros written in."""
        names = sorted(self.masks)
        return eqx.tree_at(
            lambda layer: [getattr(layer, n) for n in names], self.layer, [self.effective(n) for n in names]
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer with its masked weights; takes what the layer takes."""
        return self.materialise()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # Only reached for names that are not found on this class. Without `layer` (an instance that is
        # being made or unpickled) there is nothing to read through to.
        if name in ("layer", "masks") or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        layer = self.layer
        stored = isinstance(layer, eqx.Module) and any(f.name == name for f in dataclasses.fields(layer))
        if not stored and not hasattr(type(layer), name):
            raise AttributeError(f"{type(layer).__name__!r} object has no attribute {name!r}")
        return getattr(layer if stored else self.materialise(), name)


def masks_for(layer: eqx.Module, names: tuple[str, ...], mask: Any, *, packed: bool) -> dict[str, Mask]:
    """The masks of the named fields: `mask` is `None`, an array (for one field) or a dict by field."""
    given = mask if isinstance(mask, dict) else {} if mask is None else dict.fromkeys(names[:1], mask)
    if mask is not None and not isinstance(mask, dict) and len(names) > 1:
        raise ValueError(
            f"`mask` must be a dict by field for a layer with several masked fields {list(names)}. "
            f"Got {type(mask).__name__}."
        )
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ValueError(f"`mask` must name masked fields of the layer, of {list(names)}. Got {unknown}.")
    return {n: as_mask(given.get(n), weight_of(layer, n), n, packed=packed) for n in names}


def weight_of(layer: eqx.Module, name: str) -> Inexact[Array, "..."]:
    """The field of that name, which must be an inexact array."""
    stored = {f.name: getattr(layer, f.name, None) for f in dataclasses.fields(layer)}
    weight = stored.get(name)  # not by `getattr`: a property's value could not be masked
    if not eqx.is_inexact_array(weight):
        known = [n for n, value in stored.items() if eqx.is_inexact_array(value)]
        got = type(weight).__name__ if name in stored else "no field of that name"
        raise ValueError(
            f"`{type(layer).__name__}.{name}` must be a floating-point array to be masked. "
            f"Got {got}. Its array fields: {known}."
        )
    return jnp.asarray(weight)
