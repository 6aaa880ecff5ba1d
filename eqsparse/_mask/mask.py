"""Which weights are kept: one byte a weight, or one bit."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jaxtyping import Array, Bool, Shaped, UInt8, UInt32

from .layout import laid_out_as
from .shards import BYTE, check_whole


@dataclasses.dataclass(frozen=True, init=False, eq=False)
class Mask:
    """Which entries of a weight are kept (`True`), as booleans or packed eight to a byte.

    A mask is a leaf that no gradient reaches: `eqx.partition(model, eqx.is_inexact_array)` puts it with
    the rest. Packed masks are `uint8`, the last axis packed with the first entry in the highest bit
    (as `numpy.packbits` does), bits past its end zero.
    """

    bits: Bool[Array, "*shape"] | UInt8[Array, "*packed"]
    last: int | None

    def __init__(self, dense: Bool[Array, "*shape"], *, packed: bool = False):
        """**Arguments:**

        - `dense`: Boolean array of the shape of the weight, `True` = kept.
        - `packed`: Store one bit for each weight instead of one byte. Needs rank 1 or more.

        **Raises:** `ValueError` if `dense` is not boolean.
        """
        if not _is_boolean(dense):
            raise ValueError(f"`Mask(dense=...)` must be a boolean array. Got {_kind(dense)}.")
        dense = jnp.asarray(dense)
        packed = packed and dense.ndim > 0
        object.__setattr__(self, "last", dense.shape[-1] if packed else None)
        object.__setattr__(self, "bits", jnp.packbits(dense, axis=-1) if packed else dense)

    @classmethod
    def full(cls, weight: Shaped[Array, "*shape"], *, packed: bool = False) -> "Mask":
        """A mask that keeps all of `weight`, in a buffer of its own, sharded as the weight is."""
        return cls(laid_out_as(jnp.full_like(weight, True, dtype=bool), weight), packed=packed)

    @property
    def packed(self) -> bool:
        """Whether the mask holds one bit for each weight."""
        return self.last is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight that is masked."""
        return self.bits.shape if self.last is None else (*self.bits.shape[:-1], self.last)

    def dense(self) -> Bool[Array, "*shape"]:
        """The mask as a boolean array."""
        if self.last is None:
            return self.bits
        # In 32-bit lanes, by shifts that are computed rather than read: three times as fast on CPUs.
        lanes = jnp.broadcast_to(self.bits[..., None], (*self.bits.shape, 8)).astype(jnp.uint32)
        place = jax.lax.broadcasted_iota(jnp.uint32, lanes.shape, lanes.ndim - 1)
        spread = (lanes >> (7 - place)) & 1 != 0
        return spread.reshape(*self.bits.shape[:-1], 8 * self.bits.shape[-1])[..., : self.last]

    def nnz(self) -> int | UInt32[Array, ""]:
        """How many weights are kept: exact at any size; in a compiled function a `uint32` scalar."""
        if isinstance(self.bits, Tracer):
            counted = jnp.bitwise_count(self.bits) if self.packed else self.bits
            return jnp.sum(counted, dtype=jnp.uint32)
        if not self.bits.is_fully_addressable:  # spread over several processes
            counted = jnp.bitwise_count(self.bits) if self.packed else self.bits
            rows = multihost_utils.process_allgather(jnp.sum(counted, axis=-1, dtype=jnp.uint32), tiled=True)
            return int(np.sum(rows, dtype=np.int64))
        host = np.asarray(self.bits)
        return int(np.bitwise_count(host).sum(dtype=np.int64) if self.packed else np.count_nonzero(host))

    def replace(self, dense: Bool[Array, "*shape"]) -> "Mask":
        """A mask of other entries, stored as this one is."""
        return Mask(dense, packed=self.packed)


def _unflatten(last: int | None, children: Iterable[Any]) -> Mask:
    (bits,) = children
    mask = object.__new__(Mask)
    object.__setattr__(mask, "bits", bits)
    object.__setattr__(mask, "last", last)
    return mask


# Not an `eqx.Module`: these are flattened in Python, field by field, several times a step.
jax.tree_util.register_pytree_with_keys(
    Mask, lambda m: (((jax.tree_util.GetAttrKey("bits"), m.bits),), m.last), _unflatten, lambda m: ((m.bits,), m.last)
)


def as_mask(mask: Mask | Array | np.ndarray | None, weight: Array, name: str, *, packed: bool) -> Mask:
    """What a user gives as a mask for `weight`, checked; all kept for `None`."""
    if mask is None:
        return Mask.full(weight, packed=packed)
    dense = mask.dense() if isinstance(mask, Mask) else mask
    if not _is_boolean(dense):
        raise ValueError(f"the mask of `{name}` must be a boolean array (True = kept). Got {_kind(dense)}.")
    if dense.shape != weight.shape:
        raise ValueError(f"the mask of `{name}` must have the weight's shape {weight.shape}. Got {dense.shape}.")
    if packed:
        check_whole("packed=True", name, weight, BYTE)
    return Mask(_placed(dense, weight), packed=packed)


def _placed(dense: Array | np.ndarray, weight: Array) -> Array:
    """A copy where the weight is: donating the model must not delete the user's array."""
    known = isinstance(weight, jax.Array) and not isinstance(weight, Tracer)
    if not known or len(weight.sharding.device_set) == 1:
        return jnp.array(dense)
    return jax.device_put(dense.copy() if isinstance(dense, np.ndarray) else jnp.array(dense), weight.sharding)


def _is_boolean(value: object) -> bool:
    dtype = getattr(value, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.bool_)


def _kind(value: object) -> str:
    dtype = getattr(value, "dtype", None)
    return f"dtype {dtype}" if dtype is not None else f"{type(value).__name__} {value!r}"
