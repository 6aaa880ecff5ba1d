"""Masks that are chosen on the way, from weights that have made up for those removed before."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, UInt32

from .._selection import Contest, count, count_up, select, select_in_runs, Wide
from .._structure import AbstractStructure, Geometry, NM, Unstructured
from .inputs import Form
from .obs import Level

_INNER = 16  # features between two products within a block: the shorter, the less is read again and again


class Steps(NamedTuple):
    """How a weight is gone through.

    - `order`: of its features.
    - `size`: features of the longest runs.
    - `levels`: which weights may stay, and which of them matter, (groups, features, outputs) each → runs of features,
        and what is chosen in each.
    """

    order: np.ndarray
    size: int
    levels: Callable[
        [Bool[Array, "groups features outputs"], Bool[Array, "groups features outputs"]], tuple[Level, ...]
    ]

    def padding(self, features: int) -> int:
        """Features that are missing to a whole number of the longest runs."""
        return -features % self.size


def steps_for(
    structure: AbstractStructure, geometry: Geometry, form: Form, outputs: int, density: UInt32[Array, ""], block: int
) -> Steps | None:
    """For structures whose choice can be made run by run; `None` for others, whose masks have to be known before.

    - `outputs`: of each group.
    """
    found = _STEPS.get(type(structure))
    return None if found is None or form.is_table else found(structure, geometry, form, outputs, density, block)


def steps_of_known_masks(form: Form, block: int) -> Steps:
    """For masks that are there already."""
    return Steps(np.arange(form.features), block, lambda may, matter: _levels(block, None))


def _levels(block: int, choose: Any) -> tuple[Level, ...]:
    inner = () if block % _INNER or block == _INNER else (Level(_INNER),)
    return (Level(block, choose), *inner, Level(1))


def _by_share(
    structure: Unstructured, geometry: Geometry, form: Form, outputs: int, density: UInt32[Array, ""], block: int
) -> Steps:
    """Each block of features keeps its share, so that counts are exact in the end: of the site, or of each row.

    Where fewer weights of a block may stay than its share, or matter, others keep more; what matters not, only where
    all that matters is kept.
    """
    rows = form.groups * outputs
    ends = np.minimum(np.arange(-(-form.features // block) + 1) * block, form.features)
    least = jnp.where(density > 0, jnp.uint32(1), jnp.uint32(0))
    kept = jnp.stack([jnp.maximum(count(rows * int(end), density).lo, least if end else 0) for end in ends])
    row = jnp.arange(rows, dtype=jnp.uint32)
    shared = lambda total: total // rows + (row < total % rows).astype(jnp.uint32)  # the first have the remainder
    by_row = jax.vmap(shared)(kept).reshape(-1, form.groups, outputs)

    upto, axes = (by_row, 2) if structure.per == "row" else (kept, (1, 2, 3))

    def levels(
        may: Bool[Array, "groups features outputs"], matter: Bool[Array, "groups features outputs"]
    ) -> tuple[Level, ...]:
        in_blocks = lambda x: jnp.moveaxis(x.reshape(form.groups, -1, block, outputs), 1, 0)
        number = lambda x: jnp.sum(in_blocks(x), axis=axes, dtype=jnp.uint32)
        found = _fitting(upto, number(may & matter))
        rest = upto[-1] - jnp.sum(found, axis=0, dtype=jnp.uint32)
        found = found + _fitting(jnp.minimum(upto, rest[None]), number(may & ~matter))

        def choose(first: Array, now: Array, diagonal: Array, may: Array) -> Bool[Array, "groups size outputs"]:
            k, scores = found[first // block], _costs(now, diagonal, may)
            if structure.per == "site":
                return select(Contest(scores, 3), Wide(jnp.zeros_like(k), k))
            best = select(Contest(jnp.moveaxis(scores, 1, 2), 1), Wide(jnp.zeros_like(k), k))
            return jnp.moveaxis(best, 2, 1)

        return _levels(block, choose)

    return Steps(np.arange(form.features), block, levels)


def _fitting(upto: UInt32[Array, "ends ..."], there: UInt32[Array, "blocks ..."]) -> UInt32[Array, "blocks ..."]:
    """How many each block keeps, of as many as are there: as many in total as if more were.

    - `upto`: how many all blocks before are to keep, up to each end.
    """
    short = lambda a, b: jnp.maximum(a, b) - b  # without a sign
    after = [jnp.zeros_like(there[0])]
    for n in there[:0:-1]:
        after.insert(0, after[0] + n)
    kept, before = [], jnp.zeros_like(there[0])
    for wanted, n, later in zip(upto[1:], there, after, strict=True):
        # Not fewer than what later blocks can't keep in its place.
        kept.append(jnp.minimum(short(jnp.maximum(wanted, short(upto[-1], later)), before), n))
        before = before + kept[-1]
    return jnp.stack(kept)


def _by_runs(
    structure: NM, geometry: Geometry, form: Form, outputs: int, density: UInt32[Array, ""], block: int
) -> Steps | None:
    """Each run of m features along the axis that is summed over keeps its n. Features are gone through in an order in
    which runs lie together."""
    axis = geometry.contraction_axis if structure.axis is None else structure.axis
    length = form.inputs[0]
    if axis % geometry.core_rank != 1 or length % structure.m:
        return None
    order = np.arange(form.features).reshape(length, -1).T.ravel()
    keep = count_up(structure.m, density).clip(np.uint32(structure.n), np.uint32(structure.m))
    choose = lambda first, now, diagonal, may: select_in_runs(_costs(now, diagonal, may), structure.m, 1, keep, None)
    outer = structure.m * max(1, block // structure.m)
    return Steps(order, outer, lambda may, matter: (Level(outer), Level(structure.m, choose), Level(1)))


def _costs(now: Array, diagonal: Array, may: Array) -> Float32[Array, "groups size outputs"]:
    """What removing each weight costs; those that can't stay come last."""
    return jnp.where(may, (now / diagonal[..., None]) ** 2, jnp.nan)


_STEPS: dict[type, Callable[..., Steps | None]] = {Unstructured: _by_share, NM: _by_runs}
