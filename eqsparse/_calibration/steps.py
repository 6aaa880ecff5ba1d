"""Masks that are chosen on the way, from weights that have made up for those removed before."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

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
    - `levels`: runs of them, and what is chosen in each.
    """

    order: np.ndarray
    levels: tuple[Level, ...]


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
    return Steps(np.arange(form.features), _levels(block, None))


def _levels(block: int, choose: Any) -> tuple[Level, ...]:
    inner = () if block % _INNER or block == _INNER else (Level(_INNER),)
    return (Level(block, choose), *inner, Level(1))


def _by_share(
    structure: Unstructured, geometry: Geometry, form: Form, outputs: int, density: UInt32[Array, ""], block: int
) -> Steps:
    """Each block of features keeps its share, so that counts are exact in the end: of the site, or of each row."""
    rows = form.groups * outputs
    ends = np.minimum(np.arange(-(-form.features // block) + 1) * block, form.features)
    least = jnp.where(density > 0, jnp.uint32(1), jnp.uint32(0))
    kept = jnp.stack([jnp.maximum(count(rows * int(end), density).lo, least if end else 0) for end in ends])

    def of_site(first: Array, scores: Float32[Array, "groups size outputs"]) -> Bool[Array, "groups size outputs"]:
        k = kept[first // block + 1] - kept[first // block]
        return select(Contest(scores, 3), Wide(jnp.zeros_like(k), k))

    def of_rows(first: Array, scores: Float32[Array, "groups size outputs"]) -> Bool[Array, "groups size outputs"]:
        row = jnp.arange(rows, dtype=jnp.uint32)
        shared = lambda total: total // rows + (row < total % rows).astype(jnp.uint32)  # the first have the remainder
        k = (shared(kept[first // block + 1]) - shared(kept[first // block])).reshape(form.groups, outputs)
        return jnp.moveaxis(select(Contest(jnp.moveaxis(scores, 1, 2), 1), Wide(jnp.zeros_like(k), k)), 2, 1)

    by = {"site": of_site, "row": of_rows}[structure.per]
    choose = lambda first, now, diagonal, may: by(first, _costs(now, diagonal, may))
    return Steps(np.arange(form.features), _levels(block, choose))


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
    return Steps(order, (Level(outer), Level(structure.m, choose), Level(1)))


def _costs(now: Array, diagonal: Array, may: Array) -> Float32[Array, "groups size outputs"]:
    """What removing each weight costs; those that can't stay come last."""
    return jnp.where(may, (now / diagonal[..., None]) ** 2, jnp.nan)


_STEPS: dict[type, Callable[..., Steps | None]] = {Unstructured: _by_share, NM: _by_runs}


def padded_length(levels: tuple[Level, ...], features: int) -> int:
    """Features up to a whole number of the longest runs."""
    return math.ceil(features / levels[0].size) * levels[0].size
