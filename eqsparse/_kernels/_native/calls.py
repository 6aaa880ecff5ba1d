"""The library's functions as functions of JAX arrays, to be called where products are lowered for CPUs."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..faster import Faster, Target
from . import library

_DTYPES = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))
_MOST = 2**31  # entries, which are counted in 32 bits


def calls(name: str, *numbers: str, fewest: int = 0) -> Faster:
    """Those of a layout in the library, for batches of so many. The static numbers follow its indices, as one array."""

    def indices_of(arrays: list[Array], static: dict[str, int]) -> list[Array]:
        return [*arrays, jnp.array([static[number] for number in numbers], jnp.int32)] if numbers else arrays

    def product(values: Array, *rest: Array, shape: tuple[int, int], **static: Any) -> Array:
        *indices, x = rest
        return _call(name, (x.shape[0], shape[0]), values, *indices_of(indices, static), x)

    def transposed(values: Array, *rest: Array, shape: tuple[int, int], **static: Any) -> Array:
        *indices, y = rest
        return _call(f"{name}_transposed", (y.shape[0], shape[1]), values, *indices_of(indices, static), y)

    def sampled(*args: Array, shape: tuple[int, int], stored: tuple[int, ...], **static: Any) -> Array:
        *indices, y, x = args
        return _call(f"{name}_sampled", stored, *indices_of(indices, static), y, x)

    return Faster(product, transposed, sampled, functools.partial(serves, fewest))


def calls_convolution(name: str) -> Faster:
    """The convolution with a layout in the library. Its gradients are JAX's."""

    def convolve(values: Array, *rest: Array, shape: tuple[int, int], window: Any) -> Array:
        *indices, x = rest
        before = [padding[0] for padding in window.padding]
        numbers = [window.in_sizes, window.out_sizes, window.kernel, window.stride, window.dilation, before]
        # Images of fewer than three axes have size 1 along the first ones.
        fillings = [1, 1, 1, 1, 1, 0]
        filled = [[filling] * (3 - len(sizes)) + [*sizes] for sizes, filling in zip(numbers, fillings, strict=True)]
        return _call(f"{name}_convolution", (x.shape[0], shape[0]), values, *indices, jnp.array(filled, jnp.int32), x)

    return Faster(convolve, None, None, functools.partial(serves, 0))


def serves(fewest: int, target: Target, *arrays: Any) -> bool:
    """Whether the library's functions take such arrays: float32 or bfloat16, of known sizes, the last one dense,
    with that many examples or more, on a CPU."""
    if target.platforms != ("cpu",):
        return False
    known = all(isinstance(size, int) for array in arrays for size in array.shape)
    small = known and all(math.prod(array.shape) < _MOST for array in arrays[:-1])
    enough = small and arrays[-1].shape[0] >= fewest
    return enough and arrays[-1].dtype in _DTYPES and library.available()


def _call(name: str, shape: tuple[int, ...], *arrays: Array) -> Any:
    return jax.ffi.ffi_call(name, jax.ShapeDtypeStruct(shape, arrays[-1].dtype))(*arrays)
