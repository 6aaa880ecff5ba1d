"""What a pruner does to a model: which sites, with which structures and budgets."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

from jaxtyping import Array, Bool, UInt32

from .._distribution import AbstractBudget, AbstractDistribution
from .._mask import laid_out_as
from .._selection import finish_all, Pending
from .._sites import PatternMap, pick, Sites, Where
from .._structure import AbstractStructure, Unstructured


@dataclasses.dataclass(frozen=True)
class Plan:
    """The sites that are pruned, who shares their weights, and the structure of each."""

    sites: Sites
    budgets: list[AbstractBudget]
    structures: dict[str, AbstractStructure]

    def masks(
        self,
        scores: Mapping[str, Array],
        at: Callable[[UInt32[Array, ""]], UInt32[Array, ""]] = lambda density: density,
        kept: Mapping[str, Bool[Array, "..."]] | None = None,
    ) -> dict[str, Bool[Array, "..."]]:
        """Masks of exactly as many weights as the budgets say, of which each density is first taken through `at`.
        Weights that are `kept` are placed above all others."""
        pending = [
            budget.enter(scores, self.sites, self.structures, at(budget.density), kept) for budget in self.budgets
        ]
        return self._finished(pending)

    def survivors(
        self, scores: Mapping[str, Array], masks: Mapping[str, Bool[Array, "..."]], drop: UInt32[Array, ""]
    ) -> dict[str, Bool[Array, "..."]]:
        """What is left of the weights in the masks when the share `drop` of them goes, those of the lowest scores."""
        pending = [budget.survive(scores, masks, self.sites, self.structures, drop) for budget in self.budgets]
        return self._finished(pending)

    def _finished(self, pending: Sequence[Pending]) -> dict[str, Bool[Array, "..."]]:
        """Masks by path, in the shards of their weights."""
        found = {path: mask for masks in finish_all(pending) for path, mask in masks.items()}
        return {path: laid_out_as(mask, self.sites[path].weight) for path, mask in found.items()}

    def only(self, paths: Collection[str]) -> "Plan":
        """For some of the sites, those of whole budgets."""
        budgets = [budget for budget in self.budgets if set(budget.paths) <= set(paths)]
        return Plan({path: site for path, site in self.sites.items() if path in paths}, budgets, self.structures)

    def densities(self) -> dict[str, UInt32[Array, ""]]:
        """The density that each site is to have in the end; that of all together where they share a budget."""
        return {path: budget.density for budget in self.budgets for path in budget.paths}

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


def apart(plans: Sequence[Plan]) -> list[tuple[str, ...]]:
    """The sites of the first plan in groups, of which no two share a budget in any of the plans."""
    group = {path: path for path in plans[0].sites}  # by the name of one of its members
    for budget in (budget for plan in plans for budget in plan.budgets if len(budget.paths) > 1):
        met = {group[path] for path in budget.paths if path in group}
        group |= {path: min(met) for path, name in group.items() if name in met}
    members: dict[str, tuple[str, ...]] = {}
    for path, name in group.items():
        members[name] = (*members.get(name, ()), path)
    return list(members.values())


def _assign(structures: AbstractStructure | PatternMap, sites: Sites) -> dict[str, AbstractStructure]:
    if isinstance(structures, PatternMap):
        return structures.lookup({path: site.weight for path, site in sites.items()}, "structure")
    return dict.fromkeys(sites, structures)
