"""What every layout does."""

import abc
import math
import operator
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Inexact, Int32, Num

from ..._kernels import Window
from ..._model import nbytes
from .host import Slices, slices_of


class AbstractLayout(eqx.Module):
    """A matrix that stores its kept weights, and says where they are in one way.

    `layout @ x` and `x @ layout` multiply with vectors and matrices, `layout[i]` looks up a row: so a layout can
    stand in the place of a weight of `eqx.nn.Linear`, `Embedding`, `GRUCell` or `LSTMCell`. Under `jax.vmap`, however
    nested, all examples reach one product of matrices; gradients flow to the other factor and to `values`.

    All arrays are leaves; `shape` is (out, in) of one matrix. Arrays may have the leading axes of a stack, for
    `jax.lax.scan` or `eqx.filter_vmap`.
    """

    values: eqx.AbstractVar[Inexact[Array, "..."]]
    shape: eqx.AbstractVar[tuple[int, int]]

    name: ClassVar[str]
    rule: ClassVar[str] = "of fewer than 2**31 rows, columns and kept weights"
    value_rank: ClassVar[int] = 1
    convolves: ClassVar[bool] = False  # whether it has a way of its own
    __array_ufunc__: ClassVar[None] = None  # so that NumPy leaves `array @ layout` to the layout

    @classmethod
    def from_dense(
        cls, weight: Inexact[Any, "*stack out_size in_size"], mask: Bool[Any, "*stack out_size in_size"]
    ) -> Any:
        """**Arguments:**

        - `weight`: Floating-point array, axes of a stack first.
        - `mask`: Boolean array of the same shape, `True` = kept. Kept zeros are stored.

        **Raises:** `ValueError` if the layout cannot hold such a mask, or the arrays are traced.
        """
        slices = slices_of(cls.__name__, weight, mask)
        if cls.bytes_of(slices.kept, slices.weights.dtype.itemsize) is None:
            raise ValueError(
                f"`{cls.__name__}.from_dense(mask=...)` must be {cls.rule}. "
                f"Got {np.count_nonzero(slices.kept)} kept of shape {slices.kept.shape[1:]}."
            )
        return cls.encode(slices)

    @classmethod
    @abc.abstractmethod
    def encode(cls, slices: Slices) -> Any:
        """From a stack of matrices on the host, whose masks the layout can hold."""

    @classmethod
    @abc.abstractmethod
    def bytes_of(cls, kept: Bool[np.ndarray, "slices out_size in_size"], itemsize: int) -> int | None:
        """What `encode` will take in bytes, exactly; `None` if the layout cannot hold such a mask."""

    @abc.abstractmethod
    def rows(self, start: Int32[Array, ""], count: int) -> Inexact[Array, "count in_size"]:
        """Rows `start` to `start + count`, dense. Of a single matrix; `start + count` is at most `out`."""

    @abc.abstractmethod
    def product(self, x: Num[Array, "*batch in_size"]) -> Inexact[Array, "*batch out_size"]:
        """The matrix times each vector. Of a single matrix."""

    def convolve(self, x: Num[Array, "channels ..."], window: Window) -> Inexact[Array, "out_size ..."]:
        """One image (channels first) convolved with the matrix, whose columns are the channels of one tap of the
        kernel, then those of the next.

        A kernel of one position is a product. For others the weight is made dense, unless the layout `convolves`.
        """
        self._check_single("layer(image)")
        return self.convolution(x, window)

    def convolution(self, x: Num[Array, "channels ..."], window: Window) -> Inexact[Array, "out_size ..."]:
        """As `convolve`, of a single matrix."""
        if window.is_product:
            y = self.product(x.reshape(x.shape[0], -1).T).T
        else:
            dtype = jnp.result_type(self.values, x)
            y = window.convolve(self.to_dense().astype(dtype), x.astype(dtype).reshape(1, -1))
        return y.reshape(self.shape[0], *window.out_sizes)

    def decoded(self) -> "AbstractLayout":
        """The same matrix in the layout that rows are read from: what all of them need is computed once."""
        return self

    def operand(self) -> Any:
        """What stands in the weight's place when a layer is called."""
        return self

    def to_dense(self) -> Inexact[Array, "*stack out_size in_size"]:
        """The weight with zeros where nothing is stored."""
        dense = lambda one: one.decoded().rows(jnp.int32(0), one.shape[0])
        for _ in self.stack:
            dense = jax.vmap(dense)
        return jax.jit(dense)(self)

    def mask(self) -> Bool[np.ndarray, "*stack out_size in_size"]:
        """Which weights are stored. On the host: for reports, where a compilation for each weight takes too long."""
        lead, slices = len(self.stack), math.prod(self.stack)  # a -1 would not do for a layout without a value
        arrays = [np.asarray(leaf).reshape(slices, *leaf.shape[lead:]) for leaf in jax.tree.leaves(self)]
        kept = [self.kept(*parts) for parts in zip(*arrays, strict=True)] or np.zeros((0, *self.shape), bool)
        return np.reshape(kept, (*self.stack, *self.shape))

    @abc.abstractmethod
    def kept(self, values: np.ndarray, *indices: np.ndarray) -> Bool[np.ndarray, "out_size in_size"]:
        """The mask of one matrix, from its arrays on the host."""

    @property
    def stack(self) -> tuple[int, ...]:
        """Shape of the stack of matrices; empty for a single one."""
        return self.values.shape[: self.values.ndim - self.value_rank]

    @property
    def dtype(self) -> Any:
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return nbytes(self)

    def __matmul__(self, x: Num[Array, "..."]) -> Inexact[Array, "..."]:
        self._check(x, x.shape[:1], self.shape[1], "layout @ x")
        return self.product(x) if x.ndim == 1 else self.product(x.T).T

    def __rmatmul__(self, y: Num[Array, "..."]) -> Inexact[Array, "..."]:
        self._check(y, y.shape[-1:], self.shape[0], "x @ layout")
        dtype = jnp.result_type(self.values, y)
        like = jax.ShapeDtypeStruct((*y.shape[:-1], self.shape[1]), dtype)
        return jax.linear_transpose(self.product, like)(y.astype(dtype))[0]

    def __getitem__(self, index: Any) -> Inexact[Array, " in_size"]:
        """One row, without the rest; out of bounds is the last one, as for arrays."""
        if jnp.shape(index) != () or not jnp.issubdtype(jnp.asarray(index).dtype, jnp.integer):
            raise ValueError(f"`layout[index]` must be one whole number; use `jax.vmap` for more. Got {index!r}.")
        index = jnp.asarray(index).astype(jnp.int32)
        index = jnp.where(index < 0, index + self.shape[0], index)
        self._check_single("layout[index]")
        return self.decoded().rows(jnp.clip(index, 0, self.shape[0] - 1), 1)[0]

    def _check(self, x: Array, length: tuple[int, ...], expected: int, call: str) -> None:
        self._check_single(call)
        if length != (expected,) or x.ndim > 2:
            raise ValueError(
                f"`{call}` must be given a vector or matrix that meets {type(self).__name__} of shape {self.shape} "
                f"along an axis of length {expected}. Got {x.shape}."
            )

    def _check_single(self, call: str) -> None:
        if self.stack:
            raise ValueError(
                f"`{call}` must be called on a single matrix; run a stack with `jax.lax.scan` or `eqx.filter_vmap`. "
                f"Got a stack of shape {self.stack}."
            )


def total(terms: Any) -> int:
    """A sum in Python's integers."""
    return sum(map(operator.index, terms))
