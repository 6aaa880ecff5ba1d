"""What a pruner does to a model: which sites, with which structures and budgets."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool

from .._distribution import AbstractBudget, AbstractDistribution
from .._schedule import AbstractSchedule
from .._selection import density_of, finish_all, fraction_of
from .._sites import PatternMap, pick, Sites, Where
from .._structure import AbstractStructure, Unstructured


@dataclasses.dataclass(frozen=True)
class Plan:
    """The sites that are pruned, who shares their weights, and the structure of each."""

    sites: Sites
    budgets: list[AbstractBudget]
    structures: dict[str, AbstractStructure]

    def masks(
        self, scores: Mapping[str, Array], schedule: AbstractSchedule | None = None, step: Any = None
    ) -> dict[str, Bool[Array, "..."]]:
        """Masks of exactly as many weights as the budgets say: at a step of a schedule, or in the end."""
        densities = [b.density if schedule is None else _scheduled(b.density, schedule, step) for b in self.budgets]
        pending = [
            budget.enter(scores, self.sites, self.structures, density)
            for budget, density in zip(self.budgets, densities, strict=True)
        ]
        return {path: mask for masks in finish_all(pending) for path, mask in masks.items()}

    def check(self) -> None:
        """Raises `ValueError` if a structure fits a site or its target not, naming those that it fits."""
        failed: dict[str, ValueError] = {}
        for budget in self.budgets:
            try:
                budget.check(self.sites, self.structures)
            except ValueError as error:
                failed |= dict.fromkeys(budget.paths, error)
        if failed:
            first = next(iter(failed.values()))
            fits = [path for path in self.sites if path not in failed]
            others = f" It fits {fits}: pick these by `structure={{pattern: ...}}` or `where`." if fits else ""
            raise ValueError(f"{first}{others}")


def plan(
    sites: Sites,
    distribution: AbstractDistribution,
    structures: AbstractStructure | PatternMap,
    where: Where,
) -> Plan:
    """Resolves patterns against the sites of a model."""
    picked = pick(where, {path: site.weight for path, site in sites.items() if site.default})
    known = {path: dataclasses.replace(site, default=path in picked) for path, site in sites.items()}
    budgets = distribution.budgets(known)
    chosen = {path: known[path] for budget in budgets for path in budget.paths}
    assigned = _assign(structures, sites)
    return Plan(chosen, budgets, {path: assigned.get(path, Unstructured()) for path in chosen})


def _assign(structures: AbstractStructure | PatternMap, sites: Sites) -> dict[str, AbstractStructure]:
    if isinstance(structures, PatternMap):
        return structures.lookup({path: site.weight for path, site in sites.items()}, "structure")
    return dict.fromkeys(sites, structures)


def _scheduled(density: Array, schedule: AbstractSchedule, step: Any) -> Array:
    """The density at a step; that of the target verbatim where the schedule says the target."""
    target = 1 - fraction_of(density)
    now = schedule.sparsity(target, step)
    return jnp.where(now == target, density, density_of(now))


def frozen_sites(sites: Sites) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Paths and shapes, to tell one model from another."""
    return tuple((path, tuple(site.weight.shape)) for path, site in sites.items())
