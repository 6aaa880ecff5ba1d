"""Bisection, several probes to a pass, for many thresholds side by side."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped, UInt32

from . import limbs as w
from .limbs import Wide
from .passes import probes_at_once


class Bracket(NamedTuple):
    """`low`: the largest point tried that counts at least what is wanted; `high`: the smallest that counts less.

    The counts are kept apart by array: shape `(arrays, *thresholds)`.
    """

    low: Shaped[Array, "*thresholds"]
    high: Shaped[Array, "*thresholds"]
    count_low: UInt32[Array, "arrays *thresholds"]
    count_high: UInt32[Array, "arrays *thresholds"]


class Search(NamedTuple):
    """What to look for.

    - `counts`: points → what is counted at each, which must not increase from a point to a larger one.
    - `wanted`: the count looked for.
    - `start`: a bracket to begin with.
    """

    counts: Callable[[Sequence[Array]], Sequence[UInt32[Array, "arrays *thresholds"]]]
    wanted: Wide
    start: Bracket


def bisect(searches: Sequence[Search]) -> list[Bracket]:
    """Narrows each bracket until `count_low` is exactly what is wanted, or low and high are neighbours.

    What is found at the start costs no pass; with three probes a search over 32-bit keys takes 16 at most. All search
    in one loop, until the last is done.
    """

    def narrow(brackets: list[Bracket]) -> list[Bracket]:
        return [_narrow(search, bracket) for search, bracket in zip(searches, brackets, strict=True)]

    def going_on(brackets: list[Bracket]) -> Bool[Array, ""]:
        going = [jnp.any(_active(s, b)) for s, b in zip(searches, brackets, strict=True)]
        return jnp.any(jnp.stack(going))

    return jax.lax.while_loop(going_on, narrow, [search.start for search in searches])


def _active(search: Search, b: Bracket) -> Bool[Array, "*thresholds"]:
    return (b.high - b.low > 1) & ~w.equal(w.total(b.count_low), search.wanted)


def _narrow(search: Search, b: Bracket) -> Bracket:
    going = _active(search, b)
    points = _points(b.low, b.high)
    found = jnp.stack(search.counts(points), axis=1)
    tried = jnp.stack(points)
    enough = w.at_least(w.total(found), Wide(*(n[None] if n.ndim else n for n in search.wanted)))
    below, above = going[None] & enough, going[None] & ~enough
    # Neither points nor counts, of which the larger point has the smaller, pass each other.
    return Bracket(
        jnp.max(jnp.where(below, tried, b.low[None]), axis=0),
        jnp.min(jnp.where(above, tried, b.high[None]), axis=0),
        jnp.min(jnp.where(below[None], found, b.count_low[:, None]), axis=1),
        jnp.max(jnp.where(above[None], found, b.count_high[:, None]), axis=1),
    )


def _points(low: Array, high: Array) -> list[Array]:
    """Evenly spread points strictly between low and high (repeated where there are too few)."""
    parts = probes_at_once() + 1
    width = high - low
    divisor = jnp.full_like(width, parts)
    step, rest = jax.lax.div(width, divisor), jax.lax.rem(width, divisor)
    return [low + jnp.maximum(step * j + jax.lax.div(rest * j, divisor), 1) for j in range(1, parts)]
