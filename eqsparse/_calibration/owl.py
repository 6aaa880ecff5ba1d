"""More weights where there are more outliers."""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float32

from .._check import constant, instance, unit
from .._distribution import AbstractBudget, AbstractDistribution, SiteBudget
from .._distribution.base import default_or, overridden, Overrides, overriding
from .._selection import density_from_fraction
from .._sites import PatternMap, Site, Sites
from .criteria import InputMagnitude, statistics_at
from .statistics import Statistics

_LEAST = 1e-9  # a density that rounds to no weight, but is not 0: each site keeps one


@final
class OWL(AbstractDistribution):
    """Layers with more outliers keep more: density `1 - sparsity + 2 λ (D - mean D)`, D from 0 for the layer of the
    fewest outliers to 1 for that of the most.

    An outlier is a weight whose `|w| ‖x‖` is more than M times the mean of its layer. The mean of D is over all
    weights, so that the total is that of `Uniform(sparsity)` to rounding (in the paper it is over layers, which are of
    one size there). Where that leaves the range from 0 to 1, all are shifted alike until the total is met. A stack of
    layers is one site, of one density.

    ??? cite

        [Outlier Weighed Layerwise Sparsity](https://arxiv.org/abs/2310.05175), section 4
    """

    sparsity: Float32[Array, "..."]
    overrides: PatternMap
    spread: float = eqx.field(static=True)
    multiple: float = eqx.field(static=True)
    statistics: Statistics | None

    def __init__(
        self,
        sparsity: ArrayLike,
        overrides: Overrides = None,
        spread: float = 0.08,
        multiple: float = 5.0,
        statistics: Statistics | None = None,
    ):
        """**Arguments:**

        - `sparsity`: Fraction of all weights of the pruned sites to remove, in `[0, 1]`: a float, or a scalar array.
        - `overrides`: Path pattern → sparsity, or `None` to keep the site dense. These sites are left out of the
            budget.
        - `spread`: The paper's λ: no density is further than 2 λ from `1 - sparsity`, but for the shift. At high
            sparsity take less than half of `1 - sparsity`, or layers with the fewest outliers lose nearly all.
        - `multiple`: The paper's M.
        - `statistics`: From `eqsparse.calibrate`. Pruners that are given statistics hand them on.

        **Raises:** `ValueError` if a sparsity is outside `[0, 1]`, or `spread` or `multiple` negative.
        """
        self.sparsity = unit(sparsity, "OWL(sparsity=...)")
        self.overrides = overriding(overrides, "OWL(overrides=...)")
        self.spread = constant(spread, "OWL(spread=...)")
        self.multiple = constant(multiple, "OWL(multiple=...)")
        instance(statistics, Statistics | None, "OWL(statistics=...)", "what `eqsparse.calibrate` returns")
        self.statistics = statistics

    def informed(self, statistics: Any) -> "OWL":
        if self.statistics is not None:
            return self
        known = OWL(0.0, spread=self.spread, multiple=self.multiple, statistics=statistics)
        return eqx.tree_at(lambda d: (d.sparsity, d.overrides), known, (self.sparsity, self.overrides))

    def budgets(self, sites: Sites) -> list[AbstractBudget]:
        if self.statistics is None:
            raise ValueError("`OWL(statistics=...)` must be what `eqsparse.calibrate` returns. Got None.")
        special = overridden(self.overrides, sites, "OWL(overrides=...)")
        sharing = {path: site for path, site in default_or(special, sites).items() if path not in special}
        own: list[AbstractBudget] = [SiteBudget(path, d) for path, d in special.items() if d is not None]
        if not sharing:
            return own
        outliers = jnp.stack([self._outliers(site, self.statistics) for site in sharing.values()])
        low, high = jnp.min(outliers), jnp.max(outliers)
        ranked = (outliers - low) / jnp.where(high > low, high - low, 1)
        sizes = jnp.asarray([site.weight.size for site in sharing.values()], jnp.float32)
        densities = 1 - self.sparsity + 2 * self.spread * (ranked - jnp.sum(ranked * sizes) / jnp.sum(sizes))
        fixed = [density_from_fraction(d) for d in self._possible(densities, sizes)]
        return [*own, *(SiteBudget(path, d) for path, d in zip(sharing, fixed, strict=True))]

    def _possible(
        self, densities: Float32[Array, " sites"], sizes: Float32[Array, " sites"]
    ) -> Float32[Array, " sites"]:
        """From 0 (a weight is kept all the same, unless none shall be) to 1, and all shifted alike so that their total
        is what it was."""
        least = jnp.where(self.sparsity < 1, _LEAST, 0.0).astype(jnp.float32)
        shifted = lambda shift: jnp.clip(densities + shift, least, 1)
        total = jnp.sum(sizes) * (1 - self.sparsity)

        def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = (low + high) / 2
            is_low = jnp.sum(shifted(middle) * sizes) < total
            return jnp.where(is_low, middle, low), jnp.where(is_low, high, middle)

        reach = 1 + jnp.max(jnp.abs(densities))
        low, high = jax.lax.fori_loop(0, 40, halve, (-reach, reach))
        is_inside = jnp.all((densities >= least) & (densities <= 1))
        return jnp.where(is_inside, densities, shifted((low + high) / 2))

    def _outliers(self, site: Site, statistics: Statistics) -> Float32[Array, ""]:
        """Their share in all weights of the site."""
        inputs = statistics_at(statistics, site.path, site.weight)
        scores = InputMagnitude().score(site.effective, statistics=inputs)
        axes = tuple(range(len(site.stack), scores.ndim))
        return jnp.mean((scores > self.multiple * jnp.mean(scores, axis=axes, keepdims=True)).astype(jnp.float32))
