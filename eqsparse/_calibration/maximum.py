"""The largest of the magnitudes that several calls of a layer saw, where cotangents can only be added up.

Within a call, whatever `vmap` it is under, the maximum is taken as such. The sum over calls is the maximum where there
is one call. Where there are several, the number of calls whose maximum reaches a value says whether the maximum of all
does; and as float32 numbers that are not negative are in the order of their bits, the value is found bit by bit.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt32

from .measure import Sums
from .statistic import ABSOLUTE_MAXIMUM, CALLS, COUNT, REACHED, STEPS

_BITS = STEPS.bit_length()  # found in one pass


def with_true_maxima(sums: dict[str, Sums], counted: Callable[[dict[str, Sums]], dict[str, Sums]]) -> dict[str, Sums]:
    """The sums with maxima over all calls in the place of sums of maxima.

    - `counted`: the statistics of the same batch that a table of values names.
    """
    several = [p for p, found in sums.items() if ABSOLUTE_MAXIMUM in found and bool(jnp.any(found[CALLS] > 1))]
    if not several:
        return sums
    lower = {path: jnp.zeros(sums[path][ABSOLUTE_MAXIMUM].shape, jnp.uint32) for path in several}
    for shift in reversed(range(0, 32, _BITS)):
        reached = counted({p: {COUNT: sums[p][COUNT], REACHED: _values(lower[p], shift)} for p in several})
        lower = {path: _raised(lower[path], reached[path][REACHED], shift) for path in several}
    exact = {path: jax.lax.bitcast_convert_type(bits, jnp.float32) for path, bits in lower.items()}
    return {p: {**found, ABSOLUTE_MAXIMUM: exact[p]} if p in exact else found for p, found in sums.items()}


def _values(lower: UInt32[Array, "..."], shift: int) -> Float32[Array, "... steps"]:
    steps = jnp.arange(1, STEPS + 1, dtype=jnp.uint32) << shift
    bits = jax.vmap(lambda step: lower + step, out_axes=-1)(steps)
    values = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return jnp.where(bits >> 31 == 0, values, jnp.nan)  # no magnitude has a sign; and nothing reaches NaN


def _raised(lower: UInt32[Array, "..."], reached: Float32[Array, "... steps"], shift: int) -> UInt32[Array, "..."]:
    return lower + (jnp.sum(reached > 0, axis=-1, dtype=jnp.uint32) << shift)
