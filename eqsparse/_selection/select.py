"""Exactly k of n: the largest of one array, or of many together, by counting passes only.

No sort, no concatenation, no gather. The k-th largest key is found by bisection over its bits; where
several keys tie with it, a second bisection over the flat index takes the lower ones. Under a mesh a
pass is one scalar all-reduce.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Shaped, UInt, UInt32

from . import limbs as w
from .keys import key_dtype, raised, sort_key
from .limbs import Wide
from .mapped import update_if
from .passes import count_true, folded, kept_lean, made_anew, on_one_device
from .search import bisect, Bracket, Search


class Contest(NamedTuple):
    """Groups of weights that compete.

    - `scores`: one score a group. Axes before the last `rank` are separate contests, side by side.
    - `rank`: how many trailing axes compete with each other.
    - `sizes`: weights in each group: one number, or an array of the shape of the competing axes.
    - `seeded`: groups that are placed above all others, if any.
    """

    scores: Shaped[Array, "..."]
    rank: int
    sizes: int | np.ndarray | Array = 1
    seeded: Bool[Array, "..."] | None = None

    @property
    def axes(self) -> tuple[int, ...]:
        return tuple(range(self.scores.ndim - self.rank, self.scores.ndim))

    @property
    def groups(self) -> int:
        return math.prod(self.scores.shape[self.scores.ndim - self.rank :])

    @property
    def weights(self) -> int:
        """In all groups of one contest."""
        if isinstance(self.sizes, int):
            return self.groups * self.sizes
        competing = self.scores.shape[self.scores.ndim - self.rank :]
        return int(np.broadcast_to(self.sizes, competing).sum(dtype=np.int64))

    def keys(self) -> UInt[Array, "..."]:
        keys = sort_key(self.scores)
        return keys if self.seeded is None else jnp.where(self.seeded, raised(keys.dtype), keys)

    def tally(self, predicates: Sequence[Bool[Array, "..."]]) -> list[UInt32[Array, "..."]]:
        """Weights in the groups for which a predicate holds, for each contest."""
        return count_true(predicates, self.axes, self.sizes)

    def tally_of_all(self) -> UInt32[Array, "..."]:
        """Weights of each contest: a constant, laid out as the contests are."""
        sizes = jnp.broadcast_to(jnp.asarray(self.sizes, jnp.uint32), self.scores.shape)
        each = jnp.full_like(self.scores, 1, jnp.uint32) * sizes
        return jnp.sum(each, axis=self.axes, dtype=jnp.uint32)

    def at_least(self, keys: UInt[Array, "..."], points: Sequence[Array]) -> list[UInt32[Array, "..."]]:
        """Weights in the groups whose key reaches a point, for each contest."""
        if not isinstance(self.sizes, int):
            return self.tally([keys >= self.spread(p).astype(keys.dtype) for p in points])
        keys = folded(keys, self.rank)
        axes = tuple(range(len(points[0].shape), keys.ndim))
        spread = lambda p: p.reshape(p.shape + (1,) * len(axes)).astype(keys.dtype)
        return count_true([keys >= spread(p) for p in points], axes, self.sizes)

    def spread(self, threshold: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """One threshold for each contest, shaped to compare with the keys."""
        return threshold.reshape(threshold.shape + (1,) * self.rank)


class Heat(NamedTuple):
    """Contests whose groups all compete with each other, for `k` weights together.

    - `k`: one value, or one for each of the contests side by side.
    - `at_least`: never keep fewer, where no choice of whole groups holds exactly `k` weights.
    """

    contests: Sequence[Contest]
    k: Wide
    at_least: bool = False

    @property
    def key_dtype(self) -> np.dtype:
        return key_dtype(self.contests[0].scores.dtype)


def select(contest: Contest, k: Wide) -> Bool[Array, "..."]:
    """The groups with the largest scores that hold `k` weights together.

    Ties go to the lower flat index. Where groups hold several weights, as many are taken as come nearest
    to `k`, the larger number of two, and one at least unless `k` is 0. `k` is one value for all contests, or
    one for each.
    """
    return select_many([contest], k)[0]


def select_many(contests: Sequence[Contest], k: Wide) -> list[Bool[Array, "..."]]:
    """As `select`, over several arrays whose groups all compete (ties: the earlier array)."""
    return select_all([Heat(contests, k)])[0]


def select_all(heats: Sequence[Heat]) -> list[list[Bool[Array, "..."]]]:
    """The winners of each heat, found side by side in the same passes."""
    held = [heat._replace(contests=_in_one_precision([c for c in heat.contests if c.groups > 0])) for heat in heats]
    arrays = lambda x: jnp.asarray(x) if isinstance(x, np.ndarray | np.generic) else x  # NumPy's would be static
    found = _apart(_found, [jax.tree.map(arrays, heat) for heat in held if heat.contests])
    chosen = iter([mask for masks in found for mask in masks])
    return [[jnp.zeros(c.scores.shape, bool) if c.groups == 0 else next(chosen) for c in h.contests] for h in heats]


def _in_one_precision(contests: Sequence[Contest]) -> Sequence[Contest]:
    """With all scores in the highest of their precisions, so that they are compared by value."""
    dtypes = {c.scores.dtype for c in contests}
    if len(dtypes) < 2 or not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        return contests
    widest = jnp.float64 if any(dtype.itemsize > 4 for dtype in dtypes) else jnp.float32
    return [c._replace(scores=c.scores.astype(widest)) for c in contests]


def _apart(function: Callable[..., list[Any]], these: Sequence[Any]) -> list[Any]:
    """What a function finds for each of these.

    On one device one after the other: scratch memory for one, and all of the same shapes are traced and lowered once.
    On several all in one loop: several would each wait for all devices, in any order.

    The function is also given what else its trace goes by, so that it is traced again where that is another.
    """
    parts = [[this] for this in these] if on_one_device() or not these else [these]
    return [found for part in parts for found in function(part, _MANY, jax.device_count())]


@eqx.filter_jit
def _found(heats: Sequence[Heat], many: int, devices: int) -> list[list[Bool[Array, "..."]]]:
    """The winners of each heat; none is empty."""
    heats = [_laid_out(heat) for heat in heats]
    brackets = _thresholds(heats, many)
    ties = [_ties(heat, bracket) for heat, bracket in zip(heats, brackets, strict=True)]
    found = iter(_apart(_found_of_ties, [tie for of_heat in ties for tie in of_heat]))
    return [[next(found) for _ in of_heat] for of_heat in ties]


def _laid_out(heat: Heat) -> Heat:
    """With a `k` that is laid out as the contests are: else thresholds of rows would be gathered in each pass."""
    if on_one_device():
        return heat
    zeros = jnp.zeros_like(heat.contests[0].tally_of_all())
    return heat._replace(k=Wide(heat.k.hi + zeros, heat.k.lo + zeros))


def select_many_with_floor(
    contests: Sequence[Contest], k: Wide, floor: UInt32[Array, ""], ranks: Sequence[int]
) -> list[Bool[Array, "..."]]:
    """As `select_many`, with at least `floor` weights of every slice, filled first; the total stays `k` if it can.

    Where groups hold several weights, the fewest groups fill a floor that hold as many.

    - `ranks`: the rank of a slice of each array; a floor holds for each slice along the axes before.
    """
    return with_floor(select_many(contests, k), contests, k, floor, ranks)


def with_floor(
    winners: list[Bool[Array, "..."]],
    contests: Sequence[Contest],
    k: Wide,
    floor: UInt32[Array, ""],
    ranks: Sequence[int],
) -> list[Bool[Array, "..."]]:
    """The winners of `select_many`, selected again only if a slice is left with fewer than `floor` weights."""
    slices = [Contest(c.scores, rank, c.sizes, c.seeded) for c, rank in zip(contests, ranks, strict=True)]
    floors = [Wide(jnp.uint32(0), jnp.minimum(floor, jnp.uint32(s.weights))) for s in slices]
    short = [jnp.any(s.tally([m])[0] < f.lo) for s, m, f in zip(slices, winners, floors, strict=True)]

    def filled(winners: list[Bool[Array, "..."]]) -> list[Bool[Array, "..."]]:
        fills = [Heat([s], f, at_least=True) for s, f in zip(slices, floors, strict=True)]
        seeds = [seed for (seed,) in select_all(fills)]
        least = w.total(jnp.stack([c.tally([seed])[0] for c, seed in zip(contests, seeds, strict=True)]))
        both = [seed if c.seeded is None else seed | c.seeded for c, seed in zip(contests, seeds, strict=True)]
        seeded = [c._replace(seeded=seed) for c, seed in zip(contests, both, strict=True)]
        return select_many(seeded, w.maximum(k, least))

    return update_if(jnp.any(jnp.stack(short)), filled, winners)


def _thresholds(heats: Sequence[Heat], many: int) -> list[Bracket]:
    """A bracket around the smallest kept key of each heat.

    Keys of many groups are searched byte by byte: one byte of each stands in memory and is read in a pass.
    """
    brackets = [_everything(heat) for heat in heats]
    digits = [_digits(heat, many) for heat in heats]
    for place in range(max(len(d) for d in digits)):
        there = [i for i, d in enumerate(digits) if place < len(d)]
        found = bisect([_digit_search(heats[i], brackets[i], digits[i][place]) for i in there])
        for i, bracket in zip(there, found, strict=True):
            brackets[i] = _narrowed(heats[i], brackets[i], digits[i][place], bracket)
    return brackets


def _everything(heat: Heat) -> Bracket:
    """The bracket that holds all keys; where nothing is to be kept, one at the top that holds none."""
    counted = jnp.stack([c.tally_of_all() for c in heat.contests])
    key_dtype = heat.key_dtype
    zeros = jnp.zeros_like(counted[0], jnp.uint64 if key_dtype == jnp.uint64 else jnp.uint32)
    top = zeros + np.array(np.iinfo(key_dtype).max, zeros.dtype)
    nothing = w.equal(heat.k, w.wide(0)) & (zeros == 0)
    some = jnp.where(nothing, np.uint32(0), counted)
    return Bracket(jnp.where(nothing, top, zeros), top, some, jnp.zeros_like(counted))


class _Digit(NamedTuple):
    """`width` bits of a key of `bits`, from the one of value `2**shift` on."""

    shift: int
    width: int
    bits: int

    def of(self, keys: UInt[Array, "..."], low: UInt[Array, "..."]) -> UInt[Array, "..."]:
        """The digit where the digits before it are those of `low`, else 0."""
        if self.width == self.bits:
            return keys
        here, above = (keys >> self.shift).astype(jnp.uint8), self.shift + self.width
        if above == self.bits:
            return here
        return jnp.where(keys >> above == low.astype(keys.dtype) >> above, here, np.uint8(0))

    def end(self, dtype) -> Shaped[Array, ""]:
        """Above each digit of a key."""
        return jnp.asarray(np.array(min(1 << self.width, np.iinfo(dtype).max), dtype))


_MANY = 2**16  # groups


def _digits(heat: Heat, many: int) -> list[_Digit]:
    """From the highest to the lowest. The keys of few groups are searched as a whole: less to compile."""
    bits = 8 * heat.key_dtype.itemsize
    width = 8 if max(c.scores.size for c in heat.contests) >= many else bits
    return [_Digit(shift, width, bits) for shift in range(bits - width, -1, -width)]


def _digit_search(heat: Heat, bracket: Bracket, digit: _Digit) -> Search:
    """The search for one digit of the smallest kept key, if the digits before it are those of `bracket.low`."""
    # Else the whole keys would be kept from one digit to the next.
    anew = [c._replace(scores=made_anew(bracket.low, c.scores)[1]) for c in heat.contests]

    def counts(points: Sequence[Array]) -> list[UInt32[Array, "..."]]:
        by_array = []
        for c, above in zip(anew, bracket.count_high, strict=True):
            first, scores = kept_lean(points[0], c.scores)
            digits = digit.of(c._replace(scores=scores).keys(), c.spread(bracket.low))
            found = c.at_least(digits, [first, *points[1:]])
            by_array.append([above + n for n in found])
        return [jnp.stack(found) for found in zip(*by_array, strict=True)]

    low = jnp.zeros_like(bracket.low)
    return Search(counts, heat.k, bracket._replace(low=low, high=low + digit.end(low.dtype)))


def _narrowed(heat: Heat, bracket: Bracket, digit: _Digit, found: Bracket) -> Bracket:
    """The bracket, by one digit more where it was not exact before."""
    exact = w.equal(w.total(bracket.count_low), heat.k)
    place = lambda d: bracket.low + (d << digit.shift)
    low = jnp.where(exact, bracket.low, place(found.low))
    high = jnp.where(exact | (found.high == digit.end(found.high.dtype)), bracket.high, place(found.high))
    return found._replace(low=low, high=high)


class _Tie(NamedTuple):
    """The groups of one contest within a bracket, which hold `tied` weights, of which `need` are to be kept.

    - `alone`: nothing else is kept, above the bracket or of the tied groups of earlier arrays.
    - `at_least`: keep no fewer than needed.
    """

    contest: Contest
    low: Shaped[Array, "..."]
    high: Shaped[Array, "..."]
    tied: UInt32[Array, "..."]
    need: UInt32[Array, "..."]
    alone: Bool[Array, "..."]
    at_least: bool

    def first(self, lefts: Sequence[UInt32[Array, "..."]], start: UInt32[Array, ""]) -> list[Bool[Array, "..."]]:
        """Those of the tied groups that are not among the last of the contest, so many as `lefts` says in turn."""
        c, keys = self.contest, self.contest.keys()
        low, high = (c.spread(b).astype(keys.dtype) for b in (self.low, self.high))
        tied, place = (keys >= low) & (keys < high), _flat_index(keys, c.axes, start)
        return [tied & (place < c.spread(np.uint32(c.groups) - left)) for left in lefts]


def _ties(heat: Heat, bracket: Bracket) -> list[_Tie]:
    tied = bracket.count_low - bracket.count_high
    above = w.total(bracket.count_high)
    need = _shares(w.clipped_subtract(heat.k, above), tied)
    alone = w.equal(above, w.wide(0))
    ties = []
    for contest, t, n in zip(heat.contests, tied, need, strict=True):
        ties.append(_Tie(contest, bracket.low, bracket.high, t, n, alone, heat.at_least))
        alone = alone & (n == 0)
    return ties


@eqx.filter_jit
def _found_of_ties(ties: Sequence[_Tie], many: int, devices: int) -> list[Bool[Array, "..."]]:
    """The winners of each tie's contest."""
    found = bisect([_tie_search(tie) for tie in ties])
    return [_winners(tie, bracket) for tie, bracket in zip(ties, found, strict=True)]


