"""Sparse times dense, with a derivative and a batching rule that stay products of matrices.

Three primitives, each linear in its values and in its dense array, and closed under transposition: the product,
the product with the transpose, and the product sampled where the matrix stores entries. So they can be
differentiated in forward and reverse mode, to any order.

They are primitives, and not a `jax.custom_vjp` around a `jax.custom_batching.custom_vmap`, because of the gradient
of the values: `vmap` of a `custom_vjp` takes one gradient for each example and sums these nnz × batch numbers
after (121 MB at 3072×768, 90%, batch 128). Here `vmap` collects the batch first, and the gradient of a product
of matrices sums over it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Inexact, Int32

from .csr import product, sampled_product, transposed_product


def spmm(
    values: Inexact[Array, " nnz"],
    columns: Int32[Array, " nnz"],
    row_pointers: Int32[Array, " ends"],
    x: Array,
    shape: tuple[int, int],
) -> Inexact[Array, "*batch out_size"]:
    """`A @ x` for a vector, `x @ A.T` for a batch of them, `A` being a sparse matrix.

    Under `jax.vmap`, however nested, all examples reach one product of matrices. Mapped values or indices
    (an ensemble) run as a loop over the matrices.

    **Arguments:**

    - `values`, `columns`, `row_pointers`: The matrix by rows (CSR), sorted and unique. Entries past
        `row_pointers[-1]` are padding, with value 0 and column `shape[1]`.
    - `x`: Array of shape `(in,)` or `(*batch, in)`.
    - `shape`: (out, in).

    **Returns:** An array of shape `(out,)` or `(*batch, out)`, of the dtype that a dense product gives. Half
    precisions are computed in float32 and rounded once: JAX has no sparse kernel for them on CPU.
    """
    dtype = jnp.result_type(values, x)
    compute = jnp.float32 if dtype.itemsize < 4 else dtype
    examples = x.astype(compute).reshape(math.prod(x.shape[:-1]), shape[1])  # a vector is a batch of one
    matrix = (values.astype(compute), columns, row_pointers)
    y = _product_p.bind(*_varying_alike(*matrix, examples), shape=shape)
    return y.astype(dtype).reshape(*x.shape[:-1], shape[0])


def _varying_alike(*arrays: Array) -> list[Array]:
    """The arrays as varying over the same axes in `jax.shard_map`: gradients of replicated ones are then summed."""
    axes = [_varying(a) for a in arrays]
    missing = [tuple(frozenset().union(*axes) - own) for own in axes]
    return [_vary(a, m) if m else a for a, m in zip(arrays, missing, strict=True)]


def _varying(array: Array) -> frozenset[str]:
    # JAX renamed this: `vma` up to 0.9, a field of `manual_axis_type` since.
    aval = jax.typeof(array)
    manual = getattr(aval, "manual_axis_type", None)
    return getattr(aval, "vma", frozenset()) if manual is None else manual.varying


def _vary(array: Array, axes: tuple[str, ...]) -> Array:
    pcast = getattr(jax.lax, "pcast", None)
    return getattr(jax.lax, "pvary")(array, axes) if pcast is None else pcast(array, axes, to="varying")  # noqa: B009


def _primitive(name: str, function: Callable, abstract: Callable, batch: Callable) -> Primitive:
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(function, static_argnames="shape"))
    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    batching.primitive_batchers[primitive] = lambda args, dims, *, shape: batch(primitive, args, dims, shape)
    return primitive


def _collect(primitive: Primitive, args: Sequence[Array], dims: Sequence[int | None], shape: tuple[int, int]) -> Any:
    """One matrix for all examples: the mapped axis joins the batch."""
    *matrix, dense = args
    *matrix_dims, dim = dims
    if dim is None or any(d is not None for d in matrix_dims):
        return _loop(primitive, args, dims, shape)
    dense = jnp.moveaxis(dense, dim, 0)
    mapped, examples, size = dense.shape
    out = primitive.bind(*matrix, dense.reshape(mapped * examples, size), shape=shape)
    return out.reshape(mapped, examples, out.shape[1]), 0


def _loop(primitive: Primitive, args: Sequence[Array], dims: Sequence[int | None], shape: tuple[int, int]) -> Any:
    mapped = [jnp.moveaxis(arg, dim, 0) for arg, dim in zip(args, dims, strict=True) if dim is not None]

    def one(mapped: list[Array]) -> Array:
        rest = iter(mapped)
        return primitive.bind(*(a if d is None else next(rest) for a, d in zip(args, dims, strict=True)), shape=shape)

    return jax.lax.map(one, mapped), 0


# What an abstract array says of sharding is taken over from the dense array (its batch axis), or the indices.
_product_p = _primitive(
    "eqsparse_product", product, lambda *a, shape: a[3].update(shape=(a[3].shape[0], shape[0])), _collect
)
_transposed_p = _primitive(
    "eqsparse_transposed_product",
    transposed_product,
    lambda *a, shape: a[3].update(shape=(a[3].shape[0], shape[1])),
    _collect,
)
_sampled_p = _primitive(
    "eqsparse_sampled_product", sampled_product, lambda *a, shape: a[0].update(dtype=a[3].dtype), _loop
)


# Derivatives. The arguments that are linear: the first and the last of the products, the last two of the samples.


def _linear_in(primitive: Primitive, *places: int) -> None:
    def jvp_in(place: int) -> Callable:
        return lambda tangent, *args, shape: primitive.bind(*args[:place], tangent, *args[place + 1 :], shape=shape)

    ad.defjvp(primitive, *(jvp_in(place) if place in places else None for place in range(4)))


_linear_in(_product_p, 0, 3)
_linear_in(_transposed_p, 0, 3)
_linear_in(_sampled_p, 2, 3)


def _transpose_product(ct: Array, values: Any, columns: Array, row_pointers: Array, x: Any, *, shape: Any) -> Any:
    if ad.is_undefined_primal(values):
        return _sampled_p.bind(columns, row_pointers, ct, x, shape=shape), None, None, None
    return None, None, None, _transposed_p.bind(values, columns, row_pointers, ct, shape=shape)


def _transpose_transposed(ct: Array, values: Any, columns: Array, row_pointers: Array, y: Any, *, shape: Any) -> Any:
    if ad.is_undefined_primal(values):
        return _sampled_p.bind(columns, row_pointers, y, ct, shape=shape), None, None, None
    return None, None, None, _product_p.bind(values, columns, row_pointers, ct, shape=shape)


def _transpose_sampled(ct: Array, columns: Array, row_pointers: Array, y: Any, x: Any, *, shape: Any) -> Any:
    if ad.is_undefined_primal(y):
        return None, None, _product_p.bind(ct, columns, row_pointers, x, shape=shape), None
    return None, None, None, _transposed_p.bind(ct, columns, row_pointers, y, shape=shape)


ad.primitive_transposes[_product_p] = _transpose_product
ad.primitive_transposes[_transposed_p] = _transpose_transposed
ad.primitive_transposes[_sampled_p] = _transpose_sampled
