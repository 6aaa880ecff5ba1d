"""What a structure is: which groups a mask keeps or drops whole, and which of them compete."""

import abc
import math
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Shaped, UInt32

from .._check import unit
from .._mask import laid_out_as
from .._selection import Contest, count, density_of, finish_all, Heat, maximum, Pending, Wide
from .._show import show


class Geometry(NamedTuple):
    """How the axes of a weight are to be read: the last `core_rank` are one layer's, those before a stack."""

    core_rank: int
    contraction_axis: int

    def core(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(shape[len(shape) - self.core_rank :])

    def place(self, axis: int) -> int:
        """An axis of the core, counted from the end of the whole array: negative."""
        return axis - self.core_rank if axis >= 0 else axis


class AbstractStructure(eqx.Module):
    """The shape that masks take.

    To make your own, say how scores pool into groups (see `AbstractPooling`).
    """

    @abc.abstractmethod
    def enter(
        self,
        scores: Shaped[Array, "..."],
        density: UInt32[Array, ""],
        geometry: Geometry,
        kept: Bool[Array, "..."] | None = None,
    ) -> Pending:
        """What is to be selected so that each slice of a stack keeps that share of its weights; finishes as a mask
        of the shape of `scores`. Weights that are `kept` are placed above all others."""

    def contest(
        self, scores: Shaped[Array, "..."], geometry: Geometry, kept: Bool[Array, "..."] | None = None
    ) -> Contest:
        """All groups of a slice against each other, whatever part of it they have their budget in."""
        return Contest(scores, geometry.core_rank, 1, kept)

    def spread(self, chosen: Bool[Array, "..."], shape: tuple[int, ...], geometry: Geometry) -> Bool[Array, "*shape"]:
        """The mask of the weights, from that of the groups."""
        return chosen

    def runs(self, geometry: Geometry) -> dict[int, int]:
        """What must not be cut by the shards of a weight: axis, counted from the end of the shape (negative) → how many
        neighbours along it belong to one group. Groups that take in whole axes may be cut: they are summed over."""
        return {}

    @abc.abstractmethod
    def check(self, path: str, core: tuple[int, ...], density: UInt32[Array, ""] | None, geometry: Geometry) -> None:
        """Raises `ValueError` if weights of that shape can't have this structure, at that density if it is known."""

    def mask(self, scores: Float[ArrayLike, "*shape"], sparsity: ArrayLike) -> Bool[Array, "*shape"]:
        """The mask for one array of scores.

        **Arguments:**

        - `scores`: What each weight is worth: the largest are kept. NaN ranks below every number, ties go to
            the lower flat index. Floating point (compared exactly in its own precision).
        - `sparsity`: Fraction to remove, in `[0, 1]`: a float, or a scalar array, traced or not.

        **Returns:** Boolean array of the shape of `scores`, `True` = kept.

        **Raises:** `ValueError` if `sparsity` is outside `[0, 1]`, or the shape can't have this structure.
        """
        return self.mask_at(jnp.asarray(scores), density_of(unit(sparsity, "sparsity")))

    def mask_at(self, scores: Shaped[Array, "*shape"], density: UInt32[Array, ""]) -> Bool[Array, "*shape"]:
        """`mask`, for the fraction to keep in fixed point: `density / 2**32`."""
        if not (jnp.issubdtype(scores.dtype, jnp.floating) or is_lot(scores)):
            raise ValueError(f"`scores` must be floating point or unsigned integers. Got dtype {scores.dtype}.")
        geometry = Geometry(scores.ndim, max(scores.ndim - 1, 0))
        self.check("", tuple(scores.shape), None, geometry)
        return _mask(self, scores, density, geometry)

    def __repr__(self) -> str:
        return show(self)


@eqx.filter_jit
def _mask(
    structure: AbstractStructure, scores: Shaped[Array, "..."], density: UInt32[Array, ""], geometry: Geometry
) -> Bool[Array, "..."]:
    # Compiled also where the caller is not: a bare loop would compile anew at each call.
    return laid_out_as(finish_all([structure.enter(scores, density, geometry)])[0], scores)


class AbstractPooling(AbstractStructure):
    """A structure whose groups compete with each other: within a slice, or with those of other sites.

    It says how scores pool into groups, how many weights a group holds, and how a choice of groups
    spreads back to weights.
    """

    @abc.abstractmethod
    def pooled(self, scores: Shaped[Array, "..."], geometry: Geometry) -> Shaped[Array, "..."]:
        """One score for each group: axes of the stack, then axes of groups (as many as the core has).

        Scores of an unsigned integer dtype are lots, which can't be averaged: a group takes that of its
        first weight.
        """

    @abc.abstractmethod
    def sizes(self, core: tuple[int, ...]) -> int | np.ndarray:
        """Weights in each group: one number, or an array of the shape of the groups of one slice."""

    @abc.abstractmethod
    def spread(self, chosen: Bool[Array, "..."], shape: tuple[int, ...], geometry: Geometry) -> Bool[Array, "*shape"]:
        """The mask of the weights, from that of the groups."""

    @abc.abstractmethod
    def rivals(self, geometry: Geometry) -> int:
        """How many trailing axes of groups compete; all of them, but for structures with a budget for each row."""

    def contest(
        self, scores: Shaped[Array, "..."], geometry: Geometry, kept: Bool[Array, "..."] | None = None
    ) -> Contest:
        seeded = None if kept is None else self.pooled(kept.astype(jnp.uint32), geometry) > 0
        return Contest(
            self.pooled(scores, geometry), geometry.core_rank, self.sizes(geometry.core(scores.shape)), seeded
        )

    def enter(
        self,
        scores: Shaped[Array, "..."],
        density: UInt32[Array, ""],
        geometry: Geometry,
        kept: Bool[Array, "..."] | None = None,
    ) -> Pending:
        shape, core = scores.shape, geometry.core(scores.shape)
        if math.prod(core) == 0:
            return Pending([], lambda _: jnp.zeros(shape, bool))
        contest = self.contest(scores, geometry, kept)._replace(rank=self.rivals(geometry))
        contests = contest.scores.shape[: contest.scores.ndim - contest.rank]
        rows = contests[len(shape) - geometry.core_rank :]
        budget = _shared_by_rows(self.budget(density, core), rows)
        heat = Heat([contest], Wide(*(jnp.broadcast_to(limb, contests) for limb in budget)))
        return Pending([heat], lambda winners: self.spread(winners[0][0], shape, geometry))

    def budget(self, density: UInt32[Array, ""], core: tuple[int, ...]) -> Wide:
        """How many weights of one slice to keep: those of one group at least, unless the density is 0."""
        sizes = self.sizes(core)
        if isinstance(sizes, np.ndarray):  # as near as can be, and `select` keeps one group of any size
            k, least = count(math.prod(core), density), 1
        else:
            groups = count(math.prod(core) // sizes, density)
            k, least = Wide(groups.hi, groups.lo * jnp.uint32(sizes)), sizes
        return maximum(k, Wide(jnp.uint32(0), jnp.where(density > 0, jnp.uint32(least), jnp.uint32(0))))


def _shared_by_rows(budget: Wide, rows: tuple[int, ...]) -> Wide:
    """What each row may keep, the remainder going one each to the first rows: the total is the budget."""
    n = math.prod(rows)
    if n == 1:
        return budget
    first = jnp.arange(n, dtype=jnp.uint32) < budget.lo % n
    each = (budget.lo // n + first.astype(jnp.uint32)).reshape(rows)
    return Wide(jnp.zeros_like(each), each)


def is_lot(scores: Shaped[Array, "..."]) -> bool:
    """Whether scores are lots: random integers, of which only the order means something."""
    return jnp.issubdtype(scores.dtype, jnp.unsignedinteger)
