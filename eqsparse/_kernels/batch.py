"""Large batches, some examples at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

_BATCH = 512  # so that the transposed copies of what goes in and comes out stay small


def over_batch(multiply: Callable[[Array], Array], x: Inexact[Array, "batch in_size"], out_size: int) -> Array:
    """`multiply(x)`, some examples at a time; the last part may overlap the one before."""
    batch = x.shape[0]
    if batch <= _BATCH:
        return multiply(x)

    def step(i: Array, y: Array) -> Array:
        start = jnp.minimum(i * _BATCH, batch - _BATCH)
        part = multiply(jax.lax.dynamic_slice_in_dim(x, start, _BATCH))
        return jax.lax.dynamic_update_slice_in_dim(y, part, start, 0)

    return jax.lax.fori_loop(0, -(-batch // _BATCH), step, jnp.zeros((batch, out_size), x.dtype))
