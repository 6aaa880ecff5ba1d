"""What flows into a weight, and what of it can be summed up."""

import abc
import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Inexact, Integer

Weight = Float32[Array, "*rows"] | None


class AbstractFlow(eqx.Module):
    """The inputs of a weight in one call of its layer: rows of features, for each group of a convolution.

    Every sum is in float32 and over all rows, each times its weight. Rows of weight 0 count for nothing, whatever is
    in them.
    """

    @property
    @abc.abstractmethod
    def rows(self) -> tuple[int, ...]:
        """How many, along each axis of rows."""

    @abc.abstractmethod
    def arranged(self, kept: tuple[int, ...]) -> "AbstractFlow":
        """With those axes of rows in front and all others flattened into one."""

    @abc.abstractmethod
    def total(self, weight: Weight) -> Float32[Array, "*kept groups features"]:
        """Σ x"""

    @abc.abstractmethod
    def squares(self, weight: Weight) -> Float32[Array, "*kept groups features"]:
        """Σ x²"""

    @abc.abstractmethod
    def products(self, weight: Weight) -> Float32[Array, "*kept groups features features"]:
        """Σ x xᵀ"""

    @abc.abstractmethod
    def largest(self, weight: Weight) -> Float32[Array, "*kept groups features"]:
        """max |x|"""


@final
class Features(AbstractFlow):
    """Rows of numbers."""

    x: Inexact[Array, "*rows groups features"]

    @property
    def rows(self) -> tuple[int, ...]:
        return self.x.shape[:-2]

    def arranged(self, kept: tuple[int, ...]) -> "Features":
        x = jnp.moveaxis(self.x, kept, tuple(range(len(kept))))
        rows = math.prod(x.shape[len(kept) : -2])  # not -1: there may be no features
        return Features(x.reshape(*x.shape[: len(kept)], rows, *x.shape[-2:]))

    def total(self, weight: Weight) -> Float32[Array, "*kept groups features"]:
        return jnp.sum(_weighted(self._counted(weight), weight), axis=-3)

    def squares(self, weight: Weight) -> Float32[Array, "*kept groups features"]:
        return jnp.sum(_weighted(self._counted(weight) ** 2, weight), axis=-3)

    def products(self, weight: Weight) -> Float32[Array, "*kept groups features features"]:
        x = self._counted(weight)
        return jnp.einsum("...rgi,...rgj->...gij", x, _weighted(x, weight), precision=jax.lax.Precision.HIGHEST)

    def largest(self, weight: Weight) -> Float32[Array, "*kept groups features"]:
        return jnp.max(jnp.abs(self._counted(weight)), axis=-3, initial=0)

    def _counted(self, weight: Weight) -> Float32[Array, "*kept rows groups features"]:
        x = self.x.astype(jnp.float32)
        # By selection, not by a product: what is in padding may be infinite or NaN.
        return x if weight is None else jnp.where(weight[..., None, None] != 0, x, 0)


@final
class Lookups(AbstractFlow):
    """Rows that are all zeros but for a one, at an index: what an embedding multiplies its table by.

    Of these Σ x, Σ x² and the diagonal of Σ x xᵀ, which is zero elsewhere, are all the same: how often each was
    looked up.
    """

    index: Integer[Array, "*rows"]
    size: int = eqx.field(static=True)

    @property
    def rows(self) -> tuple[int, ...]:
        return self.index.shape

    def arranged(self, kept: tuple[int, ...]) -> "Lookups":
        index = jnp.moveaxis(self.index, kept, tuple(range(len(kept))))
        return Lookups(index.reshape(*index.shape[: len(kept)], -1), self.size)

    def total(self, weight: Weight) -> Float32[Array, "*kept groups features"]:
        index = jnp.where(self.index < 0, self.index + self.size, self.index).reshape(-1, self.index.shape[-1])
        weight = jnp.ones(index.shape, jnp.float32) if weight is None else weight.reshape(index.shape)
        zeros = jnp.zeros(self.size, jnp.float32)
        counts = jax.vmap(lambda i, w: zeros.at[i].add(w, mode="drop"))(index, weight)
        return counts.reshape(*self.index.shape[:-1], 1, self.size)

    def squares(self, weight: Weight) -> Float32[Array, "*kept groups features"]:
        return self.total(weight)

    def products(self, weight: Weight) -> Float32[Array, "*kept groups features features"]:
        return self.total(weight)[..., None] * jnp.eye(self.size, dtype=jnp.float32)

    def largest(self, weight: Weight) -> Float32[Array, "*kept groups features"]:
        return (self.total(weight) > 0).astype(jnp.float32)


def _weighted(x: Float[Array, "*kept rows groups features"], weight: Weight) -> Float32[Array, "..."]:
    return x if weight is None else x * weight[..., None, None]
