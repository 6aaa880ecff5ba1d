"""The library's functions as functions of JAX arrays, to be called where products are lowered for CPUs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from . import library

_DTYPES = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))


def serves(*arrays: Any) -> bool:
    """Whether the library's functions take such arrays: float32 or bfloat16, of known sizes, the last one dense."""
    known = all(isinstance(size, int) for array in arrays for size in array.shape)
    return known and arrays[-1].dtype in _DTYPES and library.available()


class Calls(NamedTuple):
    """The three functions of a `SparseProduct`; `None` where there is none in the library."""

    product: Callable | None
    transposed: Callable | None
    sampled: Callable | None


def _csr_product(values: Array, columns: Array, row_pointers: Array, x: Array, *, shape: tuple[int, int]) -> Array:
    return _call("eqsparse_csr", (x.shape[0], shape[0]), x.dtype)(values, columns, row_pointers, x)


def _csr_transposed(values: Array, columns: Array, row_pointers: Array, y: Array, *, shape: tuple[int, int]) -> Array:
    return _call("eqsparse_csr_transposed", (y.shape[0], shape[1]), y.dtype)(values, columns, row_pointers, y)


def _csr_sampled(columns: Array, row_pointers: Array, y: Array, x: Array, *, shape: Any, stored: Any) -> Array:
    return _call("eqsparse_csr_sampled", stored, x.dtype)(columns, row_pointers, y, x)


csr_calls = Calls(_csr_product, _csr_transposed, _csr_sampled)


def _call(name: str, shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ffi.ffi_call(name, jax.ShapeDtypeStruct(shape, dtype))
