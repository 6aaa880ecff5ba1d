"""How many of n: sparsities to densities in fixed point, and densities to counts, in integers only.

A density is a uint32 `q` that stands for `q / 2**32`; `FULL` stands for 1. Float arithmetic on sizes
is what makes 90% of 10⁸ weights come out as 10,000,002 elsewhere.

What is made of many small operations is compiled in one piece where it is called outside of a compiled function, and
traced once for all calls inside of one.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float32, UInt32

from .._check import GRID, on_grid
from .limbs import add, clipped_subtract, multiply, where, Wide, wide

FULL = np.uint32(0xFFFFFFFF)
HALF_STEP = 2**32 // (2 * GRID) + 2  # half of that as a density; more for the rounding of a density


def density_of(sparsity: ArrayLike) -> UInt32[Array, "..."]:
    """The density that a sparsity asks for, traced or not. Sparsities outside [0, 1] and NaN are clamped.

    A float32 in [0, 1] names its nearest multiple of 1e-7 without doubt, so 0.9 means nine tenths
    although no float is nine tenths; a number of higher precision goes to its own nearest multiple.
    Rounded up in the last bit, so that halves of `n * density` round up as they would in exact arithmetic.
    """
    return _density_of(jnp.asarray(sparsity if isinstance(sparsity, jax.Array) else on_grid(sparsity), jnp.float32))


@jax.jit
def _density_of(s: Float32[Array, "..."]) -> UInt32[Array, "..."]:
    s = jnp.where(s > 0, jnp.minimum(s, 1), 0)
    bits = jax.lax.bitcast_convert_type(s, jnp.uint32)
    exponent = 150 - (bits >> 23)  # s = mantissa / 2**exponent, exponent ≥ 23
    mantissa = (bits & 0x7FFFFF) | 0x800000
    tiny = exponent > 60
    exponent = jnp.minimum(exponent, 60)
    product = add(multiply(mantissa, np.uint32(GRID)), _power_of_two(exponent - 1))
    removed = jnp.where(tiny, jnp.uint32(0), _shift_right(product, exponent))
    kept = GRID - removed
    q, rest, grid = jnp.zeros_like(kept), kept, jnp.full_like(kept, GRID)
    for _ in range(4):  # long division of kept · 2³² by the grid, a byte at a time
        rest = rest << 8
        q, rest = (q << 8) | jax.lax.div(rest, grid), jax.lax.rem(rest, grid)
    return jnp.where(kept == GRID, FULL, q + (rest > 0).astype(jnp.uint32))


def density_from_fraction(fraction: ArrayLike) -> UInt32[Array, "..."]:
    """A density from a float32 fraction in [0, 1], to 24 significant bits."""
    d = jnp.asarray(fraction, jnp.float32)
    inside = jnp.where((d > 0) & (d < 1), d, 0)
    q = jnp.round(inside * jnp.float32(2.0**32)).astype(jnp.uint32)
    return jnp.where(d >= 1, FULL, q)


def highest_line(density: UInt32[Array, ""], slope: np.ndarray, offset: np.ndarray) -> UInt32[Array, "rows"]:
    """`max_j(slope[i, j] · density - offset[i, j])` for each row i, as a density, in integers.

    Slopes and offsets are static, in float64, with 0 ≤ offset ≤ slope. To 32 bits of the slope: with
    `slope ≤ N / n` for n of N weights, the n weights times the density are exact to about N · 2⁻³².
    """
    # slope = mantissa / 2**exponent, to which the product with a density adds 32 bits, as the offset has.
    exponent = np.clip(32 - np.frexp(slope)[1], 1, 63)
    mantissa = np.minimum(np.rint(np.ldexp(slope, exponent)), 2.0**32 - 1).astype(np.uint32)
    taken = np.minimum(np.rint(np.ldexp(offset, exponent + 32)), 2.0**64 - 2**11).astype(np.uint64)
    off = Wide(jnp.asarray((taken >> 32).astype(np.uint32)), jnp.asarray((taken & 0xFFFFFFFF).astype(np.uint32)))
    return _highest(density, jnp.asarray(mantissa), jnp.asarray(exponent.astype(np.uint32)), off)


@jax.jit
def _highest(density: Array, mantissa: Array, exponent: Array, off: Wide) -> UInt32[Array, "rows"]:
    height = clipped_subtract(multiply(mantissa, density), off)
    beyond = (exponent < 32) & (height.hi >> jnp.minimum(exponent, 31) > 0)
    return jnp.max(jnp.where(beyond, FULL, _shift_right(height, exponent)), axis=-1)


@jax.jit
def fraction_of(density: UInt32[Array, "..."]) -> Float32[Array, "..."]:
    """The density as a float32 fraction."""
    d = density.astype(jnp.float32) * jnp.float32(2.0**-32)
    return jnp.where(density == FULL, jnp.float32(1), d)


def sparsity_of(density: UInt32[Array, ""]) -> float | Float32[Array, ""]:
    """The sparsity that a density stands for: a Python float where its value is known."""
    if isinstance(density, Tracer):
        return 1 - fraction_of(density)
    q = int(density)
    return 0.0 if q == FULL else round(1 - q / 2**32, 9)


def count(n: int, density: UInt32[Array, "..."]) -> Wide:
    """How many of `n` to keep: `(n · density + 2³¹) >> 32`, halves up, exact at any size."""
    return share(wide(n), density)


@jax.jit
def share(whole: Wide, fraction: UInt32[Array, "..."]) -> Wide:
    """A share of a count that is traced: `(whole · fraction + 2³¹) >> 32`, halves up, exact at any size."""
    low = add(multiply(whole.lo, fraction), wide(1 << 31)).hi
    part = add(Wide(jnp.zeros_like(low), low), multiply(whole.hi, fraction))
    return where(fraction == FULL, whole, part)


def count_up(n: int, density: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """`ceil(n · density)` for a small static `n` (the m of an N:M run).

    Half a step of the grid that sparsities lie on is taken off first, so that `1 - 1/3`, which is on no
    grid, asks for one of three.
    """
    whole, rest = multiply(jnp.uint32(n), density)
    up = whole + (rest > n * HALF_STEP).astype(jnp.uint32)
    return jnp.where(density == FULL, jnp.uint32(n), jnp.minimum(up, np.uint32(n)))


def _power_of_two(exponent: UInt32[Array, "..."]) -> Wide:
    one, none = jnp.uint32(1), jnp.uint32(0)
    high = one << (jnp.maximum(exponent, 32) - 32)
    return Wide(
        jnp.where(exponent >= 32, high, none),
        jnp.where(exponent < 32, one << jnp.minimum(exponent, 31), none),
    )


def _shift_right(value: Wide, by: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """The low word of `value >> by`, for 0 < by < 64."""
    near = jnp.minimum(by, 31)
    return jnp.where(by < 32, (value.hi << (32 - near)) | (value.lo >> near), value.hi >> (jnp.maximum(by, 32) - 32))
