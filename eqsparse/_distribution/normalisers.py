"""What makes the scores of different layers comparable: functions of scores and the rank of one layer's."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def as_they_are(scores: Float[Array, "..."], core_rank: int) -> Float[Array, "..."]:
    """The scores themselves."""
    return scores


def by_norm(scores: Float[Array, "..."], core_rank: int) -> Float[Array, "..."]:
    """Scores over the L2 norm of their layer's finite ones (no overflow); as they are where that is 0."""
    axes = tuple(range(scores.ndim - core_rank, scores.ndim))
    finite = jnp.where(jnp.isfinite(scores), scores, 0)
    largest = jnp.max(jnp.abs(finite), axis=axes, keepdims=True, initial=0)
    norm = jnp.sqrt(jnp.maximum(jnp.sum(_over(finite, largest) ** 2, axis=axes, keepdims=True), 1))
    return _over(scores, largest) / norm


def by_what_is_larger(scores: Float[Array, "..."], core_rank: int) -> Float[Array, "..."]:
    """`s² / Σ t²` over the layer's scores t from s upwards: LAMP, equation (3). The largest of a layer gets 1. Below
    zero, where some criteria have weights that are better away, `-s² / Σ t²` over all t.

    Of equal scores the lower index counts as the larger. This sorts each layer, unlike selection itself: a
    sharded array is gathered for it.
    """
    shape = scores.shape
    if scores.size == 0:
        return scores
    layers = scores.reshape(-1, math.prod(shape[scores.ndim - core_rank :]))
    return jax.vmap(_lamp)(layers).reshape(shape)


def _lamp(scores: Float[Array, " n"]) -> Float[Array, " n"]:
    finite = jnp.isfinite(scores)
    positive = finite & (scores >= 0)
    # Falling, all others last; over the largest, so that squares neither overflow nor vanish.
    order = jnp.argsort(jnp.where(positive, -scores, jnp.inf), stable=True)
    largest = jnp.max(jnp.where(finite, jnp.abs(scores), 0), initial=0)
    squares = jnp.where(finite, _over(scores, largest) ** 2, 0)
    rising = jnp.where(positive, squares, 0)[order]
    larger = jnp.cumsum(rising)
    ratios = jnp.zeros_like(scores).at[order].set(rising / jnp.where(larger > 0, larger, 1))
    below = -squares / jnp.maximum(jnp.sum(squares), 1)  # the largest is 1, unless all are 0
    return jnp.where(finite, jnp.where(positive, ratios, below), scores)


def _over(scores: Float[Array, "..."], largest: Float[Array, "..."]) -> Float[Array, "..."]:
    """The scores over the largest, as they are where that is 0."""
    # The inverse of a large number, by which XLA multiplies, would vanish: so both by a power of two first.
    down = jnp.where(largest > 2.0**64, 2.0**-64, 1.0).astype(scores.dtype)
    return scores * down / jnp.where(largest > 0, largest * down, jnp.ones_like(largest))
