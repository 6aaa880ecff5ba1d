"""Where on a mesh an array lies: as the weight that it belongs to, never gathered."""

from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer
from jax.experimental.shard_alike import shard_alike
from jax.sharding import AxisType
from jaxtyping import Array, Shaped

from .passes import on_one_device


def laid_out_as(array: Shaped[Array, "*shape"], like: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """The array, in the shards of another of its shape."""
    if on_one_device():
        return array
    if not isinstance(array, Tracer) and not isinstance(like, Tracer):
        return jax.device_put(array, like.sharding)
    kinds = jax.typeof(like).sharding.mesh.axis_types
    if AxisType.Explicit in kinds:
        array = jax.sharding.reshard(array, jax.typeof(like).sharding)
    if AxisType.Explicit not in kinds or AxisType.Auto in kinds:
        array = shard_alike(array, like)[0]
    return array


def made_as(
    make: Callable[..., Shaped[Array, "*shape"]], like: Shaped[Array, "*shape"], *inputs: Array
) -> Shaped[Array, "*shape"]:
    """`make(*inputs)`, each device making its own shard of the array `like` only."""
    if on_one_device():
        return make(*inputs)
    sharding = jax.typeof(like).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return laid_out_as(make(*inputs), like)
    # Else each operation on the way would be laid out by itself, that is whole on each device.
    on_its_own: Any = jax.sharding.auto_axes(make, out_sharding=sharding)
    return laid_out_as(on_its_own(*inputs), like)
