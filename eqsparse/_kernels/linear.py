"""Sparse times dense, with a derivative and a batching rule that stay products of matrices.

A `SparseProduct` is made from one function, the product of a whole matrix stored in some way with a batch. It becomes
three primitives, each linear in its values and in its dense array, and closed under transposition: the product, the
product with the transpose, and the product sampled where the matrix stores entries. So they can be differentiated in
forward and reverse mode, to any order. Kernels of our own plug in here: where a product is lowered for what they
serve, they take the place of the three functions.

They are primitives, and not a `jax.custom_vjp` around a `jax.custom_batching.custom_vmap`, because of the gradient
of the values: `vmap` of a `custom_vjp` takes one gradient for each example and sums these nnz × batch numbers
after (121 MB at 3072×768, 90%, batch 128). Here `vmap` collects the batch first, and the gradient of a product
of matrices sums over it.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, final

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Inexact

from .faster import Faster, Target
from .plain import shipped


@final
class SparseProduct:
    """`A @ x` for a vector and `x @ A.T` for a batch of them, `A` being a matrix stored in one way.

    Under `jax.vmap`, however nested, all examples reach one product of matrices. Mapped values or indices
    (an ensemble) run as a loop over the matrices.
    """

    def __init__(
        self,
        name: str,
        product: Callable,
        transposed: Callable | None = None,
        sampled: Callable | None = None,
        faster: Sequence[Faster] = (),
    ):
        """**Arguments:**

        - `name`: What the primitives are called.
        - `product`: `(values, *indices, x, *, shape, **static)` gives `x @ A.T`, for `x` of shape `(batch, in)`
            and of the dtype of `values`. Linear in `values` and in `x`.
        - `transposed`: `(values, *indices, y, *, shape, **static)` gives `y @ A`. By default `product`, transposed
            by JAX.
        - `sampled`: `(*indices, y, x, *, shape, stored, **static)` gives the gradient of the values (of shape
            `stored`) if `y` is that of the product. By default the other transpose of `product`.
        - `faster`: The same three in eqsparse's own kernels, for some platforms; the first that serve are taken.
        """
        transposed, sampled = transposed or _transposed_of(product), sampled or _sampled_of(product)
        pick = lambda field: [(getattr(kernels, field), kernels.serves) for kernels in faster]
        self.forward = _primitive(name, product, pick("product"), _shape_of_product)
        self.transposed = _primitive(f"{name}_transposed", transposed, pick("transposed"), _shape_of_transposed_product)
        self.sampled = _primitive(f"{name}_sampled", sampled, pick("sampled"), _shape_of_samples)
        batching.primitive_batchers[self.forward] = _batch_by(_collect, self.forward)
        batching.primitive_batchers[self.transposed] = _batch_by(_collect, self.transposed)
        batching.primitive_batchers[self.sampled] = _batch_by(_loop, self.sampled)
        # The arguments that are linear: the first and the last of the products, the last two of the samples.
        _linear_in(self.forward, lambda count: (0, count - 1))
        _linear_in(self.transposed, lambda count: (0, count - 1))
        _linear_in(self.sampled, lambda count: (count - 2, count - 1))
        ad.primitive_transposes[self.forward] = self._transpose_forward
        ad.primitive_transposes[self.transposed] = self._transpose_transposed
        ad.primitive_transposes[self.sampled] = self._transpose_sampled

    def __call__(
        self, values: Inexact[Array, "..."], indices: Sequence[Array], x: Array, shape: tuple[int, int], **static: Any
    ) -> Inexact[Array, "*batch out_size"]:
        """**Arguments:**

        - `values`, `indices`: The stored arrays of one matrix.
        - `x`: Array of shape `(in,)` or `(*batch, in)`.
        - `shape`: (out, in).
        - `**static`: What else the product must know; hashable.

        **Returns:** An array of shape `(out,)` or `(*batch, out)`, of the dtype that a dense product gives.
        """
        dtype = jnp.result_type(values, x)
        examples = x.astype(dtype).reshape(math.prod(x.shape[:-1]), shape[1])  # a vector is a batch of one
        y = self.forward.bind(*_varying_alike(values.astype(dtype), *indices, examples), shape=shape, **static)
        return y.reshape(*x.shape[:-1], shape[0])

    def _transpose_forward(self, ct: Array, values: Any, *rest: Any, **static: Any) -> list[Any]:
        *indices, x = rest
        if ad.is_undefined_primal(values):
            samples = self.sampled.bind(*indices, ct, x, stored=values.aval.shape, **static)
            return [samples, *[None] * len(rest)]
        return [None] * len(rest) + [self.transposed.bind(values, *indices, ct, **static)]

    def _transpose_transposed(self, ct: Array, values: Any, *rest: Any, **static: Any) -> list[Any]:
        *indices, y = rest
        if ad.is_undefined_primal(values):
            samples = self.sampled.bind(*indices, y, ct, stored=values.aval.shape, **static)
            return [samples, *[None] * len(rest)]
        return [None] * len(rest) + [self.forward.bind(values, *indices, ct, **static)]

    def _transpose_sampled(self, ct: Array, *args: Any, stored: tuple[int, ...], **static: Any) -> list[Any]:
        *indices, y, x = args
        nothing = [None] * len(indices)
        if ad.is_undefined_primal(y):
            return [*nothing, self.forward.bind(ct, *indices, x, **static), None]
        return [*nothing, None, self.transposed.bind(ct, *indices, y, **static)]


def _transposed_of(product: Callable) -> Callable:
    def transposed(values: Array, *rest: Array, shape: tuple[int, int], **static: Any) -> Array:
        *indices, y = rest
        x = jnp.zeros((y.shape[0], shape[1]), y.dtype)
        return jax.vjp(lambda x: product(values, *indices, x, shape=shape, **static), x)[1](y)[0]

    return transposed


def _sampled_of(product: Callable) -> Callable:
    def sampled(*args: Array, stored: tuple[int, ...], **static: Any) -> Array:
        *indices, y, x = args
        values = jnp.zeros(stored, x.dtype)
        return jax.vjp(lambda values: product(values, *indices, x, **static), values)[1](y)[0]

    return sampled


def _primitive(name: str, function: Callable, faster: Sequence[tuple], abstract: Callable) -> Primitive:
    primitive = Primitive(name)

    def compute(*args: Array, **static: Any) -> Array:
        mesh = jax.typeof(args[-1]).sharding.mesh
        if AxisType.Explicit not in getattr(mesh, "axis_types", ()):
            return function(*args, **static)
        # How the result is laid out is known. How all that it takes to make it would be, the compiler may find out.
        out = abstract(*map(jax.typeof, args), **static).sharding
        out = NamedSharding(mesh, PartitionSpec()) if out.mesh.empty else out
        automatic: Any = jax.sharding.auto_axes(functools.partial(function, **static), out_sharding=out)
        with jax.sharding.use_abstract_mesh(mesh):
            return automatic(*args)

    @functools.cache  # static parameters differ from one product to the next: `jax.jit` cannot be told their names
    def compiled(static: tuple[tuple[str, Any], ...]) -> Callable:
        return jax.jit(functools.partial(primitive.bind, **dict(static)))

    primitive.def_impl(lambda *args, **static: compiled(tuple(sorted(static.items())))(*args))
    primitive.def_abstract_eval(abstract)
    lower = mlir.lower_fun(compute, multiple_results=False)
    divided = [(functools.partial(_by_device, f, abstract), serves) for f, serves in faster if f is not None]
    lower_faster = [(mlir.lower_fun(f, multiple_results=False), serves) for f, serves in divided]

    def lower_by_platform(ctx: mlir.LoweringRuleContext, *args: Any, **static: Any) -> Any:
        kernels, target = [] if shipped() else lower_faster, Target.of(ctx)
        chosen = next((rule for rule, serves in kernels if serves(target, *ctx.avals_in)), lower)
        return chosen(ctx, *args, **static)

    mlir.register_lowering(primitive, lower_by_platform)
    return primitive


def _by_device(function: Callable, abstract: Callable, *args: Array, **static: Any) -> Array:
    """The function, on each device of the examples that it holds: where axes are explicit, and so it is known which."""
    dense = jax.typeof(args[-1]).sharding
    if AxisType.Explicit not in getattr(dense.mesh, "axis_types", ()) or not (held := dense.spec[0]):
        return function(*args, **static)
    axes = held if isinstance(held, tuple) else (held,)
    out = abstract(*map(jax.typeof, args), **static)
    matrices = [PartitionSpec(*(None,) * a.ndim) for a in args]
    examples = PartitionSpec(axes, None)
    count = 2 if "stored" in static else 1  # dense arrays: samples are of two, and a sum over the examples
    specs = (*matrices[:-count], *[examples] * count)

    def run(*args: Array) -> Array:
        made = function(*args, **static)
        return jax.lax.psum(made, axes) if count == 2 else made

    mapped = jax.shard_map(
        run, mesh=dense.mesh, in_specs=specs, out_specs=PartitionSpec() if count == 2 else examples,
        axis_names=set(axes), check_vma=False,
    )  # fmt: skip
    laid = [jax.sharding.reshard(a, NamedSharding(dense.mesh, spec)) for a, spec in zip(args, specs, strict=True)]
    return jax.sharding.reshard(mapped(*laid), NamedSharding(dense.mesh, out.sharding.spec))


# What an abstract array says of sharding is taken over from the dense array (its batch axis), or the indices.


def _shape_of_product(*args: Any, shape: tuple[int, int], **static: Any) -> Any:
    return args[-1].update(shape=(args[-1].shape[0], shape[0]))


def _shape_of_transposed_product(*args: Any, shape: tuple[int, int], **static: Any) -> Any:
    return args[-1].update(shape=(args[-1].shape[0], shape[1]))


def _shape_of_samples(*args: Any, stored: tuple[int, ...], **static: Any) -> Any:
    alike = NamedSharding(args[0].sharding.mesh, PartitionSpec(*(None,) * len(stored)))
    return args[0].update(shape=stored, dtype=args[-1].dtype, sharding=alike)


# Batching.


def _batch_by(rule: Callable, primitive: Primitive) -> Callable:
    return lambda args, dims, **static: rule(primitive, args, dims, **static)


def _collect(primitive: Primitive, args: Sequence[Array], dims: Sequence[int | None], **static: Any) -> Any:
    """One matrix for all examples: the mapped axis joins the batch."""
    *matrix, dense = args
    *matrix_dims, dim = dims
    if dim is None or any(d is not None for d in matrix_dims):
        return _loop(primitive, args, dims, **static)
    dense = jnp.moveaxis(dense, dim, 0)
    mapped, examples, size = dense.shape
    out = primitive.bind(*matrix, dense.reshape(mapped * examples, size), **static)
    return out.reshape(mapped, examples, out.shape[1]), 0


def _loop(primitive: Primitive, args: Sequence[Array], dims: Sequence[int | None], **static: Any) -> Any:
    mapped = [jnp.moveaxis(arg, dim, 0) for arg, dim in zip(args, dims, strict=True) if dim is not None]

    def one(mapped: list[Array]) -> Array:
        rest = iter(mapped)
        return primitive.bind(*(a if d is None else next(rest) for a, d in zip(args, dims, strict=True)), **static)

    return jax.lax.map(one, mapped), 0


# Derivatives.


def _linear_in(primitive: Primitive, places: Callable[[int], tuple[int, int]]) -> None:
    def jvp(primals: Sequence[Array], tangents: Sequence[Any], **static: Any) -> tuple[Array, Any]:
        out = primitive.bind(*primals, **static)
        terms = [
            primitive.bind(*primals[:place], tangents[place], *primals[place + 1 :], **static)
            for place in places(len(primals))
            if type(tangents[place]) is not ad.Zero
        ]
        return out, sum(terms[1:], terms[0])

    ad.primitive_jvps[primitive] = jvp


# In `jax.shard_map`.


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
