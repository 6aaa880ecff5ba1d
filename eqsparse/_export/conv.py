"""Convolutions with a layout in the place of the weight."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._kernels import Window
from ._layout import AbstractLayout, DenseLayout


def is_convolution(layer: Any) -> bool:
    """Whether the layer is a convolution of all channels with all, over one to three axes padded with zeros.

    Others (depthwise ones, say, or transposed ones) rebuild their weight when called.
    """
    return (
        type(layer) in (eqx.nn.Conv, eqx.nn.Conv1d, eqx.nn.Conv2d, eqx.nn.Conv3d)
        and layer.num_spatial_dims <= 3
        and layer.groups == 1
        and getattr(layer, "padding_mode", "ZEROS").upper() == "ZEROS"
    )


def can_convolve(layer: Any, layout: AbstractLayout, args: tuple[Any, ...]) -> bool:
    """Whether such a layer was called with one image, as it should be, and its layout has something to gain.

    A layout that would make its weight dense leaves that to the layer: XLA fuses chains of convolutions then, and
    keeps less of what is between them.
    """
    if not is_convolution(layer) or isinstance(layout, DenseLayout):
        return False
    if not args or jnp.ndim(args[0]) != layer.num_spatial_dims + 1 or jnp.shape(args[0])[0] != layer.in_channels:
        return False
    sizes = jnp.shape(args[0])[1:]
    if not all(isinstance(size, int) for size in sizes):
        return False
    window = window_of(layer, sizes)
    return (layout.convolves or window.is_product) and 0 not in (*sizes, *window.out_sizes)


def convolve(layer: Any, layout: AbstractLayout, x: Array) -> Array:
    """Calls the layer, whose weight is a layout."""
    y = layout.convolve(x, window_of(layer, x.shape[1:]))
    return y if layer.bias is None else y + layer.bias


def window_of(layer: Any, sizes: tuple[int, ...]) -> Window:
    """Where the layer looks in images of such sizes."""
    padding = layer.padding
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(sizes, _reach(layer), layer.stride, padding)
    pads = tuple((int(before), int(after)) for before, after in padding)
    return Window(tuple(sizes), tuple(layer.kernel_size), tuple(layer.stride), tuple(layer.dilation), pads)


def typical_window(layer: Any, positions: int) -> Window:
    """Where the layer looks in images in which it finds about so many positions."""
    side = round(positions ** (1 / layer.num_spatial_dims))
    sizes = [max(side * s, r) for s, r in zip(layer.stride, _reach(layer), strict=True)]
    if not isinstance(layer.padding, str):  # which may be negative
        sizes = [size + max(0, -sum(padding)) for size, padding in zip(sizes, layer.padding, strict=True)]
    return window_of(layer, tuple(sizes))


def _reach(layer: Any) -> list[int]:
    """How many positions the kernel spans along each axis."""
    return [dilation * (kernel - 1) + 1 for dilation, kernel in zip(layer.dilation, layer.kernel_size, strict=True)]
