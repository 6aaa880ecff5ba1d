"""What a distribution is: how a target sparsity is shared between sites."""

import abc
from collections.abc import Mapping
from typing import Any

import equinox as eqx
from jaxtyping import Array, ArrayLike, Float32, PyTree, UInt32

from .._check import unit
from .._selection import density_of, sparsity_of
from .._show import show
from .._sites import check_by_pattern, PatternMap, read, Sites
from .budget import AbstractBudget


class AbstractDistribution(eqx.Module):
    """How many weights each site keeps in the end."""

    @abc.abstractmethod
    def budgets(self, sites: Sites) -> list[AbstractBudget]:
        """Who shares how many weights. Sites that stay dense have no budget."""

    def informed(self, statistics: Any) -> "AbstractDistribution":
        """The distribution for a model of which `eqsparse.Statistics` are known: itself, unless it goes by these."""
        return self

    def targets(self, model: PyTree) -> dict[str, float | Float32[Array, ""] | None]:
        """The target sparsity of each site by path, `None` where it stays dense.

        **Arguments:**

        - `model`: A model, masked or plain, or a PyTree of arrays. Of a PyTree without modules the
            floating-point arrays of rank 2 or more count.

        **Raises:** `ValueError` if a pattern of an override matches no weight.
        """
        sites = read(model)
        found = {path: sparsity_of(b.density) for b in self.budgets(sites) for path in b.paths}
        return {path: found.get(path) for path, site in sites.items() if site.default or path in found}

    def __repr__(self) -> str:
        return show(self)


Overrides = Mapping[Any, ArrayLike | None] | None


def overriding(overrides: Overrides, argument: str) -> PatternMap:
    """Pattern → sparsity or `None`, checked."""
    check_by_pattern(overrides, argument, "sparsity or `None`")
    at = lambda pattern: f"{argument}[{getattr(pattern, 'pattern', pattern)!r}]"
    return PatternMap({p: None if v is None else unit(v, at(p)) for p, v in (overrides or {}).items()})


def overridden(overrides: PatternMap, sites: Sites, argument: str) -> dict[str, UInt32[Array, ""] | None]:
    """Path → density, or `None` for dense, of the sites that an override matches."""
    found = overrides.lookup({path: site.weight for path, site in sites.items()}, argument)
    return {path: None if value is None else density_of(value) for path, value in found.items()}


def default_or(paths: Any, sites: Sites) -> Sites:
    """The sites that count by default or are named."""
    return {path: site for path, site in sites.items() if site.default or path in paths}
