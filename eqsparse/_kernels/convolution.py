"""Convolutions with a sparse weight, as a product with what the kernel meets at each position.

The weight is a matrix (out, taps × channels): all channels of one tap of the kernel, then those of the next. Where
eqsparse's own kernels serve, they take the numbers of a few positions at a time from the images and multiply them with
the kept weights. Elsewhere the weight is made dense, and XLA convolves.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, Int32, Integer

from ._native import calls_convolution
from .csr import dense_csr
from .linear import SparseProduct


class Window(NamedTuple):
    """Where a convolution looks: a number for each axis of the images, of which there may be one to three."""

    in_sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]  # zeros before and after

    @property
    def out_sizes(self) -> tuple[int, ...]:
        return tuple(
            max(0, (size + sum(padding) - dilation * (kernel - 1) - 1) // stride + 1)
            for size, kernel, stride, dilation, padding in zip(*self, strict=True)
        )

    @property
    def is_product(self) -> bool:
        """Whether the kernel looks at one position, and moves by one."""
        return {*self.kernel, *self.stride} <= {1} and set(sum(self.padding, ())) <= {0}

    def convolve(
        self, matrix: Inexact[Array, "out_size in_size"], x: Inexact[Array, "batch channels_in"]
    ) -> Inexact[Array, "batch channels_out"]:
        """By XLA, with a dense weight; images and results as rows."""
        weight = jnp.moveaxis(matrix.reshape(matrix.shape[0], *self.kernel, -1), -1, 1)
        images = x.reshape(x.shape[0], weight.shape[1], *self.in_sizes)
        y = jax.lax.conv_general_dilated(images, weight, self.stride, self.padding, rhs_dilation=self.dilation)
        return y.reshape(x.shape[0], -1)


def _convolve(
    values: Array, columns: Array, row_pointers: Array, x: Array, *, shape: tuple[int, int], window: Window
) -> Inexact[Array, "batch channels_out"]:
    """Of images as rows: so it is a product, whose gradients JAX finds."""
    channels = shape[1] // math.prod(window.in_sizes)
    matrix = (shape[0] // math.prod(window.out_sizes), math.prod(window.kernel) * channels)
    return window.convolve(dense_csr(values, columns, row_pointers, matrix), x)


_CONVOLUTION = SparseProduct("eqsparse_csr_convolution", _convolve, faster=[calls_convolution("eqsparse_csr")])


def csr_convolution(
    values: Inexact[Array, " nnz"],
    columns: Integer[Array, " nnz"],
    row_pointers: Int32[Array, " ends"],
    x: Inexact[Array, "channels *sizes"],
    shape: tuple[int, int],
    window: Window,
) -> Inexact[Array, "out_size *positions"]:
    """One image convolved with a weight in CSR; under `jax.vmap`, however nested, all of them in one call.

    **Arguments:**

    - `values`, `columns`, `row_pointers`: The matrix, as `spmm` has it.
    - `x`: Array of shape `(channels, *window.in_sizes)`.
    - `shape`: (out, taps × channels).
    """
    sizes = (shape[0] * math.prod(window.out_sizes), x.size)
    y = _CONVOLUTION(values, (columns, row_pointers), x.reshape(-1), sizes, window=window)
    return y.reshape(shape[0], *window.out_sizes)
