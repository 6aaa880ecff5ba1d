"""What a convolution multiplies its kernels by at each place."""

import dataclasses
import itertools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped


def sliced_patches(layer: eqx.nn.Conv, x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """`(*places, groups, channels * kernel)`, of a convolution that pads with zeros: a slice of the image for each
    position of the kernel, which fuses with the sums made of it."""
    reach = [d * (k - 1) + 1 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
    padding: Any = layer.padding
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:], reach, layer.stride, padding)
    x = jnp.pad(x, [(0, 0), *padding])
    places = [(n - r) // s + 1 for n, r, s in zip(x.shape[1:], reach, layer.stride, strict=True)]
    offsets = itertools.product(*(range(0, r, d) for r, d in zip(reach, layer.dilation, strict=True)))
    along = lambda start, n, s: slice(start, start + s * (n - 1) + 1, s)
    slices = [x[(slice(None), *map(along, offset, places, layer.stride))] for offset in offsets]
    return _by_place(layer, jnp.stack(slices, axis=1), places)


def own_patches(layer: Any, x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """The same of any convolution. It is the layer itself that cuts them out, with kernels of a single one each, one
    channel at a time: all its ways of padding, striding and dilating are Equinox's own."""
    channels, positions = x.shape[0], math.prod(layer.kernel_size)
    ones = jnp.eye(positions, dtype=x.dtype).reshape(positions, 1, *layer.kernel_size)
    settings = {field.name: getattr(layer, field.name) for field in dataclasses.fields(layer)}
    settings |= {"weight": jnp.tile(ones, (channels, *(1 for _ in ones.shape[1:])))}
    settings |= {"bias": None, "use_bias": False, "groups": channels}
    cutter = object.__new__(type(layer))  # not `dataclasses.replace`, which would make a new layer
    for name, value in settings.items():
        object.__setattr__(cutter, name, value)
    with jax.default_matmul_precision("highest"):  # or a GPU rounds what it copies
        y = cutter(x)
    return _by_place(layer, y, y.shape[1:])


def _by_place(layer: Any, y: Shaped[Array, "..."], places: Any) -> Shaped[Array, "..."]:
    return jnp.moveaxis(y.reshape(layer.groups, -1, *places), (0, 1), (-2, -1))
