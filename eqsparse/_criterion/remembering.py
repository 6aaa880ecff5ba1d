"""Criteria that gather what they go by over many steps, in the pruner's state."""

from typing import final

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Float32, Inexact

from .._check import unit
from .._selection import in_float32
from .base import AbstractCriterion


@final
class Fisher(AbstractCriterion):
    """`w² ν`, twice what removing the weight adds to the loss in second order, the curvature being the mean squared
    gradient ν (the diagonal of the empirical Fisher matrix).

    ν is the second moment that the optimiser keeps (a field `nu`, as Adam's, its bias left in: it scales all alike),
    or else a running mean of the squared gradients. Some optimisers keep something else under that name: Adamax the
    largest gradient of late, so that the worth is `w² max|g|`, AdaBelief and ACProp the variance of the gradient about
    its mean, Sophia a running mean of the Hessian's diagonal.

    ??? cite

        [Faster gaze prediction with dense networks and Fisher pruning](https://arxiv.org/abs/1801.05787), equation
        (7); [WoodFisher](https://arxiv.org/abs/2004.14340), section 3
    """

    decay: Float32[Array, "..."]
    needs = ("memory",)
    optimiser_field = "nu"

    def __init__(self, decay: ArrayLike = 0.999):
        """**Arguments:**

        - `decay`: Of the running mean, in `[0, 1]`.
        """
        self.decay = unit(decay, "Fisher(decay=...)")

    def score(self, weight: Inexact[Array, "*shape"], *, memory: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return in_float32(jnp.abs(weight)) ** 2 * in_float32(memory)

    def remember(
        self, memory: Float[Array, "*shape"] | None, weight: Inexact[Array, "*shape"], grads: Inexact[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        return _running_mean(memory, in_float32(jnp.abs(grads)) ** 2, self.decay)


@final
class Movement(AbstractCriterion):
    """`S = -Σ w · g` over the steps: weights that training moves away from zero are worth most.

    A criterion for gradual pruning of a pretrained model.

    ??? cite

        [Movement Pruning](https://arxiv.org/abs/2005.07683), equation (3), the learning rate of the scores being 1
        (only their order counts)
    """

    needs = ("memory",)

    def score(self, weight: Inexact[Array, "*shape"], *, memory: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return memory

    def remember(
        self, memory: Float[Array, "*shape"] | None, weight: Inexact[Array, "*shape"], grads: Inexact[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        moved = -in_float32(weight) * in_float32(grads)
        return moved if memory is None else memory + _finite(moved, jnp.zeros_like(moved))


@final
class GradientMomentum(AbstractCriterion):
    """The magnitude of the running mean of the gradient: that of the weight removed or not, so it is kept apart from
    the optimiser's own momentum, which ends where the mask does.

    ??? cite

        [Sparse Networks from Scratch](https://arxiv.org/abs/1907.04840), section 3
    """

    decay: Float32[Array, "..."]
    needs = ("memory",)

    def __init__(self, decay: ArrayLike = 0.9):
        """**Arguments:**

        - `decay`: Of the running mean, in `[0, 1]`.
        """
        self.decay = unit(decay, "GradientMomentum(decay=...)")

    def score(self, weight: Inexact[Array, "*shape"], *, memory: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.abs(memory)

    def remember(
        self, memory: Float[Array, "*shape"] | None, weight: Inexact[Array, "*shape"], grads: Inexact[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        return _running_mean(memory, in_float32(grads), self.decay)


def _running_mean(memory: Array | None, new: Array, decay: Array) -> Array:
    if memory is None:
        return new
    decay, new = decay.astype(memory.dtype), new.astype(memory.dtype)
    return decay * memory + (1 - decay) * _finite(new, memory)


def _finite(new: Array, otherwise: Array) -> Array:
    """One infinite or unknown gradient must not stay in a memory for ever."""
    return jnp.where(jnp.isfinite(new), new, otherwise)
