"""One budget for all."""

from typing import final

import equinox as eqx
from jaxtyping import Array, ArrayLike, Float32

from .._check import instance, integer, unit
from .._selection import density_of
from .._sites import PatternMap, Sites
from .base import AbstractDistribution, default_or, overridden, Overrides, overriding
from .budget import AbstractBudget, Normaliser, SharedBudget, SiteBudget
from .normalisers import as_they_are, by_norm, by_what_is_larger


@final
class Global(AbstractDistribution):
    """All weights compete with all others; the total kept is exact.

    ??? cite

        [JaxPruner](https://arxiv.org/abs/2304.14082), section 4: scores are divided by the layer's L2 norm
    """

    sparsity: Float32[Array, "..."]
    overrides: PatternMap
    normalise: bool = eqx.field(static=True)
    floor: int = eqx.field(static=True)

    def __init__(self, sparsity: ArrayLike, normalise: bool = True, overrides: Overrides = None, floor: int = 1):
        """**Arguments:**

        - `sparsity`: Fraction of all weights of the pruned sites to remove, in `[0, 1]`: a float, or a scalar array.
        - `normalise`: Divide the scores of each layer by their L2 norm, so that layers of small weights are not
            emptied first.
        - `overrides`: Path pattern → sparsity, or `None` to keep the site dense. These sites are left out of the
            budget.
        - `floor`: Weights that each layer keeps at least. Floors are filled first and count towards the total;
            where they come to more than the budget, they are what is kept.

        **Raises:** `ValueError` if a sparsity is outside `[0, 1]`, or `floor` is no whole number of at least 0.
        """
        self.sparsity = unit(sparsity, "Global(sparsity=...)")
        self.overrides = overriding(overrides, "Global(overrides=...)")
        instance(normalise, bool, "Global(normalise=...)", "a bool")
        self.normalise, self.floor = normalise, integer(floor, "Global(floor=...)", 0)

    def budgets(self, sites: Sites) -> list[AbstractBudget]:
        normaliser = by_norm if self.normalise else as_they_are
        return _one_budget(sites, self.sparsity, self.overrides, "Global(overrides=...)", normaliser, self.floor)


@final
class LAMP(AbstractDistribution):
    """All weights compete by their score over that of the layer's larger ones: `s² / Σ_{t ≥ s} t²`.

    Each layer's largest scores 1, so that none is emptied. Meant for magnitudes; works with any criterion: scores
    below zero come after all others, by `-s² / Σ t²` over all of the layer's.

    ??? cite

        [Layer-adaptive sparsity for the Magnitude-based Pruning](https://arxiv.org/abs/2010.07611), equation (3)
    """

    sparsity: Float32[Array, "..."]
    overrides: PatternMap

    def __init__(self, sparsity: ArrayLike, overrides: Overrides = None):
        """**Arguments:**

        - `sparsity`: Fraction of all weights of the pruned sites to remove, in `[0, 1]`: a float, or a scalar array.
        - `overrides`: Path pattern → sparsity, or `None` to keep the site dense. These sites are left out of the
            budget.

        **Raises:** `ValueError` if a sparsity is outside `[0, 1]`.
        """
        self.sparsity = unit(sparsity, "LAMP(sparsity=...)")
        self.overrides = overriding(overrides, "LAMP(overrides=...)")

    def budgets(self, sites: Sites) -> list[AbstractBudget]:
        return _one_budget(sites, self.sparsity, self.overrides, "LAMP(overrides=...)", by_what_is_larger, 1)


def _one_budget(
    sites: Sites, sparsity: Array, overrides: PatternMap, argument: str, normaliser: Normaliser, floor: int
) -> list[AbstractBudget]:
    """One for all sites, but for those with an override."""
    special = overridden(overrides, sites, argument)
    sharing = tuple(path for path in default_or(special, sites) if path not in special)
    own: list[AbstractBudget] = [SiteBudget(path, d) for path, d in special.items() if d is not None]
    return [SharedBudget(sharing, density_of(sparsity), normaliser, floor), *own] if sharing else own
