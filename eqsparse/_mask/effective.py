"""The masked weight, with the dense derivative."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Inexact, Shaped

from .mask import Mask


def on_mask(array: Shaped[Array, "*shape"], dense: Bool[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """The array where it is kept, zero elsewhere (never by multiplication: infinities and NaNs drop too)."""
    return jnp.where(dense, array, jnp.zeros((), array.dtype))


def masked(weight: Inexact[Array, "*shape"], mask: Mask) -> Inexact[Array, "*shape"]:
    """`on_mask` for a mask as it is stored."""
    return on_mask(weight, mask.dense())


def zeroed(weight: Inexact[Array | np.ndarray, "*shape"], mask: Mask) -> Inexact[Array | np.ndarray, "*shape"]:
    """`masked` for weights that come back as they are given: NumPy's as NumPy's, which may be 64 bits wide."""
    if isinstance(weight, np.ndarray) and not isinstance(mask.bits, Tracer):
        return np.where(np.asarray(mask.dense()), weight, np.zeros((), weight.dtype))
    return masked(jnp.asarray(weight), mask)


@jax.custom_jvp
def effective(weight: Inexact[Array, "*shape"], mask: Mask) -> Inexact[Array, "*shape"]:
    """`masked(weight, mask)`, whose derivative with respect to `weight` is the identity everywhere.

    The gradient that arrives is thus the one with respect to the effective weight, dense: growth,
    saliency and straight-through estimators read it where the mask is `False`. Pruners pull it back.
    """
    return masked(weight, mask)


@effective.defjvp
def _(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    return effective(*primals), tangents[0]
