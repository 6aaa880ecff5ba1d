"""Budgets: who shares how many weights, and who of them is chosen."""

import abc
from collections.abc import Callable, Mapping
from typing import final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped, UInt32

from .._selection import (
    Contest,
    count,
    count_true,
    Heat,
    in_float32,
    Pending,
    share,
    subtract,
    total,
    Wide,
    with_floor,
)
from .._sites import Site, Sites
from .._structure import AbstractPooling, AbstractStructure, Geometry
from .._structure.base import is_lot

Structures = Mapping[str, AbstractStructure]
Masks = Mapping[str, Bool[Array, "..."]]
Normaliser = Callable[[Float[Array, "..."], int], Float[Array, "..."]]


def geometry_of(site: Site) -> Geometry:
    return Geometry(site.core_rank, site.contraction_axis)


class AbstractBudget(eqx.Module):
    """A share of weights to keep, and the paths of the sites that share it."""

    paths: eqx.AbstractVar[tuple[str, ...]]
    density: eqx.AbstractVar[UInt32[Array, ""]]

    @abc.abstractmethod
    def enter(
        self,
        scores: Mapping[str, Array],
        sites: Sites,
        structures: Structures,
        density: UInt32[Array, ""],
        kept: Masks | None = None,
    ) -> Pending:
        """What is to be selected at the given density (on the way to `self.density`); finishes as masks by path.
        Weights that are `kept` are placed above all others."""

    @abc.abstractmethod
    def survive(
        self, scores: Mapping[str, Array], masks: Masks, sites: Sites, structures: Structures, drop: UInt32[Array, ""]
    ) -> Pending:
        """What is to be selected of the weights that are there so that the share `drop` of them goes (scores rank
        them above all others); finishes as masks by path."""

    @abc.abstractmethod
    def check(self, sites: Sites, structures: Structures) -> None:
        """Raises `ValueError` if the structures don't allow it."""


@final
class SiteBudget(AbstractBudget):
    """A budget for one site; in a stack, one for each layer."""

    paths: tuple[str, ...] = eqx.field(static=True)
    density: UInt32[Array, ""]

    def __init__(self, path: str, density: UInt32[Array, ""]):
        self.paths, self.density = (path,), density

    def enter(
        self,
        scores: Mapping[str, Array],
        sites: Sites,
        structures: Structures,
        density: UInt32[Array, ""],
        kept: Masks | None = None,
    ) -> Pending:
        (path,) = self.paths
        seeds = None if kept is None else kept[path]
        entry = structures[path].enter(scores[path], density, geometry_of(sites[path]), seeds)
        return Pending(entry.heats, lambda winners: {path: entry.finish(winners)})

    def survive(
        self, scores: Mapping[str, Array], masks: Masks, sites: Sites, structures: Structures, drop: UInt32[Array, ""]
    ) -> Pending:
        (path,) = self.paths
        there = _counted(masks[path], sites[path].core_rank)
        heat = Heat([_contest(scores, sites, structures, path)], subtract(there, share(there, drop)))
        return Pending([heat], lambda winners: _spread(winners[0], sites, structures, self.paths))

    def check(self, sites: Sites, structures: Structures) -> None:
        (path,) = self.paths
        structures[path].check(path, sites[path].core, self.density, geometry_of(sites[path]))


@final
class SharedBudget(AbstractBudget):
    """One budget for all weights of several sites.

    - `normaliser`: makes the scores of different layers comparable.
    - `floor`: how many weights each layer keeps at least (whole groups, where a group holds more).
    """

    paths: tuple[str, ...] = eqx.field(static=True)
    density: UInt32[Array, ""]
    normaliser: Normaliser = eqx.field(static=True)
    floor: int = eqx.field(static=True)

    def enter(
        self,
        scores: Mapping[str, Array],
        sites: Sites,
        structures: Structures,
        density: UInt32[Array, ""],
        kept: Masks | None = None,
    ) -> Pending:
        contests = self._contests(scores, sites, structures, kept)
        ranks = [sites[path].core_rank for path in self.paths]
        k = count(sum(sites[path].weight.size for path in self.paths), density)
        floor = jnp.where(density > 0, jnp.uint32(min(self.floor, 2**32 - 1)), jnp.uint32(0))

        def finish(winners: list[list[Bool[Array, "..."]]]) -> dict[str, Bool[Array, "..."]]:
            best = winners[0] if self.floor == 0 else with_floor(winners[0], contests, k, floor, ranks)
            return _spread(best, sites, structures, self.paths)

        return Pending([Heat(contests, k)], finish)

    def survive(
        self, scores: Mapping[str, Array], masks: Masks, sites: Sites, structures: Structures, drop: UInt32[Array, ""]
    ) -> Pending:
        there = total(jnp.stack([_counted(masks[path], masks[path].ndim).lo for path in self.paths]))
        heat = Heat(self._contests(scores, sites, structures, None), subtract(there, share(there, drop)))
        return Pending([heat], lambda winners: _spread(winners[0], sites, structures, self.paths))

    def _contests(
        self, scores: Mapping[str, Array], sites: Sites, structures: Structures, kept: Masks | None
    ) -> list[Contest]:
        """All groups of all layers of all sites against each other."""
        comparable = {path: _comparable(scores[path], sites[path], self.normaliser) for path in self.paths}
        contests = [_contest(comparable, sites, structures, path, kept) for path in self.paths]
        return [c._replace(rank=c.scores.ndim) for c in contests]

    def check(self, sites: Sites, structures: Structures) -> None:
        for path in self.paths:
            structure, geometry = _pooling(structures, path), geometry_of(sites[path])
            if structure.rivals(geometry) < geometry.core_rank:
                raise _confined(structure, path)
            structure.check(path, sites[path].core, self.density, geometry)


def _pooling(structures: Structures, path: str) -> AbstractPooling:
    structure = structures[path]
    if not isinstance(structure, AbstractPooling):
        raise _confined(structure, path)
    return structure


def _confined(structure: AbstractStructure, path: str) -> ValueError:
    return ValueError(
        "`distribution` must give each site its own share where the structure lets weights compete in a part of it "
        f"only. Got a global one for {structure!r} at `{path}`."
    )


def _contest(
    scores: Mapping[str, Array], sites: Sites, structures: Structures, path: str, kept: Masks | None = None
) -> Contest:
    seeds = None if kept is None else kept[path]
    return structures[path].contest(scores[path], geometry_of(sites[path]), seeds)


def _spread(
    groups: list[Bool[Array, "..."]], sites: Sites, structures: Structures, paths: tuple[str, ...]
) -> dict[str, Bool[Array, "..."]]:
    """The masks of the weights, from those of the groups."""
    return {
        path: structures[path].spread(chosen, sites[path].weight.shape, geometry_of(sites[path]))
        for path, chosen in zip(paths, groups, strict=True)
    }


def _counted(mask: Bool[Array, "..."], core_rank: int) -> Wide:
    """How many weights each layer of a stack has."""
    (there,) = count_true([mask], tuple(range(mask.ndim - core_rank, mask.ndim)))
    return Wide(jnp.zeros_like(there), there)


def _comparable(scores: Shaped[Array, "..."], site: Site, normaliser: Normaliser) -> Shaped[Array, "..."]:
    """Scores that can be compared between sites, in one precision; lots can be as they are."""
    return scores if is_lot(scores) else normaliser(in_float32(scores), site.core_rank)
