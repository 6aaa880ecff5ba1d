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


def bisect(
    counts: Callable[[Sequence[Array]], Sequence[UInt32[Array, "arrays *thresholds"]]],
    wanted: Wide,
    start: Bracket,
) -> Bracket:
    """Narrow the bracket until `count_low` is exactly `wanted`, or low and high are neighbours.

    `counts(points)` must not increase from a point to a larger one. A threshold whose count is already
    exact costs no pass; with three probes a search over 32-bit keys takes 16 passes at most.
    """

    def active(b: Bracket) -> Bool[Array, "*thresholds"]:
        return (b.high - b.low > 1) & ~w.equal(w.total(b.count_low), wanted)

    def narrow(b: Bracket) -> Bracket:
        going = active(b)
        points = _points(b.low, b.high)
        found = counts(points)
        enough = [w.at_least(w.total(n), wanted) for n in found]
        low, high, count_low, count_high = b
        tried = list(zip(points, found, enough, strict=True))
        for point, n, ok in tried:
            low, count_low = jnp.where(going & ok, point, low), jnp.where(going & ok, n, count_low)
        for point, n, ok in reversed(tried):
            high, count_high = jnp.where(going & ~ok, point, high), jnp.where(going & ~ok, n, count_high)
        return Bracket(low, high, count_low, count_high)

    return jax.lax.while_loop(lambda b: jnp.any(active(b)), narrow, start)


def _points(low: Array, high: Array) -> list[Array]:
    """Evenly spread points strictly between low and high (repeated where there are too few)."""
    parts = probes_at_once() + 1
    width = high - low
    step, rest = width // parts, width % parts
    points = [low + step * j + rest * j // parts for j in range(1, parts)]
    return [jnp.clip(p, low + 1, jnp.maximum(high - 1, low + 1)) for p in points]
