"""A monotone map from scores to unsigned integers, on which selection compares."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped, UInt

_UNSIGNED = {16: np.uint16, 32: np.uint32, 64: np.uint64}


def key_dtype(dtype: np.dtype) -> np.dtype:
    """That of the keys of scores of a dtype."""
    if jnp.issubdtype(dtype, jnp.unsignedinteger):
        return dtype
    bits = jnp.finfo(dtype).bits if jnp.issubdtype(dtype, jnp.floating) else None
    if bits not in _UNSIGNED:  # narrower floats differ in what infinity and NaN look like
        raise ValueError(
            f"`scores` must be floating point of 16, 32 or 64 bits, or unsigned integers. Got dtype {dtype}."
        )
    return np.dtype(_UNSIGNED[bits])


@jax.jit
def sort_key(scores: Shaped[Array, "*shape"]) -> UInt[Array, "*shape"]:
    """Unsigned integers in the order of the scores: NaN below every number, -0.0 equal to 0.0.

    Floats are compared exactly, in 16, 32 or 64 bits. Scores of an unsigned integer dtype are *lots*
    and stand for themselves. The two largest integers are never a key (selection needs them).
    """
    unsigned = key_dtype(scores.dtype)
    if unsigned == scores.dtype:
        return jnp.minimum(scores, jnp.asarray(jnp.iinfo(scores.dtype).max - 2, scores.dtype))
    info = jnp.finfo(scores.dtype)
    bits = jax.lax.bitcast_convert_type(scores, unsigned)
    sign = jnp.asarray(1 << (info.bits - 1), unsigned)
    magnitude = bits & (sign - 1)
    infinity = jnp.asarray(((1 << info.nexp) - 1) << info.nmant, unsigned)
    key = jnp.where(bits < sign, bits | sign, ~bits)
    key = jnp.where(magnitude == 0, sign, key)
    return jnp.where(magnitude > infinity, jnp.zeros_like(key), key)


def raised(dtype) -> Shaped[Array, ""]:
    """A key above that of every score."""
    return jnp.asarray(jnp.iinfo(dtype).max - 1, dtype)


def in_float32(array: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """The array in float32, or in its own precision if that is higher: for sums and products of scores."""
    return array.astype(jnp.float32) if array.dtype.itemsize < 4 else array
