"""Where a faster kernel plugs in."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Target(NamedTuple):
    """What a program is lowered for."""

    platforms: tuple[str, ...]
    devices: int  # among which the compiler divides it

    @classmethod
    def of(cls, ctx: Any) -> "Target":
        """From the context that JAX lowers in; within `jax.shard_map` each device has a program of its own."""
        module = ctx.module_context
        return cls(tuple(ctx.platforms or module.platforms), getattr(module.axis_context, "num_devices", 1))


class Faster(NamedTuple):
    """The three functions of a `SparseProduct`, faster somewhere; `None` where JAX has a faster one."""

    product: Callable | None
    transposed: Callable | None
    sampled: Callable | None
    serves: Callable[..., bool]
    """`(target, *arrays)` tells whether they take such arrays, the last one dense, on what is lowered for."""
