"""64-bit counts out of 32-bit limbs, so that models of more than 2³² weights count exactly without x64."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, UInt32


class Wide(NamedTuple):
    """The unsigned integer `hi * 2**32 + lo`, elementwise."""

    hi: UInt32[Array, "..."]
    lo: UInt32[Array, "..."]


def wide(value: int) -> Wide:
    return Wide(jnp.asarray(np.uint32(value >> 32)), jnp.asarray(np.uint32(value & 0xFFFFFFFF)))


@jax.jit  # traced once
def multiply(a: ArrayLike, b: ArrayLike) -> Wide:
    """The full product of two uint32, from 16-bit halves."""
    a, b = jnp.asarray(a, jnp.uint32), jnp.asarray(b, jnp.uint32)
    a1, a0, b1, b0 = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
    middle = a1 * b0 + (a0 * b0 >> 16)
    cross = a0 * b1 + (middle & 0xFFFF)
    return Wide(a1 * b1 + (middle >> 16) + (cross >> 16), a * b)


def add(a: Wide, b: Wide) -> Wide:
    lo = a.lo + b.lo
    return Wide(a.hi + b.hi + (lo < a.lo).astype(jnp.uint32), lo)


def subtract(a: Wide, b: Wide) -> Wide:
    return Wide(a.hi - b.hi - (a.lo < b.lo).astype(jnp.uint32), a.lo - b.lo)


def at_least(a: Wide, b: Wide) -> Bool[Array, "..."]:
    return (a.hi > b.hi) | ((a.hi == b.hi) & (a.lo >= b.lo))


def equal(a: Wide, b: Wide) -> Bool[Array, "..."]:
    return (a.hi == b.hi) & (a.lo == b.lo)


def where(pick: Bool[Array, "..."], a: Wide, b: Wide) -> Wide:
    return Wide(jnp.where(pick, a.hi, b.hi), jnp.where(pick, a.lo, b.lo))


def minimum(a: Wide, b: Wide) -> Wide:
    return where(at_least(a, b), b, a)


def maximum(a: Wide, b: Wide) -> Wide:
    return where(at_least(a, b), a, b)


def clipped_subtract(a: Wide, b: Wide) -> Wide:
    """`max(a - b, 0)`."""
    difference = subtract(a, b)
    # Zeros made from the difference: on an explicit mesh `a` alone may be laid out differently.
    return where(at_least(a, b), difference, Wide(jnp.zeros_like(difference.hi), jnp.zeros_like(difference.lo)))


def total(counts: UInt32[Array, "arrays ..."]) -> Wide:
    """Sum over the first axis (of at most 2¹⁶ entries), which 32 bits may not hold."""
    if len(counts) == 1:
        return Wide(jnp.zeros_like(counts[0]), counts[0])
    low = jnp.sum(counts & 0xFFFF, axis=0, dtype=jnp.uint32)
    high = jnp.sum(counts >> 16, axis=0, dtype=jnp.uint32)
    return add(Wide(jnp.zeros_like(low), low), Wide(high >> 16, high << 16))
