"""One budget for all."""

from typing import final

import equinox as eqx
from jaxtyping import Array, ArrayLike, Float32

from .._check import integer, unit
from .._selection import density_of
from .._sites import PatternMap, Sites
from .base import AbstractDistribution, default_or, overridden, Overrides, overriding
from .budget import AbstractBudget, SharedBudget, SiteBudget


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
        - `floor`: Weights that each layer keeps at least. Floors are filled first and count towards the total.

        **Raises:** `ValueError` if a sparsity is outside `[0, 1]`, or `floor` is no whole number of at least 0.
        """
        self.sparsity = unit(sparsity, "Global(sparsity=...)")
        self.overrides = overriding(overrides, "Global(overrides=...)")
        self.normalise, self.floor = bool(normalise), integer(floor, "Global(floor=...)", 0)

    def budgets(self, sites: Sites) -> list[AbstractBudget]:
        special = overridden(self.overrides, sites, "Global(overrides=...)")
        sharing = tuple(path for path in default_or(special, sites) if path not in special)
        own: list[AbstractBudget] = [SiteBudget(path, d) for path, d in special.items() if d is not None]
        if not sharing:
            return own
        return [SharedBudget(sharing, density_of(self.sparsity), self.normalise, self.floor), *own]
