"""Exactly k of m within many short runs, by comparing each with each."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped, UInt32

from .limbs import Wide
from .select import Contest, select

_PAIRWISE = 32  # above this length of a run, bisection does less work than comparing all pairs


def select_in_runs(
    scores: Shaped[Array, "..."],
    m: int,
    axis: int,
    k: UInt32[Array, ""],
    kept: Bool[Array, "..."] | None = None,
) -> Bool[Array, "..."]:
    """The `k` largest of each run of `m` neighbours along `axis` (ties: the lower index), those `kept` first.

    The length of the axis must be a multiple of `m`.
    """
    shape = scores.shape
    in_runs = lambda array: array.reshape(*shape[:axis], shape[axis] // m, m, *shape[axis + 1 :])
    runs, seeded = in_runs(scores), None if kept is None else in_runs(kept)
    if m > _PAIRWISE:
        last = lambda array: jnp.moveaxis(array, axis + 1, -1)
        contest = Contest(last(runs), 1, 1, None if seeded is None else last(seeded))
        chosen = select(contest, Wide(jnp.uint32(0), k))
        return jnp.moveaxis(chosen, -1, axis + 1).reshape(shape)
    keys = Contest(runs, 1, 1, seeded).keys()
    place = jnp.arange(m, dtype=jnp.uint32).reshape(*(m if a == axis + 1 else 1 for a in range(keys.ndim)))
    rank = jnp.zeros_like(keys, jnp.uint32)
    for i in range(m):
        other = jax.lax.slice_in_dim(keys, i, i + 1, axis=axis + 1)
        rank = rank + ((other > keys) | ((other == keys) & (i < place))).astype(jnp.uint32)
    return (rank < k).reshape(shape)
