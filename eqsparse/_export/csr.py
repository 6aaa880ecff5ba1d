"""The stored parts of a sparse weight, made on the host from the weight and its mask."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact

from .._check import known
from .._mask import Mask

_LARGEST_INT32 = 2**31 - 1


def csr_parts(weight: Inexact[Array, "*stack out_size in_size"], mask: Mask, name: str) -> tuple[Array, Array, Array]:
    """Values, columns and row pointers of what the mask keeps, zeros too; a stack's axes first.

    The slices of a stack must have one number of entries. Those with fewer are padded at the end with value 0
    and column `in` (one past the last), past the last row pointer: no entry of the matrix, as in JAX's own BCOO.
    """
    if not (known(mask.bits) and known(weight)):
        raise ValueError(
            f"`to_bcoo(model=...)` must be called outside `jax.jit`, `jax.vmap` and the like: how many weights are "
            f"kept shapes the arrays. Got traced values at `{name}`."
        )
    stack, core = weight.shape[:-2], weight.shape[-2:]
    slices = math.prod(stack)
    weights = np.asarray(weight).reshape(slices, *core)
    kept = np.asarray(mask.dense()).reshape(slices, *core)
    row_counts = np.count_nonzero(kept, axis=2)
    counts = row_counts.sum(axis=1)
    most = int(counts.max(initial=0))
    if max(most, *core) > _LARGEST_INT32:
        raise ValueError(
            f"`to_bcoo(model=...)` indexes a layer's kept weights with int32, so there must be at most "
            f"{_LARGEST_INT32}. Got {most} of shape {core} at `{name}`."
        )
    values = np.zeros((slices, most), weights.dtype)
    columns = np.full((slices, most), core[1], np.int32)
    row_pointers = np.zeros((slices, core[0] + 1), np.int32)
    row_pointers[:, 1:] = np.cumsum(row_counts, axis=1)
    for i, count in enumerate(counts):
        values[i, :count] = weights[i][kept[i]]
        columns[i, :count] = np.nonzero(kept[i])[1]
    # Copies, so that every leaf has a buffer of its own.
    values, columns, row_pointers = (
        jnp.array(part.reshape(*stack, part.shape[1])) for part in (values, columns, row_pointers)
    )
    return values, columns, row_pointers