def _tie_search(tie: _Tie) -> Search:
    """The search for how many groups to leave out at the end: the more, the less is counted."""

    def counts(points: Sequence[Array]) -> list[UInt32[Array, "..."]]:
        p0, scores = kept_lean(points[0], tie.contest.scores)
        p0, start = made_anew(p0, jnp.uint32(0))
        there = tie._replace(contest=tie.contest._replace(scores=scores))
        return [found[None] for found in tie.contest.tally(there.first([p0, *points[1:]], start))]

    zeros = jnp.zeros_like(tie.tied)
    all_of_them = zeros + np.uint32(tie.contest.groups)
    nothing = tie.need == 0
    some = jnp.where(nothing, zeros, tie.tied)
    start = Bracket(jnp.where(nothing, all_of_them, zeros), all_of_them, some[None], zeros[None])
    return Search(counts, Wide(zeros, tie.need + zeros), start)


def _winners(tie: _Tie, found: Bracket) -> Bool[Array, "..."]:
    """The groups above the bracket, and the first of the tied ones that hold what is needed."""
    over, under = found.count_low[0] - tie.need, tie.need - found.count_high[0]
    only = tie.alone & (found.count_high[0] == 0)  # the first group stays, however large
    left = found.low if tie.at_least else jnp.where((over <= under) | only, found.low, found.high)
    left, scores = made_anew(left, tie.contest.scores)  # else what the search has made of them would be kept
    tie = tie._replace(contest=tie.contest._replace(scores=scores))
    keys = tie.contest.keys()
    above = keys >= tie.contest.spread(tie.high).astype(keys.dtype)
    (first,) = tie.first([left], jnp.uint32(0))
    return above | first


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
        place = jnp.arange(n, dtype=jnp.uint32) * np.uint32(stride)
        index = index + place.reshape(*(n if a == axis else 1 for a in range(array.ndim)))
        stride *= n
    return index
