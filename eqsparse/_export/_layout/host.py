"""A weight and its mask on the host, where layouts are made."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Inexact

from ..._check import known


class Slices(NamedTuple):
    """A stack of matrices flattened into the first axis."""

    stack: tuple[int, ...]
    weights: Inexact[np.ndarray, "slices out_size in_size"]
    kept: Bool[np.ndarray, "slices out_size in_size"]

    @property
    def shape(self) -> tuple[int, int]:
        return self.kept.shape[1], self.kept.shape[2]

    def restack(self, array: np.ndarray) -> Array:
        """An array whose first axis is the slices, as a leaf with the stack's axes."""
        return jnp.array(array.reshape(*self.stack, *array.shape[1:]))  # a copy: every leaf has a buffer of its own


def slices_of(name: str, weight: Any, mask: Any) -> Slices:
    """The weight and the mask as NumPy arrays, checked."""
    if not (known(weight) and known(mask)):
        raise ValueError(
            f"`{name}.from_dense(weight, mask)` must be called outside `jax.jit`, `jax.vmap` and the like: how many "
            "weights are kept shapes the arrays. Got traced values."
        )
    weights, kept = np.asarray(weight), np.asarray(mask)
    if not jnp.issubdtype(weights.dtype, np.inexact) or weights.ndim < 2:
        raise ValueError(
            f"`{name}.from_dense(weight=...)` must be floating-point, of shape (*stack, out, in). "
            f"Got {weights.dtype}{list(weights.shape)}."
        )
    if kept.dtype != bool or kept.shape != weights.shape:
        raise ValueError(
            f"`{name}.from_dense(mask=...)` must be boolean (True = kept), of the weight's shape {weights.shape}. "
            f"Got {kept.dtype}{list(kept.shape)}."
        )
    stack, core = weights.shape[:-2], weights.shape[-2:]
    flat = (int(np.prod(stack)), *core)
    return Slices(stack, weights.reshape(flat), kept.reshape(flat))


def smallest(largest: int) -> type[np.integer]:
    """The smallest integer type that holds the numbers from 0 to `largest`."""
    return np.uint8 if largest < 2**8 else np.uint16 if largest < 2**16 else np.int32


def padded(parts: list[np.ndarray], length: int, fill: Any, dtype: Any) -> np.ndarray:
    """Arrays of unequal lengths as one, each filled up at its end."""
    shape = parts[0].shape[1:] if parts else ()
    out = np.full((len(parts), length, *shape), fill, dtype)
    for row, part in zip(out, parts, strict=True):
        row[: len(part)] = part
    return out


def counts(kept: Bool[np.ndarray, "slices out_size in_size"]) -> np.ndarray:
    """How many weights each slice keeps."""
    return np.count_nonzero(kept, axis=(1, 2))


def per_slice(kept: np.ndarray, function: Callable[[np.ndarray], Any]) -> list[Any]:
    return [function(one) for one in kept]
