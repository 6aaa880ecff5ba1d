"""Statistics of a flow under any nesting of `vmap`: one sum over all rows, never one for each.

A `vmap` hands its axis on, until the flow stands there with all of them in front, the outermost first. Then all rows
are summed up at once: a product of matrices for Σ x xᵀ.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float32

from .flow import AbstractFlow, Weight
from .statistic import STATISTICS

Sums = dict[str, Float32[Array, "..."]]
MISFIT = -jnp.inf  # in the place of all sums: the weight of rows has other axes than the rows


class Level(NamedTuple):
    """One `vmap`.

    - `stacked`: it maps the layer, so that there is a sum for each of its slices.
    - `weighted`: it maps the weight of the rows.
    """

    stacked: bool
    weighted: bool


def measure(flow: AbstractFlow, weight: Weight, zeros: Sums) -> Sums:
    """The statistics that `zeros` names, of all rows; axes of `zeros` that a `vmap` maps are mapped in the result.

    A cotangent does not depend on the value of what it is of, so what stands in `zeros` can be the values at which a
    statistic is to be taken.
    """
    return _measure(())(flow, weight, zeros)


@functools.cache
def _measure(levels: tuple[Level, ...]) -> Callable[[AbstractFlow, Weight, Sums], Sums]:
    """For a flow with the axes of these levels, the outermost first."""

    @custom_vmap
    def measured(flow: AbstractFlow, weight: Weight, zeros: Sums) -> Sums:
        stacked = tuple(axis for axis, level in enumerate(levels) if level.stacked)
        each = None if weight is None else _of_rows(weight, flow.rows, levels, stacked)
        rows = flow.arranged(stacked)
        sums = {name: STATISTICS[name].of(rows, each, zeros[name]) for name in zeros}
        # It need not fit before all axes are there. Whether they are is not known here, so it's no error yet.
        misfit = weight is not None and each is None
        return jax.tree.map(lambda x: jnp.full_like(x, MISFIT), sums) if misfit else sums

    @measured.def_vmap
    def _(size: int, mapped, flow: AbstractFlow, weight: Weight, zeros: Sums):
        flow_mapped, weight_mapped, zeros_mapped = (any(jax.tree.leaves(m)) for m in mapped)
        if not flow_mapped:
            flow = jax.tree.map(lambda x: jnp.broadcast_to(x, (size, *x.shape)), flow)
        outer = _measure((Level(zeros_mapped, weight_mapped), *levels))
        # Not mapped although the flow is: it is the sum over the axis, which is what a cotangent has to be.
        return outer(flow, weight, zeros), dict.fromkeys(zeros, zeros_mapped)

    return measured


def _of_rows(
    weight: Float32[Array, "..."], rows: tuple[int, ...], levels: tuple[Level, ...], stacked: tuple[int, ...]
) -> Float32[Array, "..."] | None:
    """The weight of each row, axes of stacks in front, the others as one; `None` if it has no such shape.

    Axes of the weight that no `vmap` mapped belong to the outermost axes of rows that are neither a stack's nor such
    that the weight was mapped along.
    """
    along = [axis for axis, level in enumerate(levels) if level.weighted]
    free = [axis for axis in range(len(rows)) if axis not in along and axis not in stacked]
    own = weight.shape[len(along) :]
    if len(own) > len(free) or any(n != rows[axis] for n, axis in zip(own, free, strict=False)):
        return None
    order = [*along, *free[: len(own)]]
    weight = jnp.transpose(weight, sorted(range(len(order)), key=order.__getitem__))
    weight = jnp.expand_dims(weight, [axis for axis in range(len(rows)) if axis not in order])
    weight = jnp.moveaxis(jnp.broadcast_to(weight, rows), stacked, tuple(range(len(stacked))))
    return weight.reshape(*weight.shape[: len(stacked)], -1)
