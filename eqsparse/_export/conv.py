"""Convolutions on a layout, some output channels at a time."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from .._kernels import to_be_written
from .._sites import replace_fields
from ._layout import AbstractLayout

CONVOLUTIONS = (
    eqx.nn.Conv, eqx.nn.Conv1d, eqx.nn.Conv2d, eqx.nn.Conv3d,
    eqx.nn.ConvTranspose, eqx.nn.ConvTranspose1d, eqx.nn.ConvTranspose2d, eqx.nn.ConvTranspose3d,
)  # fmt: skip

_SMALL = 2**16  # weights that are rebuilt at once
_PARTS = 4  # what larger weights are rebuilt in


def convolve(
    layer: Any,
    layout: AbstractLayout,
    to_weight: Callable[[Array], Array],
    x: Array,
    *,
    key: PRNGKeyArray | None = None,
) -> Array:
    """Calls a convolution of one group whose weight is a layout.

    With kernels of one position it is a product of matrices. Others are the layer's own convolution, by dense parts of
    the weight: a product with patches of the image was no faster at 90 and 95% (64 channels of 16×16, 3×3 kernels,
    batch 16: 4.7 ms against 6.3 with patches by slices, 21 by `conv_general_dilated_patches`; 128 channels of 8×8,
    batch 32: 22 against 15), and takes kernel size times the memory of the image.
    """
    if x.ndim != layer.num_spatial_dims + 1:
        return layer(x)  # raises
    if _is_product(layer):
        y = (layout @ x.reshape(x.shape[0], -1)).reshape(-1, *x.shape[1:])
        return y if layer.bias is None else y + layer.bias
    source = layout.decoded()
    out_size = layout.shape[0]
    height = out_size if layout.shape[0] * layout.shape[1] <= _SMALL else -(-out_size // _PARTS)

    def channels(start: Array) -> Array:
        bias = None if layer.bias is None else jax.lax.dynamic_slice_in_dim(layer.bias, start, height)
        part = {"weight": to_weight(source.rows(start, height)), "bias": bias}
        return replace_fields(layer, part)(x)

    if height == out_size:
        return channels(jnp.int32(0))

    @jax.checkpoint  # else all parts, the dense weight, would be kept for the gradient
    def step(y: Array, start: Array) -> tuple[Array, None]:
        return jax.lax.dynamic_update_slice_in_dim(y, channels(start), start, 0), None

    like = jax.eval_shape(channels, jnp.int32(0))
    # The last part may overlap the one before.
    starts = jnp.minimum(jnp.arange(-(-out_size // height), dtype=jnp.int32) * height, out_size - height)
    return jax.lax.scan(step, to_be_written((out_size, *like.shape[1:]), x).astype(like.dtype), starts)[0]


def _is_product(layer: Any) -> bool:
    transposed = isinstance(layer, eqx.nn.ConvTranspose)
    no_padding = isinstance(layer.padding, str) or all(p == (0, 0) for p in layer.padding)
    return not transposed and no_padding and set(layer.kernel_size) <= {1} and set(layer.stride) <= {1}
