"""The statistics there are."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float32

from .flow import AbstractFlow, Weight

CALLS = "calls"
COUNT = "count"
MEAN = "mean"
SECOND_MOMENT = "second_moment"
GRAM = "gram"
ABSOLUTE_MAXIMUM = "absolute_maximum"
REACHED = "reached"  # in how many calls the largest |x| reached each of some values
STEPS = 15  # how many values


@dataclasses.dataclass(frozen=True)
class Statistic:
    """What one statistic is.

    - `shape`: groups and features of a weight → that of the statistic.
    - `of`: that of a flow, from it, the weight of its rows, and the values at which it is taken, if it has such.
    - `join`: that of two sets of rows, from those of each.
    """

    shape: Callable[[int, int], tuple[int, ...]]
    of: Callable[[AbstractFlow, Weight, Array], Float32[Array, "..."]]
    join: Callable[[Array, Array], Array] = jnp.add


def _count(flow: AbstractFlow, weight: Weight, at: Array) -> Float32[Array, "*kept"]:
    *kept, rows = flow.rows
    return jnp.full(tuple(kept), rows, jnp.float32) if weight is None else jnp.sum(weight, axis=-1)


def _reached(flow: AbstractFlow, weight: Weight, at: Float32[Array, "*kept groups features steps"]) -> Array:
    return (flow.largest(weight)[..., None] >= at).astype(jnp.float32)


_by_feature = lambda groups, features: (groups, features)

STATISTICS = {
    CALLS: Statistic(lambda groups, features: (), lambda flow, weight, at: jnp.ones(flow.rows[:-1], jnp.float32)),
    COUNT: Statistic(lambda groups, features: (), _count),
    MEAN: Statistic(_by_feature, lambda flow, weight, at: flow.total(weight)),
    SECOND_MOMENT: Statistic(_by_feature, lambda flow, weight, at: flow.squares(weight)),
    GRAM: Statistic(lambda groups, features: (groups, features, features), lambda flow, w, at: flow.products(w)),
    ABSOLUTE_MAXIMUM: Statistic(_by_feature, lambda flow, weight, at: flow.largest(weight), jnp.maximum),
    REACHED: Statistic(lambda groups, features: (groups, features, STEPS), _reached),
}

ASKED_FOR = (SECOND_MOMENT, GRAM, MEAN, COUNT, ABSOLUTE_MAXIMUM)
"""Those that have a name for users."""
