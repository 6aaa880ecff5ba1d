"""Large batches, some examples at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

_BATCH = 512  # so that the transposed copies of what goes in and comes out stay small


def over_batch(multiply: Callable[[Array], Array], x: Inexact[Array, "batch in_size"], out_size: int) -> Array:
    """`multiply(x)`, some examples at a time; the last part may overlap the one before.

    All at once where their number is not known yet (a symbolic one of `jax.export`).
    """
    batch = x.shape[0]
    if not isinstance(batch, int) or batch <= _BATCH:
        return multiply(x)

    def step(i: Array, y: Array) -> Array:
        start = jnp.minimum(i * _BATCH, batch - _BATCH)
        part = multiply(jax.lax.dynamic_slice_in_dim(x, start, _BATCH))
        return jax.lax.dynamic_update_slice_in_dim(y, part, start, 0)

    return jax.lax.fori_loop(0, -(-batch // _BATCH), step, to_be_written((batch, out_size), x))


def to_be_written(shape: tuple[int, ...], after: Inexact[Array, "..."]) -> Array:
    """An array of any content, which is made when `after` is there.

    A plain array of zeros would depend on nothing, and XLA's CPU scheduler would make those of all layers at the
    start: a transformer took 128 MB of scratch where the dense one takes 28.
    """
    if after.size == 0:
        return jnp.zeros(shape, after.dtype)
    first = jax.lax.stop_gradient(after[(0,) * after.ndim])
    return jnp.broadcast_to(first, shape)
