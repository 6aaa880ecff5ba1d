"""Parametrisations: how the weights that the model runs on relate to those that the optimiser trains."""

import abc
from typing import final, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float32, Shaped, UInt32

from .._check import not_negative
from .._mask import on_mask
from .._selection import fraction_of


class Place(NamedTuple):
    """One site at one step.

    - `mask`: which weights the model runs on.
    - `trained`: which weights the optimiser may change, where that is another set (a superset).
    - `density`: the share that the mask is to keep, in fixed point.
    """

    mask: Bool[Array, "..."]
    trained: Bool[Array, "..."] | None
    density: UInt32[Array, ""] | None


class AbstractView(eqx.Module):
    """What the optimiser sees of a masked weight, and what becomes of its step.

    The gradient that arrives is the one with respect to the weights that the model runs on, dense.
    """

    @abc.abstractmethod
    def pull_back(self, grads: Shaped[Array, "..."], weight: Shaped[Array, "..."], place: Place) -> Array:
        """The gradient that the optimiser gets."""

    @abc.abstractmethod
    def land(self, stepped: Shaped[Array, "..."], weight: Shaped[Array, "..."], place: Place) -> Array:
        """The weights after a step, from those that the optimiser makes and those before."""

    @abc.abstractmethod
    def land_update(self, update: Shaped[Array, "..."], weight: Shaped[Array, "..."], place: Place) -> Array:
        """The same as an update to add: `weight + land_update(...)` is `land(weight + update, ...)`."""

    @abc.abstractmethod
    def alive(self, place: Place) -> Bool[Array, "..."] | None:
        """Where weights have an optimiser state; it is zero elsewhere. `None`: everywhere, masks don't matter."""


@final
class OnMask(AbstractView):
    """Weights are zero where the mask is `False`, and only the others train."""

    def pull_back(self, grads: Array, weight: Array, place: Place) -> Array:
        return on_mask(grads, place.mask)

    def land(self, stepped: Array, weight: Array, place: Place) -> Array:
        return on_mask(stepped, place.mask)

    def land_update(self, update: Array, weight: Array, place: Place) -> Array:
        return jnp.where(place.mask, update, -weight.astype(update.dtype))

    def alive(self, place: Place) -> Bool[Array, "..."]:
        return place.mask


@final
class StraightThroughView(AbstractView):
    """All weights train, masked or not, as if the mask had derivative one.

    With a decay λ the masked ones are also drawn to zero: the gradient is `g + λ (1 - mask) w`, as in SR-STE.
    """

    decay: Float32[Array, "..."] | None

    def __init__(self, decay: ArrayLike | None = None):
        """**Arguments:**

        - `decay`: λ, `None` for none.
        """
        self.decay = None if decay is None else not_negative(decay, "decay")

    def pull_back(self, grads: Array, weight: Array, place: Place) -> Array:
        if self.decay is None:
            return grads
        drawn = jnp.where(place.mask, jnp.zeros((), weight.dtype), weight).astype(jnp.float32) * self.decay
        return (grads.astype(jnp.float32) + drawn).astype(grads.dtype)

    def land(self, stepped: Array, weight: Array, place: Place) -> Array:
        return stepped

    def land_update(self, update: Array, weight: Array, place: Place) -> Array:
        return update

    def alive(self, place: Place) -> None:
        return None


@final
class SupersetView(AbstractView):
    """The weights of a larger set train; those outside of it stay as they are, bit for bit.

    With a decay λ the trained ones are drawn to zero, by `λ w` those that run and `λ w / D` the others, D being the
    density of the former, as in Top-KAST.
    """

    decay: Float32[Array, "..."] | None

    def __init__(self, decay: ArrayLike | None = None):
        """**Arguments:**

        - `decay`: λ, `None` for none.
        """
        self.decay = None if decay is None else not_negative(decay, "decay")

    def pull_back(self, grads: Array, weight: Array, place: Place) -> Array:
        if self.decay is not None and place.density is not None:
            rate = jnp.where(place.mask, self.decay, self.decay / jnp.maximum(fraction_of(place.density), 1e-9))
            grads = (grads.astype(jnp.float32) + rate * weight.astype(jnp.float32)).astype(grads.dtype)
        return on_mask(grads, _trained(place))

    def land(self, stepped: Array, weight: Array, place: Place) -> Array:
        return jnp.where(_trained(place), stepped, weight)

    def land_update(self, update: Array, weight: Array, place: Place) -> Array:
        return on_mask(update, _trained(place))

    def alive(self, place: Place) -> Bool[Array, "..."]:
        return _trained(place)


def _trained(place: Place) -> Bool[Array, "..."]:
    return place.mask if place.trained is None else place.trained
