"""Distributions that give each site a budget of its own."""

from collections.abc import Mapping
from typing import Any, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float32, UInt32

from .._check import constant, unit
from .._selection import density_of, FULL, highest_line
from .._sites import PatternMap, Sites
from .base import AbstractDistribution, default_or, overridden, Overrides, overriding
from .budget import AbstractBudget, SiteBudget


@final
class Uniform(AbstractDistribution):
    """The same sparsity everywhere."""

    sparsity: Float32[Array, "..."]
    overrides: PatternMap

    def __init__(self, sparsity: ArrayLike, overrides: Overrides = None):
        """**Arguments:**

        - `sparsity`: Fraction to remove of each site, in `[0, 1]`: a float, or a scalar array to sweep over with
            `jax.vmap`.
        - `overrides`: Path pattern → sparsity, or `None` to keep the site dense.

        **Raises:** `ValueError` if a sparsity is outside `[0, 1]`.
        """
        self.sparsity = unit(sparsity, "Uniform(sparsity=...)")
        self.overrides = overriding(overrides, "Uniform(overrides=...)")

    def budgets(self, sites: Sites) -> list[AbstractBudget]:
        special = overridden(self.overrides, sites, "Uniform(overrides=...)")
        usual = density_of(self.sparsity)
        densities = {path: special.get(path, usual) for path in default_or(special, sites)}
        return [SiteBudget(path, d) for path, d in densities.items() if d is not None]


@final
class PerPath(AbstractDistribution):
    """A sparsity for each pattern, written out."""

    sparsities: PatternMap
    default: Float32[Array, "..."] | None

    def __init__(self, sparsities: Mapping[Any, ArrayLike | None], default: ArrayLike | None = None):
        """**Arguments:**

        - `sparsities`: Path pattern → sparsity in `[0, 1]`, or `None` to keep the site dense. The first pattern
            that matches a path counts.
        - `default`: Sparsity of the sites that no pattern matches; `None` keeps them dense.

        **Raises:** `ValueError` if a sparsity is outside `[0, 1]`.
        """
        self.sparsities = overriding(sparsities, "PerPath(...)")
        self.default = None if default is None else unit(default, "PerPath(default=...)")

    def budgets(self, sites: Sites) -> list[AbstractBudget]:
        named = overridden(self.sparsities, sites, "PerPath(...)")
        usual = None if self.default is None else density_of(self.default)
        densities = {path: named.get(path, usual) for path in default_or(named, sites)}
        return [SiteBudget(path, d) for path, d in densities.items() if d is not None]


@final
class ERK(AbstractDistribution):
    """Erdős–Rényi-kernel: density in proportion to the sum of a weight's dimensions over their product.

    Layers whose density would exceed 1 are kept dense and their share goes to the rest, so the
    total number of kept weights is that of `Uniform(sparsity)`. Each layer of a stack counts as one.

    ??? cite

        [Rigging the Lottery](https://arxiv.org/abs/1911.11134), section 3
    """

    sparsity: Float32[Array, "..."]
    overrides: PatternMap
    power: float = eqx.field(static=True)

    def __init__(self, sparsity: ArrayLike, overrides: Overrides = None, power: float = 1.0):
        """**Arguments:**

        - `sparsity`: Fraction of all weights of the pruned sites to remove, in `[0, 1]`. A float,
            or a scalar array to sweep over with `jax.vmap`.
        - `overrides`: Path pattern → sparsity, or `None` to keep the site dense. These sites are
            left out of the budget.
        - `power`: Exponent on the raw densities. Below 1 evens them out.

        **Raises:** `ValueError` if a sparsity is outside `[0, 1]`, or `power` is no finite number of at least 0.
        """
        self.sparsity = unit(sparsity, "ERK(sparsity=...)")
        self.overrides = overriding(overrides, "ERK(overrides=...)")
        self.power = constant(power, "ERK(power=...)")

    def budgets(self, sites: Sites) -> list[AbstractBudget]:
        special = overridden(self.overrides, sites, "ERK(overrides=...)")
        sharing = {path: site for path, site in default_or(special, sites).items() if path not in special}
        densities = special | erk_densities(sharing, density_of(self.sparsity), self.power)
        return [SiteBudget(path, d) for path, d in densities.items() if d is not None]


def erk_densities(sites: Sites, density: UInt32[Array, ""], power: float) -> dict[str, UInt32[Array, ""]]:
    """The densities `min(1, ε r)` that keep the share `density` of all weights.

    With the layers by falling raw density r, of sizes n and N in all, and S and R the sums of n over the first j
    and of n r over the rest, the kept total is the least of `S + ε R` over j (it is concave in ε), so ε is the
    largest of `(N · density - S) / R`: no iteration, and it works on traced targets. For a layer these are lines
    over the density, `N r / R` and `S r / R`, of which those count that don't have it saturated. They are static,
    so that no arithmetic on sizes is left to float32.
    """
    sites = {path: site for path, site in sites.items() if site.weight.size > 0}
    if not sites:
        return {}
    bases = {path: sum(s.core) / s.slice_size for path, s in sites.items()}
    base = np.array(sorted(set(bases.values()), reverse=True))
    n = np.array([sum(sites[path].weight.size for path in sites if bases[path] == b) for b in base], np.float64)
    saturated = np.concatenate([[0.0], np.cumsum(n)[:-1]])
    with np.errstate(over="ignore", under="ignore", divide="ignore"):  # a large power lets one layer take all
        ratio = (base[None, :] / base[:, None]) ** power
        free = np.cumsum((n * ratio)[:, ::-1], axis=1)[:, ::-1]
        slope, offset = np.tril(n.sum() / free), np.tril(saturated / free)
    shares = highest_line(density, slope, offset)
    rows = dict(zip(base.tolist(), jnp.where(density == FULL, FULL, shares), strict=True))
    return {path: rows[b] for path, b in bases.items()}
