"""Where on a mesh an array lies: as the weight that it belongs to, never gathered."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped


def laid_out_as(array: Shaped[Array, "*shape"], like: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """The array, in the shards of another of its shape."""
    if jax.device_count() == 1:
        return array
    if not isinstance(array, Tracer) and not isinstance(like, Tracer):
        return jax.device_put(array, like.sharding)
    kinds = jax.typeof(like).sharding.mesh.axis_types
    if AxisType.Explicit in kinds:
        array = jax.sharding.reshard(array, jax.typeof(like).sharding)
    if AxisType.Explicit not in kinds or AxisType.Auto in kinds:
        array = _tied(array, like)
    return array


def members_as(array: Shaped[Array, "members ..."], like: Shaped[Array, "members ..."]) -> Shaped[Array, "members ..."]:
    """The array, its first axis over the devices that another's is over: all that `jax.vmap` maps must lie alike."""
    if jax.device_count() == 1 or AxisType.Explicit not in jax.typeof(like).sharding.mesh.axis_types:
        return array
    there = jax.typeof(like).sharding
    spec = PartitionSpec(there.spec[0], *jax.typeof(array).sharding.spec[1:])
    return jax.sharding.reshard(array, NamedSharding(there.mesh, spec))


def _tied(array: Shaped[Array, "*shape"], like: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """The array, combined with another entry by entry: this is what the compiler lays out alike.

    JAX's `shard_alike` lays out all arrays of one shape in a program alike, whichever pairs it is given (0.10).
    """
    if not jnp.issubdtype(like.dtype, jnp.inexact):
        return array
    never = jnp.isnan(like) & jnp.isinf(like)  # no number is both, but no compiler knows that
    return jnp.where(never, jnp.zeros_like(array), array)


def made_as(
    make: Callable[..., Shaped[Array, "*shape"]], like: Shaped[Array, "*shape"], *inputs: Array
) -> Shaped[Array, "*shape"]:
    """`make(*inputs)`, each device making its own shard of the array `like` only."""
    if jax.device_count() == 1:
        return make(*inputs)
    sharding = jax.typeof(like).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return laid_out_as(make(*inputs), like)
    # Else each operation on the way would be laid out by itself, that is whole on each device.
    on_its_own: Any = jax.sharding.auto_axes(make, out_sharding=sharding)
    return laid_out_as(on_its_own(*inputs), like)
