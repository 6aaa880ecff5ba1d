"""Convolutions with a sparse weight, as a product with what the kernel meets at each position.

The weight is a matrix (out, taps × channels): all channels of one tap of the kernel, then those of the next. Where
eqsparse's own kernels serve, they take the numbers of a few positions at a time from the images and multiply them with
the kept weights. Elsewhere the weight is made dense, and XLA convolves.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from ._native import calls_convolution
from .csr import dense_csr
from .linear import SparseProduct
from .tiles import bitmask_rows, bitmask_starts


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


class SparseConvolution:
    """The convolution of images with a weight that is stored in one way."""

    def __init__(self, name: str, dense: Callable[..., Array]):
        """**Arguments:**

        - `name`: Of the layout in eqsparse's kernels.
        - `dense`: `(values, *indices, shape)` gives the matrix with its zeros.
        """

        def convolve(values: Array, *rest: Array, shape: tuple[int, int], window: Window) -> Array:
            *indices, x = rest
            taps, positions = math.prod(window.kernel), math.prod(window.out_sizes)
            matrix = (shape[0] // positions, shape[1] // math.prod(window.in_sizes) * taps)
            return window.convolve(dense(values, *indices, matrix), x)

        # Of images and results as rows it is a product, whose gradients JAX finds.
        self._product = SparseProduct(f"{name}_convolution", convolve, faster=[calls_convolution(name)])

    def __call__(
        self, values: Array, indices: tuple[Array, ...], x: Array, shape: tuple[int, int], window: Window
    ) -> Inexact[Array, "out_size *positions"]:
        """**Arguments:**

        - `values`, `indices`: The stored arrays.
        - `x`: One image, channels first: of shape `(channels, *window.in_sizes)`.
        - `shape`: (out, taps × channels).
        """
        sizes = (shape[0] * math.prod(window.out_sizes), x.size)
        y = self._product(values, indices, x.reshape(-1), sizes, window=window)
        return y.reshape(shape[0], *window.out_sizes)


def _dense_bitmask(values: Array, bits: Array, shape: tuple[int, int]) -> Any:
    return bitmask_rows(values, bits, bitmask_starts(bits), jnp.int32(0), *shape)


csr_convolution = SparseConvolution("eqsparse_csr", dense_csr)
bitmask_convolution = SparseConvolution("eqsparse_bitmask", _dense_bitmask)
