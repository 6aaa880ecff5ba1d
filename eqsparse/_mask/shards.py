"""What must lie whole on each shard of a sharded weight, so that no mask is ever gathered."""

import math
from collections.abc import Mapping
from typing import Any

from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

BYTE = {-1: 8}
"""What a packed mask keeps together: eight weights along the last axis."""


def check_whole(rule: str, path: str, weight: Any, runs: Mapping[int, int]) -> None:
    """Raises `ValueError` if runs of weights are cut by the shards of a weight, where these are known.

    **Arguments:**

    - `rule`: What the runs are of, as the user wrote it.
    - `path`: The weight's path.
    - `weight`: The weight; what is traced or on one device is taken as it is.
    - `runs`: Axis, counted from the end of the shape (negative) → how many neighbours along it belong together.
    """
    if isinstance(weight, Tracer) or not hasattr(weight, "sharding"):
        return
    shape, shard = tuple(weight.shape), tuple(weight.sharding.shard_shape(weight.shape))
    cut = [axis for axis, run in runs.items() if not _whole(shape, shard, axis, run)]
    if cut:
        along = " and ".join(f"{runs[axis]} along axis {len(shape) + axis}" for axis in cut)
        raise ValueError(
            f"`{rule}` must have its groups ({along}) whole on each device, so that no mask is gathered. "
            f"Got `{path}` of shape {shape} in shards of {shard}. {_remedy(weight, runs)}"
        )


def _whole(shape: tuple[int, ...], shard: tuple[int, ...], axis: int, run: int) -> bool:
    return shard[axis] == shape[axis] or shard[axis] % run == 0


def _remedy(weight: Any, runs: Mapping[int, int]) -> str:
    sharding = weight.sharding
    if not isinstance(sharding, NamedSharding):
        return "Shards must be multiples of them, or take in the whole axis."
    spec = _aligned(tuple(weight.shape), sharding, runs)
    return f"Sharded by `{spec}` it would do."


def _aligned(shape: tuple[int, ...], sharding: NamedSharding, runs: Mapping[int, int]) -> PartitionSpec:
    """The nearest layout that cuts no run: mesh axes that do go to another axis of the array, or nowhere."""
    sizes = sharding.mesh.shape
    given = [*sharding.spec, *(None for _ in range(len(shape) - len(sharding.spec)))]
    names = [[] if n is None else [n] if isinstance(n, str) else list(n) for n in given]
    run = [runs.get(axis - len(shape), 1) for axis in range(len(shape))]

    def fits(axis: int, over: list[str]) -> bool:
        parts = math.prod(sizes[name] for name in over)
        return parts == 1 or shape[axis] % (parts * run[axis]) == 0

    loose = []
    for axis, over in enumerate(names):
        while not fits(axis, over):
            loose.append(over.pop())
    for name in reversed(loose):
        home = next((a for a in range(len(shape)) if fits(a, [*names[a], name])), None)
        if home is not None:
            names[home].append(name)
    return PartitionSpec(*(None if not over else over[0] if len(over) == 1 else tuple(over) for over in names))
