"""Exactly k of n: the largest of one array, or of many together, by counting passes only.

No sort, no concatenation, no gather. The k-th largest key is found by bisection over its bits; where
several keys tie with it, a second bisection over the flat index takes the lower ones. Under a mesh a
pass is one scalar all-reduce.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Shaped, UInt, UInt32

from . import limbs as w
from .keys import raised, sort_key
from .limbs import Wide
from .mapped import update_if
from .passes import count_true, kept_lean, made_anew
from .search import bisect, Bracket


class Contest(NamedTuple):
    """Groups of weights that compete.

    - `scores`: one score a group. Axes before the last `rank` are separate contests, side by side.
    - `rank`: how many trailing axes compete with each other.
    - `sizes`: weights in each group: one number, or an array of the shape of the competing axes.
    - `seeded`: groups that are placed above all others, if any.
    """

    scores: Shaped[Array, "..."]
    rank: int
    sizes: int | np.ndarray = 1
    seeded: Bool[Array, "..."] | None = None

    @property
    def axes(self) -> tuple[int, ...]:
        return tuple(range(self.scores.ndim - self.rank, self.scores.ndim))

    @property
    def groups(self) -> int:
        return math.prod(self.scores.shape[self.scores.ndim - self.rank :])

    def keys(self) -> UInt[Array, "..."]:
        keys = sort_key(self.scores)
        return keys if self.seeded is None else jnp.where(self.seeded, raised(keys.dtype), keys)

    def tally(self, predicates: Sequence[Bool[Array, "..."]]) -> list[UInt32[Array, "..."]]:
        """Weights in the groups for which a predicate holds, for each contest."""
        return count_true(predicates, self.axes, self.sizes)

    def spread(self, threshold: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """One threshold for each contest, shaped to compare with the keys."""
        return threshold.reshape(threshold.shape + (1,) * self.rank)


def select(contest: Contest, k: Wide) -> Bool[Array, "..."]:
    """The groups with the largest scores that hold `k` weights together.

    Ties go to the lower flat index. Where groups hold several weights, as many are taken as come nearest
    to `k`, the larger number of two. `k` is one value for all contests, or one for each.
    """
    return select_many([contest], k)[0]


def select_many(contests: Sequence[Contest], k: Wide) -> list[Bool[Array, "..."]]:
    """As `select`, over several arrays whose groups all compete (ties: the earlier array)."""
    contested = [c for c in contests if c.groups > 0]
    if not contested:
        return [jnp.zeros(c.scores.shape, bool) for c in contests]
    bracket = _threshold(contested, k)
    tied = bracket.count_low - bracket.count_high
    need = _shares(w.clipped_subtract(k, w.total(bracket.count_high)), tied)
    chosen = iter([_settle(c, bracket, t, n) for c, t, n in zip(contested, tied, need, strict=True)])
    return [next(chosen) if c.groups > 0 else jnp.zeros(c.scores.shape, bool) for c in contests]


def select_many_with_floor(
    contests: Sequence[Contest], k: Wide, floor: UInt32[Array, ""], ranks: Sequence[int]
) -> list[Bool[Array, "..."]]:
    """As `select_many`, with at least `floor` groups of every slice, filled first; the total stays `k` if it can.

    - `ranks`: the rank of a slice of each array; a floor holds for each slice along the axes before.
    """
    slices = [Contest(c.scores, rank) for c, rank in zip(contests, ranks, strict=True)]
    floors = [Wide(jnp.uint32(0), jnp.minimum(floor, jnp.uint32(s.groups))) for s in slices]
    free = select_many(contests, k)
    short = [jnp.any(s.tally([m])[0] < f.lo) for s, m, f in zip(slices, free, floors, strict=True)]

    def filled(free: list[Bool[Array, "..."]]) -> list[Bool[Array, "..."]]:
        seeds = [select(s, f) for s, f in zip(slices, floors, strict=True)]
        least = w.total(jnp.stack([c.tally([seed])[0] for c, seed in zip(contests, seeds, strict=True)]))
        seeded = [c._replace(seeded=seed) for c, seed in zip(contests, seeds, strict=True)]
        return select_many(seeded, w.maximum(k, least))

    return update_if(jnp.any(jnp.stack(short)), filled, free)


def _threshold(contests: Sequence[Contest], k: Wide) -> Bracket:
    """The bracket that holds the smallest kept key of each contest."""
    counted = jnp.stack([c.tally([jnp.full_like(c.scores, True, bool)])[0] for c in contests])
    key_dtype = jax.eval_shape(contests[0].keys).dtype
    zeros = jnp.zeros_like(counted[0], jnp.uint64 if key_dtype == jnp.uint64 else jnp.uint32)
    top = zeros + np.array(np.iinfo(key_dtype).max, zeros.dtype)
    nothing = w.equal(k, w.wide(0)) & (zeros == 0)  # met at the top, by a bracket that holds no key

    def counts(points: Sequence[Array]) -> list[UInt32[Array, "..."]]:
        by_array = []
        for c in contests:
            first, scores = kept_lean(points[0], c.scores)
            keys = c._replace(scores=scores).keys()
            tried = [c.spread(p).astype(key_dtype) for p in (first, *points[1:])]
            by_array.append(c.tally([keys >= p for p in tried]))
        return [jnp.stack(found) for found in zip(*by_array, strict=True)]

    low = jnp.where(nothing, top, zeros)
    return bisect(counts, k, Bracket(low, top, jnp.where(nothing, jnp.uint32(0), counted), jnp.zeros_like(counted)))


def _settle(
    contest: Contest, bracket: Bracket, tied: UInt32[Array, "..."], need: UInt32[Array, "..."]
) -> Bool[Array, "..."]:
    """The groups above the bracket, and the first of those within it, to hold `need` of their `tied` weights."""
    n = jnp.uint32(contest.groups)

    def first(c: Contest, start: UInt32[Array, ""], left: UInt32[Array, "..."]) -> Bool[Array, "..."]:
        keys = c.keys()
        low, high = (c.spread(b).astype(keys.dtype) for b in (bracket.low, bracket.high))
        index = _flat_index(keys, c.axes, start)
        return (keys >= low) & (keys < high) & (index < c.spread(n - left))

    def counts(points: Sequence[Array]) -> list[UInt32[Array, "..."]]:
        p0, scores = kept_lean(points[0], contest.scores)
        p0, start = made_anew(p0, jnp.uint32(0))
        c = contest._replace(scores=scores)
        return [found[None] for found in c.tally([first(c, start, p) for p in (p0, *points[1:])])]

    # A point leaves so many groups out at the end: the more, the less is counted.
    zeros = jnp.zeros_like(tied)
    nothing = need == 0
    start = Bracket(
        jnp.where(nothing, n, zeros), zeros + n, jnp.where(nothing, zeros, tied)[None], zeros[None]
    )
    found = bisect(counts, Wide(zeros, need), start)
    over, under = found.count_low[0] - need, need - found.count_high[0]
    left = jnp.where(over <= under, found.low, found.high)
    keys = contest.keys()
    above = keys >= contest.spread(bracket.high).astype(keys.dtype)
    return above | first(contest, jnp.uint32(0), left)


def _shares(need: Wide, tied: UInt32[Array, "arrays ..."]) -> list[UInt32[Array, "..."]]:
    """What each array gives of the tied weights needed: the earlier ones all they have."""
    shares = []
    for have in tied:
        share = w.minimum(need, Wide(jnp.zeros_like(have), have))
        need = w.subtract(need, share)
        shares.append(share.lo)
    return shares


def _flat_index(array: Array, axes: tuple[int, ...], start: UInt32[Array, ""]) -> UInt32[Array, "..."]:
    """Each entry's row-major index over `axes`, from `start`.

    Built on an array of the right sharding, axis by axis: a reshape would gather it, an iota of its own
    would stand whole on each device.
    """
    index, stride = jnp.zeros_like(array, jnp.uint32) + start, 1
    for axis in reversed(axes):
        n = array.shape[axis]
        place = jnp.arange(n, dtype=jnp.uint32) * jnp.uint32(stride)
        index = index + place.reshape(*(n if a == axis else 1 for a in range(array.ndim)))
        stride *= n
    return index
