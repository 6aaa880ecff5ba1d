"""Budgets: who shares how many weights, and who of them is chosen."""

import abc
from collections.abc import Mapping
from typing import final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped, UInt32

from .._selection import Contest, count, Heat, in_float32, Pending, with_floor
from .._sites import Site, Sites
from .._structure import AbstractPooling, AbstractStructure, Geometry
from .._structure.base import is_lot

Structures = Mapping[str, AbstractStructure]


def geometry_of(site: Site) -> Geometry:
    return Geometry(site.core_rank, site.contraction_axis)


class AbstractBudget(eqx.Module):
    """A share of weights to keep, and the paths of the sites that share it."""

    paths: eqx.AbstractVar[tuple[str, ...]]
    density: eqx.AbstractVar[UInt32[Array, ""]]

    @abc.abstractmethod
    def enter(
        self, scores: Mapping[str, Array], sites: Sites, structures: Structures, density: UInt32[Array, ""]
    ) -> Pending:
        """What is to be selected at the given density (on the way to `self.density`); finishes as masks by path."""

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
        self, scores: Mapping[str, Array], sites: Sites, structures: Structures, density: UInt32[Array, ""]
    ) -> Pending:
        (path,) = self.paths
        entry = structures[path].enter(scores[path], density, geometry_of(sites[path]))
        return Pending(entry.heats, lambda winners: {path: entry.finish(winners)})

    def check(self, sites: Sites, structures: Structures) -> None:
        (path,) = self.paths
        structures[path].check(path, sites[path].core, self.density, geometry_of(sites[path]))


@final
class SharedBudget(AbstractBudget):
    """One budget for all weights of several sites.

    - `normalise`: divide the scores of each layer by their L2 norm first.
    - `floor`: how many weights each layer keeps at least (whole groups, where a group holds more).
    """

    paths: tuple[str, ...] = eqx.field(static=True)
    density: UInt32[Array, ""]
    normalise: bool = eqx.field(static=True)
    floor: int = eqx.field(static=True)

    def enter(
        self, scores: Mapping[str, Array], sites: Sites, structures: Structures, density: UInt32[Array, ""]
    ) -> Pending:
        contests = [self._contest(scores[path], sites[path], _pooling(structures, path)) for path in self.paths]
        ranks = [sites[path].core_rank for path in self.paths]
        k = count(sum(sites[path].weight.size for path in self.paths), density)
        floor = jnp.where(density > 0, jnp.uint32(min(self.floor, 2**32 - 1)), jnp.uint32(0))

        def finish(winners: list[list[Bool[Array, "..."]]]) -> dict[str, Bool[Array, "..."]]:
            best = winners[0] if self.floor == 0 else with_floor(winners[0], contests, k, floor, ranks)
            groups = dict(zip(self.paths, best, strict=True))
            return {
                path: _pooling(structures, path).spread(g, sites[path].weight.shape, geometry_of(sites[path]))
                for path, g in groups.items()
            }

        return Pending([Heat(contests, k)], finish)

    def _contest(self, scores: Array, site: Site, structure: AbstractPooling) -> Contest:
        pooled = structure.pooled(_comparable(scores, site, self.normalise), geometry_of(site))
        return Contest(pooled, pooled.ndim, structure.sizes(site.core))

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


def _comparable(scores: Shaped[Array, "..."], site: Site, normalise: bool) -> Shaped[Array, "..."]:
    """Scores that can be compared between sites: in one precision, and divided by the layer's norm if asked."""
    if is_lot(scores):
        return scores
    scores = in_float32(scores)
    return scores / _norm(scores, site) if normalise else scores


def _norm(scores: Float[Array, "..."], site: Site) -> Float[Array, "..."]:
    """The L2 norm of each layer's finite scores (no overflow), 1 where that is 0."""
    axes = tuple(range(scores.ndim - site.core_rank, scores.ndim))
    finite = jnp.where(jnp.isfinite(scores), scores, 0)
    largest = jnp.max(jnp.abs(finite), axis=axes, keepdims=True, initial=0)
    unit = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    return unit * jnp.sqrt(jnp.maximum(jnp.sum((finite / unit) ** 2, axis=axes, keepdims=True), 1))
